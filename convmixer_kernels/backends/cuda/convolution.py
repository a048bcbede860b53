"""The depthwise convolution and its gradients on the CUDA kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from convmixer_kernels import layout
from convmixer_kernels.backends.cuda.device import (
    address,
    current,
    located,
    module,
    place,
)

# The dimensions whose strides the kernels take; the others are adjacent.
PLANE_STRIDES: tuple[int, ...] = (0, 1)
PIXEL_STRIDES: tuple[int, ...] = (0, 2, 3)


def forward(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _convolve(input, weight, bias, flipped=False)


def input_gradient(grad_output: Tensor, weight: Tensor) -> Tensor:
    return _convolve(grad_output, weight, None, flipped=True)


def weight_gradient(
    input: Tensor, grad_output: Tensor, kernel_size: int, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    channels = input.shape[1]
    grad_weight = input.new_empty((channels, 1, kernel_size, kernel_size), dtype=torch.float32)
    grad_bias = grad_weight.new_empty(channels) if with_bias else None
    if len(input) == 0:
        return grad_weight.zero_(), None if grad_bias is None else grad_bias.zero_()
    channels_last = layout.is_channels_last(input)
    arranged = adjacent_channels if channels_last else layout.planar
    input, grad_output = arranged(input), arranged(grad_output)
    sizes, where, kernels = tuple(input.shape), place(input), module(input.device)
    if channels_last:
        run, strides = kernels.weight_gradient_channels_last, PIXEL_STRIDES
        shares = kernels.weight_gradient_shares_channels_last(where, sizes, kernel_size)
    else:
        run, strides = kernels.weight_gradient, PLANE_STRIDES
        shares = kernels.weight_gradient_shares(where, sizes, kernel_size)
    per_share = channels * (kernel_size * kernel_size + 1)
    workspace = grad_weight.new_empty(shares * per_share if shares > 1 else 0)
    with current(where):
        run(
            where,
            sizes,
            kernel_size,
            located(input, *strides),
            located(grad_output, *strides),
            address(grad_weight, written=True),
            address(grad_bias, written=True),
            address(workspace, written=True),
        )
    return grad_weight, grad_bias


def _convolve(input: Tensor, weight: Tensor, bias: Tensor | None, flipped: bool) -> Tensor:
    output = layout.empty_like_input(input)
    if input.numel() == 0:
        return output
    channels_last = layout.is_channels_last(input)
    source = input if channels_last else layout.planar(input)
    weight = weight.contiguous()
    if bias is not None:
        bias = bias.to(torch.float32).contiguous()
    where, kernels = place(source), module(source.device)
    run = kernels.forward_channels_last if channels_last else kernels.forward
    strides = PIXEL_STRIDES if channels_last else PLANE_STRIDES
    with current(where):
        run(
            where,
            tuple(source.shape),
            weight.shape[-1],
            flipped,
            located(source, *strides),
            address(weight),
            address(bias),
            located(output, *strides, written=True),
        )
    return output


def adjacent_channels(tensor: Tensor) -> Tensor:
    """`tensor` itself if the channels of a pixel are adjacent, otherwise a channels-last copy."""
    adjacent = tensor.stride(1) == 1 or tensor.shape[1] == 1
    return tensor if adjacent else tensor.contiguous(memory_format=torch.channels_last)
