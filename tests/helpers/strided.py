"""Layouts: each takes a contiguous tensor and returns its values with other strides, NaN around."""

from __future__ import annotations

import torch
from torch import Tensor


def channels_last(tensor: Tensor) -> Tensor:
    """Put channels last, in strides too where a dense tensor of one channel would be planar."""
    if tensor.shape[1] == 1:
        return slice_of_pixels(tensor, 1, 0)
    return tensor.to(memory_format=torch.channels_last)


def channels_outermost(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


def columns_first(tensor: Tensor) -> Tensor:
    """Channels last, with the columns outside the rows."""
    return channels_last(tensor.transpose(2, 3)).transpose(2, 3)


def transposed_planes(tensor: Tensor) -> Tensor:
    return tensor.transpose(2, 3).contiguous().transpose(2, 3)


def inside(tensor: Tensor, before: tuple[int, ...], after: tuple[int, ...]) -> Tensor:
    size = [b + s + a for b, s, a in zip(before, tensor.shape, after, strict=True)]
    wide = torch.full(size, torch.nan, dtype=tensor.dtype, device=tensor.device)
    view = wide[tuple(slice(b, b + s) for b, s in zip(before, tensor.shape, strict=True))]
    return view.copy_(tensor)


def slice_of_channels(tensor: Tensor) -> Tensor:
    return inside(tensor, (0, 1, 0, 0), (0, 2, 0, 0))


def slice_of_images(tensor: Tensor) -> Tensor:
    return inside(tensor, (1, 0, 0, 0), (1, 0, 0, 0))


def slice_of_rows_and_columns(tensor: Tensor) -> Tensor:
    return inside(tensor, (0, 0, 1, 2), (0, 0, 2, 1))


def slice_of_channels_last(tensor: Tensor) -> Tensor:
    return inside(tensor.permute(0, 2, 3, 1), (0, 0, 1, 2), (0, 0, 1, 1)).permute(0, 3, 1, 2)


def slice_of_pixels(tensor: Tensor, before: int, after: int) -> Tensor:
    """Channels last, with so many other channels before and after its own in every pixel."""
    pixels = tensor.permute(0, 2, 3, 1)
    return inside(pixels, (0, 0, 0, before), (0, 0, 0, after)).permute(0, 3, 1, 2)


def inner_pixels(tensor: Tensor) -> Tensor:
    """Channels last, with other pixels around each image."""
    return inside(tensor.permute(0, 2, 3, 1), (0, 1, 1, 0), (0, 2, 1, 0)).permute(0, 3, 1, 2)


def every_other_image(tensor: Tensor) -> Tensor:
    wide = torch.full((len(tensor), 2, *tensor.shape[1:]), torch.nan).to(tensor)
    return wide[:, 0].copy_(tensor)


def images_apart(tensor: Tensor) -> Tensor:
    """Channels last, with pixels at uneven distances: images of NaN lie between the others."""
    return every_other_image(tensor.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def every_other_pixel(tensor: Tensor) -> Tensor:
    """Put NaN after every element, for tensors of any number of dimensions."""
    wide = torch.full((*tensor.shape, 2), torch.nan, dtype=tensor.dtype, device=tensor.device)
    return wide[..., 0].copy_(tensor)


def off_by(elements: int, tensor: Tensor) -> Tensor:
    """Keep dense strides, so many elements behind the beginning of the memory."""
    memory = torch.full((tensor.numel() + 2 * elements,), torch.nan).to(tensor)
    return memory.as_strided(tensor.shape, tensor.stride(), elements).copy_(tensor)


def off_by_one_element(tensor: Tensor) -> Tensor:
    return off_by(1, tensor)


def expanded_images(tensor: Tensor) -> Tensor:
    return tensor[:1].expand_as(tensor)


def expanded_everywhere(tensor: Tensor) -> Tensor:
    return tensor[:1, :1, :1, :1].expand_as(tensor)


LAYOUTS = (
    channels_last,
    channels_outermost,
    slice_of_channels,
    slice_of_images,
    slice_of_rows_and_columns,
    slice_of_channels_last,
    every_other_pixel,
    transposed_planes,
    off_by_one_element,
    expanded_images,
)
"""The layouts that the tests of every Triton kernel go through."""
