"""The depthwise convolution and its gradients on the CUDA kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from convmixer_kernels import activations
from convmixer_kernels.backends.cuda import layouts
from convmixer_kernels.backends.cuda.device import (
    KERNEL_SIZES,
    address,
    current,
    launcher,
    located,
)
from convmixer_kernels.filters import Filter
from convmixer_kernels.layout import ImageLayout
from convmixer_kernels.operands import Epilogue

# The numbers of the activations in csrc/arguments.h.
ACTIVATIONS = {name: number for number, name in enumerate(activations.ACTIVATIONS)}


def free_strides(strides: tuple[int, ...], channels_last: bool) -> tuple[int, ...]:
    """Return the strides that kernels take; elements along the other dimensions are adjacent.

    They are those of images and channels, or in channels_last those of images, rows and pixels.
    """
    return (strides[0], strides[2], strides[3]) if channels_last else strides[:2]


def forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: tuple[int, int] = (1, 1),
    *,
    flipped: bool = False,
    epilogue: Epilogue | None = None,
    addend: Tensor | None = None,
) -> Tensor:
    """Convolve (N, C, H, W) with (C, 1, h, w), add (C,), and do in one pass what follows.

    Args:
        flipped: whether the filters are turned by half a turn, as the input gradient asks for.
        epilogue: what follows in the same kernel; as `addend`, with square filters of
            `KERNEL_SIZES` alone.
        addend: added to a convolution without an epilogue; any strides.

    Returns:
        (N, C, H, W), laid out like `input`.
    """
    _, _, height, size = weight.shape
    if height != size or size not in KERNEL_SIZES or dilation != (1, 1):
        return _convolve_any(input, weight, bias, dilation, flipped)
    image = ImageLayout.of(input)
    output = image.empty(input)
    if 0 in image.shape:
        return output
    kernels, context = launcher(input)
    last = image.is_channels_last
    if last:
        plain, fused = kernels.forward_channels_last, kernels.fused_forward_channels_last
    else:
        plain, fused = kernels.forward, kernels.fused_forward
        if not image.is_planar:
            input = input.contiguous()
            image = ImageLayout.of(input)
    weight = weight.contiguous()
    if bias is not None:
        bias = precise(bias)
    if addend is not None and addend.stride() != image.output_strides:
        addend = layouts.copy(addend, torch.empty_like(output))
    with current(context):
        arguments = (
            context,
            image.shape,
            size,
            flipped,
            located(input, free_strides(image.strides, last)),
            address(weight),
            address(bias),
            located(output, free_strides(image.output_strides, last), written=True),
        )
        if epilogue is not None:
            table, activation, residual = epilogue
            fused(*arguments, address(table), ACTIVATIONS[activation], residual, address(addend))
        elif addend is not None:
            fused(*arguments, 0, ACTIVATIONS["identity"], False, address(addend))
        else:
            plain(*arguments)
    return output


def input_gradient(
    grad_output: Tensor, weight: Tensor, dilation: tuple[int, int] = (1, 1)
) -> Tensor:
    """Return the gradient of the input of `forward`, laid out like `grad_output`."""
    return forward(grad_output, weight, None, dilation, flipped=True)


def weight_gradient(
    input: Tensor, grad_output: Tensor, filter: Filter, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the float32 gradients of `forward` with respect to its weight and, if asked, bias."""
    kernel_size = filter.size
    if kernel_size not in KERNEL_SIZES:
        return _weight_gradient_of_any(input, grad_output, filter, with_bias)
    image = ImageLayout.of(input)
    images, channels, _, _ = image.shape
    grad_weight = input.new_empty((channels, 1, kernel_size, kernel_size), dtype=torch.float32)
    grad_bias = grad_weight.new_empty(channels) if with_bias else None
    if images == 0:
        return grad_weight.zero_(), None if grad_bias is None else grad_bias.zero_()
    kernels, context = launcher(input)
    last = image.is_channels_last
    if last:
        grad_output = adjacent_channels(grad_output)
        run = kernels.weight_gradient_channels_last
        count_splits = kernels.weight_gradient_splits_channels_last
    else:
        input, grad_output = layouts.planar(input), layouts.planar(grad_output)
        run, count_splits = kernels.weight_gradient, kernels.weight_gradient_splits
    splits = count_splits(context, image.shape, kernel_size)
    workspace = None
    if splits > 1:
        workspace = grad_weight.new_empty(splits * channels * (kernel_size * kernel_size + 1))
    with current(context):
        run(
            context,
            image.shape,
            kernel_size,
            located(input, free_strides(input.stride(), last)),
            located(grad_output, free_strides(grad_output.stride(), last)),
            address(grad_weight, written=True),
            address(grad_bias, written=True),
            address(workspace, written=True),
        )
    return grad_weight, grad_bias


# ---- any other filter ----------------------------------------------------------------------------


def _convolve_any(
    input: Tensor, weight: Tensor, bias: Tensor | None, dilation: tuple[int, int], flipped: bool
) -> Tensor:
    filter = Filter.of(weight, dilation)
    if _is_embedded(input, filter):
        return forward(input, filter.embed(weight), bias, flipped=flipped)
    image = ImageLayout.of(input)
    output = image.empty(input)
    if 0 in image.shape:
        return output
    # The kernel reads and writes planes; channels_last takes a copy there and one back.
    source = layouts.planar(input)
    target = torch.empty_like(source) if image.is_channels_last else output
    weight = weight.contiguous()
    if bias is not None:
        bias = precise(bias)
    kernels, context = launcher(source)
    with current(context):
        kernels.forward_large(
            context,
            image.shape,
            filter,
            flipped,
            located(source, source.stride()[:2]),
            address(weight),
            address(bias),
            located(target, target.stride()[:2], written=True),
        )
    return output if target is output else layouts.copy(target, output)


def _weight_gradient_of_any(
    input: Tensor, grad_output: Tensor, filter: Filter, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    if _is_embedded(input, filter):
        square = Filter(filter.embedding_size, filter.embedding_size)
        grad_weight, grad_bias = weight_gradient(input, grad_output, square, with_bias)
        return filter.pick(grad_weight), grad_bias
    sizes = tuple(input.shape)
    channels = sizes[1]
    grad_weight = input.new_empty((channels, 1, *filter.shape), dtype=torch.float32)
    grad_bias = grad_weight.new_empty(channels) if with_bias else None
    if sizes[0] == 0:
        return grad_weight.zero_(), None if grad_bias is None else grad_bias.zero_()
    kernels, context = launcher(input)
    input, grad_output = layouts.planar(input), layouts.planar(grad_output)
    splits = kernels.weight_gradient_large_splits(context, sizes, filter)
    workspace = None
    if splits > 1:
        workspace = grad_weight.new_empty(splits * channels * (filter.taps + 1))
    with current(context):
        kernels.weight_gradient_large(
            context,
            sizes,
            filter,
            located(input, input.stride()[:2]),
            located(grad_output, grad_output.stride()[:2]),
            address(grad_weight, written=True),
            address(grad_bias, written=True),
            address(workspace, written=True),
        )
    return grad_weight, grad_bias


def _is_embedded(input: Tensor, filter: Filter) -> bool:
    """Tell whether a square kernel serves a filter: in channels_last, where it needs no copies."""
    channels_last = ImageLayout.of(input).is_channels_last
    return channels_last and filter.embedding_size in KERNEL_SIZES


def precise(tensor: Tensor) -> Tensor:
    """Return a tensor of a value for each channel as kernels read it: contiguous, in float32."""
    if tensor.dtype is torch.float32 and tensor.is_contiguous():
        return tensor
    return tensor.to(torch.float32).contiguous()


def adjacent_channels(tensor: Tensor) -> Tensor:
    """Return `tensor` itself if the channels of a pixel are adjacent, else a channels_last copy."""
    adjacent = tensor.stride(1) == 1 or tensor.shape[1] == 1
    return tensor if adjacent else layouts.contiguous(tensor, torch.channels_last)
