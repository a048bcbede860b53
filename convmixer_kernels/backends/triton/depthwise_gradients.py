"""The gradients of a depthwise convolution, one kernel after the other."""

from __future__ import annotations

from torch import Tensor

from convmixer_kernels import layout
from convmixer_kernels.backends.triton.depthwise_forward import input_gradient
from convmixer_kernels.backends.triton.depthwise_weight_gradient import weight_gradient
from convmixer_kernels.backends.triton.planes import arranged
from convmixer_kernels.filters import Filter


def gradients(
    grad_output: Tensor,
    input: Tensor | None,
    weight: Tensor,
    dilation: tuple[int, int],
    needs_input: bool,
    with_bias: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of `depthwise_forward.forward`; those of weight and bias in float32."""
    if input is not None:
        grad_output = arranged(grad_output, layout.is_channels_last(input))
    grad_input = grad_weight = grad_bias = None
    if needs_input:
        grad_input = input_gradient(grad_output, weight, dilation)
    if input is not None:
        filter = Filter.of(weight, dilation)
        grad_weight, grad_bias = weight_gradient(input, grad_output, filter, with_bias)
    return grad_input, grad_weight, grad_bias
