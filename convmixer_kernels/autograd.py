"""Gradients of the depthwise convolution, and the refusal of second derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convmixer_kernels import ops


class DepthwiseConv2d(torch.autograd.Function):
    """`ops.depthwise_conv2d` with gradients of what requires them."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, impl: str) -> Tensor:
        needs_input, needs_weight = ctx.needs_input_grad[:2]
        # The bias gradient rides along with the weight gradient, so it needs the input only there.
        ctx.save_for_backward(
            input if needs_weight else None,
            weight if needs_input else None,
        )
        ctx.impl = impl
        ctx.kernel_size = weight.shape[-1]
        ctx.weight_dtype = weight.dtype
        ctx.bias_dtype = bias.dtype if bias is not None and ctx.needs_input_grad[2] else None
        return ops.depthwise_conv2d(input, weight, bias, impl)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        grad_input = grad_weight = grad_bias = None
        if weight is not None:
            grad_input = ops.depthwise_conv2d_input_gradient(grad_output, weight, ctx.impl)
        if input is not None:
            sums, bias_sums = ops.depthwise_conv2d_weight_gradient(
                input, grad_output, ctx.kernel_size, ctx.bias_dtype is not None, ctx.impl
            )
            grad_weight = sums.to(ctx.weight_dtype)
            if ctx.bias_dtype is not None:
                grad_bias = bias_sums.to(ctx.bias_dtype)
        elif ctx.bias_dtype is not None:
            grad_bias = grad_output.sum((0, 2, 3), dtype=torch.float32).to(ctx.bias_dtype)
        grads = differentiable_once(
            f"depthwise_conv2d(impl={ctx.impl!r})",
            "impl='torch'",
            (grad_input, grad_weight, grad_bias),
            (grad_output, input, weight),
        )
        return (*grads, None)


def differentiable_once(
    function: str,
    remedy: str,
    grads: tuple[Tensor | None, ...],
    sources: tuple[Tensor | None, ...],
) -> tuple[Tensor | None, ...]:
    """What a backward pass returns: `grads`, whose own derivatives raise.

    Args:
        function: the call, for the message.
        remedy: the arguments with which it is differentiable any number of times.
        grads: gradients computed by kernels.
        sources: every tensor that they depend on and that may require grad.
    """
    if not torch.is_grad_enabled():  # not create_graph=True
        return grads
    return tuple(
        None if grad is None else _DifferentiableOnce.apply(grad, function, remedy, *sources)
        for grad in grads
    )


class _DifferentiableOnce(torch.autograd.Function):
    """Passes a gradient on and raises where somebody differentiates it again.

    `torch.autograd.function.once_differentiable` sees only whether the incoming gradient requires
    grad, and lets a derivative that runs through saved tensors pass as zero.
    """

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, function: str, remedy: str, *sources: Tensor | None
    ) -> Tensor:
        ctx.function, ctx.remedy = function, remedy
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:
        raise RuntimeError(
            f"{ctx.function} can be differentiated once; use {ctx.remedy} for higher derivatives"
        )
