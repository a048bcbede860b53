"""The depthwise convolution and its gradients on the CUDA kernels."""

from __future__ import annotations

from torch import Tensor

from convmixer_kernels import layout
from convmixer_kernels.backends.cuda.device import KERNEL_SIZES, extension_for
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
    extension = extension_for(input)
    output: Tensor | None = extension.forward(input, weight, bias, *dilation, flipped)
    if output is not None:
        return output
    filter = Filter.of(weight, dilation)
    if _is_embedded(input, filter):
        return forward(input, filter.embed(weight), bias, flipped=flipped)
    return extension.forward_large(input, weight, bias, *dilation, flipped)


def input_gradient(
    grad_output: Tensor, weight: Tensor, dilation: tuple[int, int] = (1, 1)
) -> Tensor:
    """Return the gradient of the input of `forward`, laid out like `grad_output`."""
    return forward(grad_output, weight, None, dilation, flipped=True)


def weight_gradient(
    input: Tensor, grad_output: Tensor, filter: Filter, with_bias: bool, may_round: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of `forward` with respect to its weight and, if asked, bias.

    Both are in float32; the former in the dtype of `input` if `may_round`.
    """
    extension = extension_for(input)
    if filter.size in KERNEL_SIZES:
        return extension.weight_gradient(input, grad_output, filter.size, with_bias, may_round)
    if _is_embedded(input, filter):
        grad_weight, grad_bias = extension.weight_gradient(
            input, grad_output, filter.embedding_size, with_bias, may_round
        )
        return filter.pick(grad_weight), grad_bias
    return extension.weight_gradient_large(input, grad_output, *filter, with_bias, may_round)


def _is_embedded(input: Tensor, filter: Filter) -> bool:
    """Tell whether a square kernel serves a filter: in channels_last, where it needs no copies."""
    return filter.embedding_size in KERNEL_SIZES and layout.is_channels_last(input)
