"""The convolution with what follows it in a block, put together from other operations."""

from __future__ import annotations

from torch import Tensor

from convmixer_kernels.backends.triton import (
    batch_norm,
    depthwise_forward,
    depthwise_weight_gradient,
    statistics,
    streaming,
)


def forward_moments(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    """The convolution with its bias, rounded, and the moments of its activation, (3, C).

    The moments are a pass of their own. Within the convolution they would cost the registers that
    its sums live in: every lane holds other columns, so there would be a count, mean and square for
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
    """Gradients of input, weight and bias; none of weight without `input`, and the reverse.

    The gradient of `value` is rounded to its dtype on its way to the convolution's gradients; that
    of the residual is added before the gradient of the input is rounded.
    """
    # Once for both kernels that read them.
    value, grad = streaming.of_one_layout((value, grad))
    grad_value, grad_bias = batch_norm.value_gradient(
        value, None, grad, normalisation, sums, activation, with_bias
    )
    grad_input = grad_weight = None
    if weight is not None:
        addend = grad if residual else None
        grad_input = depthwise_forward.input_gradient(grad_value, weight, addend)
    if input is not None:
        grad_weight, _ = depthwise_weight_gradient.weight_gradient(
            input, grad_value, kernel_size, with_bias=False
        )
    return grad_input, grad_weight, grad_bias
