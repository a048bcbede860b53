"""The memory layouts that kernels read in place, and those of what operations return."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def is_planar(tensor: Tensor) -> bool:
    """Tell whether every H x W plane is contiguous; image and channel strides are free.

    True for contiguous tensors, for CNHW (a logical NCHW tensor whose channels are outermost), for
    slices of images or channels of either, and for images expanded with stride 0.
    """
    return _has_planes(tensor.shape, tensor.stride())


def is_channels_last(tensor: Tensor) -> bool:
    """Tell whether the channels of a pixel are adjacent (and the tensor is not planar as well)."""
    strides = tensor.stride()
    return strides[1] == 1 and not _has_planes(tensor.shape, strides)


def is_channels_outermost(tensor: Tensor) -> bool:
    """Tell whether images lie within channels: CNHW, dense or not."""
    images, channels, _, _ = tensor.shape
    image, channel, _, _ = tensor.stride()
    return images > 1 and channels > 1 and 0 < image < channel and is_planar(tensor)


def planar(tensor: Tensor) -> Tensor:
    """Return `tensor` itself if it is planar, otherwise a contiguous copy."""
    return tensor if is_planar(tensor) else tensor.contiguous()


def arranged(grad: Tensor, channels_last: bool) -> Tensor:
    """Return `grad` as kernels read it beside an image, copied once for all of them if need be.

    Args:
        grad: (N, C, H, W), any strides.
        channels_last: whether the image is channels_last, or else planar.
    """
    if is_arranged(grad, channels_last):
        return grad
    format = torch.channels_last if channels_last else torch.contiguous_format
    return grad.contiguous(memory_format=format)


def is_arranged(grad: Tensor, channels_last: bool) -> bool:
    """Tell whether kernels read `grad` as it is beside an image, arguments as `arranged`."""
    strides = grad.stride()
    if not channels_last:
        return _has_planes(grad.shape, strides)
    return strides[1] == 1 and 0 not in strides


def empty_like_input(tensor: Tensor) -> Tensor:
    """Return an uninitialised dense tensor of the layout that an operation gives its output.

    Planar tensors keep their order of images and channels, channels_last stays channels_last, and
    anything else becomes contiguous. The kernels and the fake implementations of the operators both
    use it, so that strides seen while tracing are those seen when running. The result is no view of
    another tensor: PyTorch refuses to change views that were made without gradients in place.
    """
    shape = tensor.shape
    return tensor.new_empty_strided(shape, _output_strides(shape, tensor.stride()))


def _has_planes(shape: Sequence[int], strides: Sequence[int]) -> bool:
    _, _, height, width = shape
    _, _, row, pixel = strides
    return (width == 1 or pixel == 1) and (height == 1 or row == width)


def _output_strides(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    images, channels, height, width = shape
    image, channel, _, _ = strides
    plane = height * width
    if _has_planes(shape, strides):
        if images > 1 and channels > 1 and 0 < image < channel:
            return plane, images * plane, width, 1
    elif channel == 1:
        return channels * plane, 1, channels * width, channels
    return channels * plane, plane, width, 1


def parameter_gradient(grad: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Return a gradient with the strides in which `torch.autograd` keeps that of a leaf.

    DistributedDataParallel expects the same ones.

    Args:
        grad: of the shape of the parameter, contiguous or with its strides.
        strides: those of the parameter. If it is dense, its gradient has the same ones, along
            dimensions of size 1 as well; that of any other is contiguous.
    """
    if grad.stride() == strides or not _is_dense(grad.shape, strides):
        return grad
    return grad.new_empty_strided(grad.shape, strides).copy_(grad)


def _is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Tell whether elements fill a stretch of memory, each place once, in any order."""
    expected = 1
    pairs = zip(strides, shape, strict=True)
    for stride, size in sorted(pair for pair in pairs if pair[1] != 1):
        if stride != expected:
            return False
        expected *= size
    return True
