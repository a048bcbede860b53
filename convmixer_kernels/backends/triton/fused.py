"""Operations of a fused block, put together from other operations."""

from __future__ import annotations

from torch import Tensor

from convmixer_kernels.backends.triton import (
    batch_norm,
    depthwise_forward,
    depthwise_weight_gradient,
    elementwise,
    planes,
    statistics,
)
from convmixer_kernels.operands import FusedBackward, PreActivation


def forward_moments(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    """Return the convolution with its bias, rounded, and the moments of its activation, (3, C).

    The moments are a pass of their own. Within the convolution they would cost the registers of its
    accumulators: every lane holds other columns, so there would be a count, mean and square for
    each.
    """
    value = depthwise_forward.forward(input, weight, bias)
    return value, statistics.moments(PreActivation(value, None, activation))


def fused_backward(
    call: FusedBackward,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of input, weight and bias.

    The gradient of `value` is rounded to its dtype on its way to the gradients of the convolution;
    that of the residual is added before the gradient of the input is rounded.
    """
    # Two kernels read these: they are copied at most once.
    value, grad = elementwise.of_one_layout((call.value, call.grad))
    assert value is not None and grad is not None
    call = call._replace(value=value, grad=grad)
    grad_value, grad_bias = batch_norm.value_gradient(
        call.before, grad, call.normalisation, call.sums, call.with_bias
    )
    grad_input = grad_weight = None
    # Both gradients of the convolution read these.
    grad_planes = planes.planar(grad_value)
    if call.weight is not None:
        addend = grad if call.residual else None
        grad_input = depthwise_forward.input_gradient(grad_planes, call.weight, addend=addend)
        grad_input = planes.arranged_like(grad_input, grad_value)
    if call.input is not None:
        grad_weight, _ = depthwise_weight_gradient.square_weight_gradient(
            call.input, grad_planes, call.kernel_size, with_bias=False
        )
    return grad_input, grad_weight, grad_bias
