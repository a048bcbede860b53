"""Layouts: each takes a contiguous tensor and returns its values with other strides, NaN around."""

from __future__ import annotations

import torch
from torch import Tensor


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.to(memory_format=torch.channels_last)


def channels_outermost(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


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


def every_other_pixel(tensor: Tensor) -> Tensor:
    wide = torch.full((*tensor.shape, 2), torch.nan, dtype=tensor.dtype, device=tensor.device)
    return wide[..., 0].copy_(tensor)


def transposed_planes(tensor: Tensor) -> Tensor:
    return tensor.transpose(2, 3).contiguous().transpose(2, 3)


def off_by_one_element(tensor: Tensor) -> Tensor:
    return inside(tensor.flatten(), (1,), (1,)).view(tensor.shape)


def expanded_images(tensor: Tensor) -> Tensor:
    return tensor[:1].expand_as(tensor)


def expanded_everywhere(tensor: Tensor) -> Tensor:
    return tensor[:1, :1, :1, :1].expand_as(tensor)
