"""The depthwise convolution and its gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convmixer_kernels import derivatives, direct, dispatch, layout
from convmixer_kernels.backends import reference
from convmixer_kernels.ops.declaration import (
    differentiable_operator,
    empty_sums,
    nothing,
    operator,
)


class _DepthwiseConv2d(torch.autograd.Function):
    """`depthwise_conv2d` with gradients of what requires them."""

    @staticmethod
    def forward(
        ctx: Any,
        is_direct: bool,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        impl: str,
        automatic: bool = False,
    ) -> Tensor:
        _, needs_input, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        # The bias gradient rides along with the weight gradient, so it needs the input only there.
        ctx.save_for_backward(input if needs_weight else None, weight if needs_input else None)
        ctx.impl, ctx.automatic = impl, automatic
        ctx.kernel_size = weight.shape[-1]
        ctx.channels_last = layout.is_channels_last(input)
        ctx.weight_layout = layout.GradientLayout.of(weight) if needs_weight else None
        ctx.bias_layout = None
        if bias is not None and needs_bias:
            ctx.bias_layout = layout.GradientLayout.of(bias)
        run = depthwise_conv2d.kernel if is_direct else depthwise_conv2d.run
        output: Tensor = run(input, weight, bias, impl, automatic)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        if not derivatives.beyond_backward():
            return (None, *_gradients(ctx, input, weight, grad_output), None, None)
        if ctx.automatic:
            grads = _gradients_of_pytorch(ctx, input, weight, grad_output)
            return (None, *grads, None, None)
        call = f"depthwise_conv2d(impl={ctx.impl!r})"
        if derivatives.in_transform() or derivatives.in_forward_mode():
            raise derivatives.refusal(call)
        with torch.no_grad():
            grads = _gradients(ctx, input, weight, grad_output)
        sources = (grad_output, input, weight)
        return (None, *derivatives.once(call, "impl='torch'", grads, sources), None, None)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise derivatives.refusal(f"depthwise_conv2d(impl={ctx.impl!r})")


def _gradients(
    ctx: Any, input: Tensor | None, weight: Tensor | None, grad_output: Tensor
) -> tuple[Tensor | None, ...]:
    grad_output = layout.arranged(grad_output, ctx.channels_last)
    impl = ctx.impl
    input_gradient: Any = depthwise_conv2d_input_gradient
    weight_gradient: Any = depthwise_conv2d_weight_gradient
    if direct.takes((grad_output,), (input, weight)):
        input_gradient, weight_gradient = input_gradient.kernel, weight_gradient.kernel
    grad_input = grad_weight = grad_bias = bias_sums = None
    if weight is not None:
        grad_input = input_gradient(grad_output, weight, impl)
    if input is not None:
        with_bias = ctx.bias_layout is not None
        sums, bias_sums = weight_gradient(input, grad_output, ctx.kernel_size, with_bias, impl)
        grad_weight = ctx.weight_layout.arrange(sums)
    elif ctx.bias_layout is not None:
        bias_sums = grad_output.sum((0, 2, 3), dtype=torch.float32)
    if ctx.bias_layout is not None:
        grad_bias = ctx.bias_layout.arrange(bias_sums)
    return grad_input, grad_weight, grad_bias


def _gradients_of_pytorch(
    ctx: Any, input: Tensor | None, weight: Tensor | None, grad_output: Tensor
) -> tuple[Tensor | None, ...]:
    channels, size = grad_output.shape[1], ctx.kernel_size
    # No gradient that is wanted depends on an operand that was not kept.
    zero = grad_output.detach().new_zeros(())
    if input is None:
        input = zero.expand(grad_output.shape)
    if weight is None:
        weight = zero.expand(channels, 1, size, size)
    bias = None
    if ctx.bias_layout is not None:
        bias = zero.to(ctx.bias_layout.dtype).expand(channels)
    return derivatives.of_pytorch(
        reference.forward, (input, weight, bias), ctx.needs_input_grad[1:4], grad_output
    )


def _forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, impl: str, automatic: bool = False
) -> Tensor:
    return dispatch.backend(impl).forward(input, weight, bias)


def _fake_forward(input: Tensor, *_: object) -> Tensor:
    return layout.empty_like_input(input)


def _input_gradient(grad_output: Tensor, weight: Tensor, impl: str) -> Tensor:
    return dispatch.kernel_backend(impl).input_gradient(grad_output, weight)


def _fake_input_gradient(grad_output: Tensor, weight: Tensor, impl: str) -> Tensor:
    return layout.empty_like_input(grad_output)


def _weight_gradient(
    input: Tensor, grad_output: Tensor, kernel_size: int, with_bias: bool, impl: str
) -> tuple[Tensor, Tensor]:
    weight_gradient = dispatch.kernel_backend(impl).weight_gradient
    grad_weight, grad_bias = weight_gradient(input, grad_output, kernel_size, with_bias)
    return grad_weight, nothing(grad_weight) if grad_bias is None else grad_bias


def _fake_weight_gradient(
    input: Tensor, grad_output: Tensor, kernel_size: int, with_bias: bool, impl: str
) -> tuple[Tensor, Tensor]:
    channels = input.shape[1]
    grad_weight = empty_sums(input, channels, 1, kernel_size, kernel_size)
    return grad_weight, empty_sums(input, channels if with_bias else 0)


depthwise_conv2d = differentiable_operator(
    "depthwise_conv2d(Tensor input, Tensor weight, Tensor? bias, str impl, "
    "bool automatic=False) -> Tensor",
    _forward,
    _fake_forward,
    _DepthwiseConv2d,
)
"""The convolution of (N, C, H, W) with (C, 1, k, k), plus (C,).

`automatic` tells that "auto" chose `impl`: then PyTorch computes the derivatives that its kernels
lack, which are refused otherwise.
"""
depthwise_conv2d_input_gradient = operator(
    "depthwise_conv2d_input_gradient(Tensor grad_output, Tensor weight, str impl) -> Tensor",
    _input_gradient,
    _fake_input_gradient,
)
depthwise_conv2d_weight_gradient = operator(
    "depthwise_conv2d_weight_gradient(Tensor input, Tensor grad_output, int kernel_size, "
    "bool with_bias, str impl) -> (Tensor, Tensor)",
    _weight_gradient,
    _fake_weight_gradient,
)
