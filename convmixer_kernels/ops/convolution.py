"""The depthwise convolution and its gradients."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convmixer_kernels import derivatives, direct, dispatch, layout
from convmixer_kernels.backends import reference
from convmixer_kernels.filters import Filter
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
        dilation: Sequence[int] = (1, 1),
    ) -> Tensor:
        _, needs_input, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        # The bias gradient rides along with the weight gradient, so it needs the input only there.
        ctx.save_for_backward(input if needs_weight else None, weight if needs_input else None)
        ctx.is_direct, ctx.impl, ctx.automatic = is_direct, impl, automatic
        ctx.filter = Filter.of(weight, dilation)
        ctx.channels_last = layout.is_channels_last(input)
        ctx.weight_layout = layout.GradientLayout.of(weight) if needs_weight else None
        ctx.bias_layout = None
        if bias is not None and needs_bias:
            ctx.bias_layout = layout.GradientLayout.of(bias)
        output: Tensor = depthwise_conv2d.results(
            is_direct, input, weight, bias, impl, automatic, dilation
        )
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        if not direct.beyond_backward():
            return (None, *_gradients(ctx, input, weight, grad_output), None, None, None)
        if ctx.automatic:
            grads = _gradients_of_pytorch(ctx, input, weight, grad_output)
            return (None, *grads, None, None, None)
        call = f"depthwise_conv2d(impl={ctx.impl!r})"
        if direct.in_transform() or direct.in_forward_mode():
            raise derivatives.refusal(call)
        with torch.no_grad():
            grads = _gradients(ctx, input, weight, grad_output)
        sources = (grad_output, input, weight)
        grads = derivatives.once(call, "impl='torch'", grads, sources)
        return (None, *grads, None, None, None)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise derivatives.refusal(f"depthwise_conv2d(impl={ctx.impl!r})")


def _gradients(
    ctx: Any, input: Tensor | None, weight: Tensor | None, grad_output: Tensor
) -> tuple[Tensor | None, ...]:
    impl, filter, with_bias = ctx.impl, ctx.filter, ctx.bias_layout is not None
    grad_input = sums = bias_sums = grad_weight = grad_bias = None
    # Saved tensors are as plain as they were in the forward pass.
    if ctx.is_direct and direct.takes((grad_output,)):
        backend = dispatch.kernel_backend(impl)
        grad_output = backend.arranged(grad_output, ctx.channels_last)
        if weight is not None:
            grad_input = backend.input_gradient(grad_output, weight, filter.dilation)
        if input is not None:
            may_round = ctx.weight_layout.dtype is input.dtype
            sums, bias_sums = backend.weight_gradient(
                input, grad_output, filter, with_bias, may_round
            )
    else:  # A tracer of operators has to see the copy.
        grad_output = layout.arranged(grad_output, ctx.channels_last)
        if weight is not None:
            grad_input = depthwise_conv2d_input_gradient(grad_output, weight, impl, filter.dilation)
        if input is not None:
            sums, bias_sums = depthwise_conv2d_weight_gradient(
                input, grad_output, filter.shape, with_bias, impl, filter.dilation
            )
    if sums is not None:
        grad_weight = ctx.weight_layout.arrange(sums)
    elif with_bias:
        bias_sums = grad_output.sum((0, 2, 3), dtype=torch.float32)
    if with_bias:
        grad_bias = ctx.bias_layout.arrange(bias_sums)
    return grad_input, grad_weight, grad_bias


def _gradients_of_pytorch(
    ctx: Any, input: Tensor | None, weight: Tensor | None, grad_output: Tensor
) -> tuple[Tensor | None, ...]:
    channels, filter = grad_output.shape[1], ctx.filter
    # No gradient that is wanted depends on an operand that was not kept.
    zero = grad_output.detach().new_zeros(())
    if input is None:
        input = zero.expand(grad_output.shape)
    if weight is None:
        weight = zero.expand(channels, 1, *filter.shape)
    bias = None
    if ctx.bias_layout is not None:
        bias = zero.to(ctx.bias_layout.dtype).expand(channels)
    function = functools.partial(reference.forward, dilation=filter.dilation)
    return derivatives.of_pytorch(
        function, (input, weight, bias), ctx.needs_input_grad[1:4], grad_output
    )


def _forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    impl: str,
    automatic: bool = False,
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    return dispatch.backend(impl).forward(input, weight, bias, _pair(dilation))


def _fake_forward(input: Tensor, *_: object) -> Tensor:
    return layout.empty_like_input(input)


def _input_gradient(
    grad_output: Tensor, weight: Tensor, impl: str, dilation: Sequence[int] = (1, 1)
) -> Tensor:
    return dispatch.kernel_backend(impl).input_gradient(grad_output, weight, _pair(dilation))


def _fake_input_gradient(grad_output: Tensor, *_: object) -> Tensor:
    return layout.empty_like_input(grad_output)


def _weight_gradient(
    input: Tensor,
    grad_output: Tensor,
    kernel_size: Sequence[int],
    with_bias: bool,
    impl: str,
    dilation: Sequence[int] = (1, 1),
) -> tuple[Tensor, Tensor]:
    weight_gradient = dispatch.kernel_backend(impl).weight_gradient
    filter = Filter(*kernel_size, *dilation)
    grad_weight, grad_bias = weight_gradient(input, grad_output, filter, with_bias)
    return grad_weight, nothing(grad_weight) if grad_bias is None else grad_bias


def _fake_weight_gradient(
    input: Tensor, grad_output: Tensor, kernel_size: Sequence[int], with_bias: bool, *_: object
) -> tuple[Tensor, Tensor]:
    channels = input.shape[1]
    grad_weight = empty_sums(input, channels, 1, *kernel_size)
    return grad_weight, empty_sums(input, channels if with_bias else 0)


def _pair(dilation: Sequence[int]) -> tuple[int, int]:
    rows, columns = dilation
    return rows, columns


depthwise_conv2d = differentiable_operator(
    "depthwise_conv2d(Tensor input, Tensor weight, Tensor? bias, str impl, "
    "bool automatic=False, int[2] dilation=[1, 1]) -> Tensor",
    _forward,
    _fake_forward,
    _DepthwiseConv2d,
)
"""The convolution of (N, C, H, W) with (C, 1, h, w), plus (C,).

`automatic` tells that "auto" chose `impl`: then PyTorch computes the derivatives that its kernels
lack, which are refused otherwise.
"""
depthwise_conv2d_input_gradient = operator(
    "depthwise_conv2d_input_gradient(Tensor grad_output, Tensor weight, str impl, "
    "int[2] dilation=[1, 1]) -> Tensor",
    _input_gradient,
    _fake_input_gradient,
)
depthwise_conv2d_weight_gradient = operator(
    "depthwise_conv2d_weight_gradient(Tensor input, Tensor grad_output, int[2] kernel_size, "
    "bool with_bias, str impl, int[2] dilation=[1, 1]) -> (Tensor, Tensor)",
    _weight_gradient,
    _fake_weight_gradient,
)
