"""Copies of images for kernels that read another layout.

Between channels_last and planes a kernel of this package copies: PyTorch's reaches a seventh of the
copy bandwidth of an H200 there. From any other strides PyTorch copies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convmixer_kernels import layout
from convmixer_kernels.backends.cuda.device import current, launcher, located


def planar(tensor: Tensor) -> Tensor:
    """Return `tensor` itself if it is planar, otherwise a contiguous copy."""
    return tensor if layout.is_planar(tensor) else contiguous(tensor, torch.contiguous_format)


def arranged(grad: Tensor, channels_last: bool) -> Tensor:
    """Return what `layout.arranged` does."""
    if layout.is_arranged(grad, channels_last):
        return grad
    return contiguous(grad, torch.channels_last if channels_last else torch.contiguous_format)


def contiguous(tensor: Tensor, format: torch.memory_format) -> Tensor:
    """Return what `Tensor.contiguous` does: an image in a dense layout, copied if need be."""
    if tensor.is_contiguous(memory_format=format):
        return tensor
    return copy(tensor, torch.empty_like(tensor, memory_format=format))


def copy(source: Tensor, target: Tensor) -> Tensor:
    """Copy an image (N, C, H, W) into another of its shape and dtype, and return this one.

    Args:
        source: float16 or bfloat16, any strides.
        target: no two elements share memory.
    """
    to_planes = layout.is_channels_last(source) and layout.is_planar(target)
    if not to_planes and not (layout.is_planar(source) and layout.is_channels_last(target)):
        return target.copy_(source)
    if source.numel() == 0:
        return target
    pixels, planes = (source, target) if to_planes else (target, source)
    image, _, row, pixel = pixels.stride()
    kernels, context = launcher(source)
    with current(context):
        kernels.copy_layout(
            context,
            tuple(source.shape),
            to_planes,
            located(pixels, (image, row, pixel), written=not to_planes),
            located(planes, planes.stride()[:2], written=to_planes),
        )
    return target
