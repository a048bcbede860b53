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

Gradients = tuple[Tensor | None, ...]


class _DepthwiseConv2d(torch.autograd.Function):
    """`depthwise_conv2d` with gradients of what requires them."""

    @staticmethod
    def forward(
        ctx: Any,
        is_direct: bool,
        settings: tuple[str, bool, tuple[int, int]],
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        *_, needs_weight, needs_bias = ctx.needs_input_grad
        # The bias gradient rides along with the weight gradient, so it needs the input only there.
        ctx.save_for_backward(input if needs_weight else None, weight)
        ctx.is_direct, ctx.settings = is_direct, settings
        # The gradient of the input has its layout, also where the input is not kept.
        ctx.channels_last = None if needs_weight else layout.is_channels_last(input)
        ctx.bias_strides = bias.stride() if bias is not None and needs_bias else None
        if is_direct:
            impl, _, dilation = settings
            return dispatch.backend(impl).forward(input, weight, bias, dilation)
        output: Tensor = depthwise_conv2d.run(input, weight, bias, *settings)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Gradients:
        input, weight = ctx.saved_tensors
        if ctx.is_direct and direct.takes_gradient(grad_output):
            grads = _gradients(ctx, True, input, weight, grad_output)
        elif direct.beyond_backward():
            grads = _differentiable_gradients(ctx, input, weight, grad_output)
        else:
            grads = _gradients(ctx, False, input, weight, grad_output)
        return (None, None, *grads)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise derivatives.refusal(_call_of(ctx))


def _call_of(ctx: Any) -> str:
    """Return the call as its user wrote it."""
    impl, *_ = ctx.settings
    return f"depthwise_conv2d(impl={impl!r})"


def _gradients(
    ctx: Any, is_direct: bool, input: Tensor | None, weight: Tensor, grad_output: Tensor
) -> Gradients:
    impl, _, dilation = ctx.settings
    _, _, needs_input, *_ = ctx.needs_input_grad
    with_bias = ctx.bias_strides is not None
    steps = dispatch.kernel_backend(impl) if is_direct else _Operators(impl)
    if needs_input and input is None:
        grad_output = steps.arranged(grad_output, ctx.channels_last)
    grad_input, grad_weight, grad_bias = steps.gradients(
        grad_output, input, weight, dilation, needs_input, with_bias
    )
    if grad_weight is not None:
        grad_weight = layout.parameter_gradient(grad_weight, weight.stride())
    if with_bias:
        if grad_bias is None:
            grad_bias = grad_output.sum((0, 2, 3), dtype=torch.float32)
        grad_bias = layout.parameter_gradient(grad_bias, ctx.bias_strides)
    return grad_input, grad_weight, grad_bias


class _Operators:
    """The steps of a `KernelBackend` as operators, which tracers and modes see."""

    arranged = staticmethod(layout.arranged)

    def __init__(self, impl: str) -> None:
        self._impl = impl

    def gradients(
        self,
        grad_output: Tensor,
        input: Tensor | None,
        weight: Tensor,
        dilation: Sequence[int],
        needs_input: bool,
        with_bias: bool,
    ) -> Gradients:
        if input is not None:
            grad_output = layout.arranged(grad_output, layout.is_channels_last(input))
        grad_input = sums = bias_sums = None
        if needs_input:
            operands = (grad_output, weight, self._impl, dilation)
            grad_input = depthwise_conv2d_input_gradient(*operands)
        if input is not None:
            sums, bias_sums = depthwise_conv2d_weight_gradient(
                input, grad_output, weight.shape[2:], with_bias, self._impl, dilation
            )
        return grad_input, sums, bias_sums if with_bias else None


def _differentiable_gradients(
    ctx: Any, input: Tensor | None, weight: Tensor, grad_output: Tensor
) -> Gradients:
    """Return gradients that are differentiated or transformed themselves, as far as that goes."""
    _, automatic, _ = ctx.settings
    if automatic:
        return _gradients_of_pytorch(ctx, input, weight, grad_output)
    call = _call_of(ctx)
    if direct.in_transform() or direct.in_forward_mode():
        raise derivatives.refusal(call)
    with torch.no_grad():
        grads = _gradients(ctx, False, input, weight, grad_output)
    return derivatives.once(call, "impl='torch'", grads, (grad_output, input, weight))


def _gradients_of_pytorch(
    ctx: Any, input: Tensor | None, weight: Tensor, grad_output: Tensor
) -> Gradients:
    *_, dilation = ctx.settings
    # No gradient that is wanted depends on an operand that was not kept.
    zero = grad_output.detach().new_zeros(())
    if input is None:
        input = zero.expand(grad_output.shape)
    bias = None if ctx.bias_strides is None else zero.expand(grad_output.shape[1])
    function = functools.partial(reference.forward, dilation=_pair(dilation))
    return derivatives.of_pytorch(
        function, (input, weight, bias), ctx.needs_input_grad[2:], grad_output
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
