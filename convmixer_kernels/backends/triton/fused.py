"""Operations of a fused block, put together from other operations."""

from __future__ import annotations

from torch import Tensor

from convmixer_kernels.backends.triton import (
    batch_norm,
    depthwise_forward,
    depthwise_weight_gradient,
    elementwise,
    statistics,
)


def forward_moments(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    """Return the convolution with its bias, rounded, and the moments of its activation, (3, C).

    The moments are a pass of their own. Within the convolution they would cost the registers of its
    accumulators: every lane holds other columns, so there would be a count, mean and square for
    each.
    """
    value = depthwise_forward.forward(input, weight, bias)
    return value, statistics.moments(value, None, activation)


def fused_backward(
    input: Tensor | None,
    value: Tensor,
    grad: Tensor,
    weight: Tensor | None,
    normalisation: Tensor,
    sums: Tensor,
    activation: str,
    residual: bool,
    kernel_size: int,
    with_bias: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of input, weight and bias.

    Without `input` there is none of weight, without `weight` none of input. The gradient of `value`
    is rounded to its dtype on its way to the gradients of the convolution; that of the residual is
    added before the gradient of the input is rounded.
    """
    # Two kernels read these: they are copied at most once.
    value, grad = elementwise.of_one_layout((value, grad))
    grad_value, grad_bias = batch_norm.value_gradient(
        value, None, grad, normalisation, sums, activation, with_bias
    )
    grad_input = grad_weight = None
    if weight is not None:
        addend = grad if residual else None
        grad_input = depthwise_forward.input_gradient(grad_value, weight, addend=addend)
    if input is not None:
        grad_weight, _ = depthwise_weight_gradient.square_weight_gradient(
            input, grad_value, kernel_size, with_bias=False
        )
    return grad_input, grad_weight, grad_bias
