"""The depthwise convolution and its gradients on the CUDA kernels.

The extension serves every filter, but leaves some to be embedded in square ones, as zeros around
and between their taps.
"""

from __future__ import annotations

from torch import Tensor

from convmixer_kernels.backends.cuda.device import extension_for
from convmixer_kernels.filters import Filter


def forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: tuple[int, int] = (1, 1),
    *,
    flipped: bool = False,
) -> Tensor:
    """Convolve (N, C, H, W) with (C, 1, h, w) and add (C,).

    Args:
        flipped: whether the filters are turned by half a turn, as the input gradient asks for.

    Returns:
        (N, C, H, W), laid out like `input`.
    """
    output: Tensor | None = extension_for(input).forward(input, weight, bias, *dilation, flipped)
    if output is not None:
        return output
    return forward(input, Filter.of(weight, dilation).embed(weight), bias, flipped=flipped)


def input_gradient(
    grad_output: Tensor, weight: Tensor, dilation: tuple[int, int] = (1, 1)
) -> Tensor:
    """Return the gradient of the input of `forward`, laid out like `grad_output`."""
    return forward(grad_output, weight, None, dilation, flipped=True)


def weight_gradient(
    input: Tensor, grad_output: Tensor, filter: Filter, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the float32 gradients of `forward` with respect to its weight and, if asked, bias."""
    sums = extension_for(input).weight_gradient(input, grad_output, *filter, with_bias)
    if sums is not None:
        return sums
    square = Filter(filter.embedding_size, filter.embedding_size)
    grad_weight, grad_bias = weight_gradient(input, grad_output, square, with_bias)
    return filter.pick(grad_weight), grad_bias


def gradients(
    grad_output: Tensor,
    input: Tensor | None,
    weight: Tensor,
    dilation: tuple[int, int],
    needs_input: bool,
    with_bias: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of `forward`; that of the weight is rounded to its dtype."""
    extension = extension_for(grad_output)
    grads = extension.gradients(grad_output, input, weight, *dilation, needs_input, with_bias)
    if grads is not None:
        return grads
    filter = Filter.of(weight, dilation)
    grad_input, grad_weight, grad_bias = gradients(
        grad_output, input, filter.embed(weight), (1, 1), needs_input, with_bias
    )
    return grad_input, None if grad_weight is None else filter.pick(grad_weight), grad_bias
