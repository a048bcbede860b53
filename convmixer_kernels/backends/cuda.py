"""Hand-written CUDA kernels: tensor cores, implicit padding, sums in float32.

The extension takes raw addresses, so that it is built without PyTorch; here lie the checks that
this leaves to Python, the current device and stream, and the outputs. With
CONVMIXER_KERNELS_EMULATE=1 the same sources, built with the host compiler, take CPU tensors (for
tests: thousands of times slower).
"""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType

import torch
from torch import Tensor

from convmixer_kernels import build_information, emulation_build, layout

KERNEL_SIZES = (3, 5, 7, 8, 9, 11, 13, 15)
_TYPES = {torch.float16: 0, torch.bfloat16: 1}
# The dimensions whose strides the kernels take; the others are adjacent.
_PLANE_STRIDES: tuple[int, ...] = (0, 1)
_PIXEL_STRIDES: tuple[int, ...] = (0, 2, 3)
_LEAST_CAPABILITY = (8, 0)
# What a multiprocessor count does in the emulation: a few shares of the work even for tests.
_EMULATED_MULTIPROCESSORS = 1


def _emulating() -> bool:
    return os.environ.get("CONVMIXER_KERNELS_EMULATE") == "1"


@functools.cache
def _extension() -> ModuleType | str:
    """The compiled extension, or the reason why there is none."""
    if reason := build_information.cuda_missing_reason():
        return reason
    try:
        return importlib.import_module("convmixer_kernels._cuda")
    except ImportError as error:
        return f"the CUDA extension does not load ({error}); reinstall the package"


@functools.cache
def _emulated() -> ModuleType | str:
    try:
        return emulation_build.import_emulated()
    except (ImportError, RuntimeError, FileNotFoundError) as error:
        return f"the emulation cannot be built ({error})"


@functools.cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


@functools.cache
def _multiprocessors(index: int) -> int:
    count: int = torch.cuda.get_device_properties(index).multi_processor_count
    return count


def unavailable(device: torch.device) -> str | None:
    if device.type == "cpu":
        if not _emulating():
            return (
                "it takes CUDA tensors; set CONVMIXER_KERNELS_EMULATE=1 to run its kernels "
                "emulated on CPU tensors"
            )
        emulated = _emulated()
        return emulated if isinstance(emulated, str) else None
    if device.type != "cuda":
        return f"it takes CUDA tensors, not tensors on {device}"
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    capability = _capability(_index(device))
    if capability < _LEAST_CAPABILITY:
        major, minor = capability
        return f"it needs compute capability 8.0 or newer; {device} has {major}.{minor}"
    extension = _extension()
    return extension if isinstance(extension, str) else None


def unsupported(device: torch.device, dtype: torch.dtype, kernel_size: int | None) -> str | None:
    if dtype not in _TYPES:
        return f"it takes float16 and bfloat16, not {dtype}; cast or use impl='torch'"
    if kernel_size is not None and kernel_size not in KERNEL_SIZES:
        sizes = ", ".join(str(size) for size in KERNEL_SIZES)
        return f"it takes kernel sizes {sizes}, not {kernel_size}; use impl='torch'"
    return None


def forward(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _convolve(input, weight, bias, flipped=False)


def input_gradient(grad_output: Tensor, weight: Tensor) -> Tensor:
    return _convolve(grad_output, weight, None, flipped=True)


def weight_gradient(
    input: Tensor, grad_output: Tensor, kernel_size: int, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    images, channels, height, width = input.shape
    grad_weight = input.new_empty((channels, 1, kernel_size, kernel_size), dtype=torch.float32)
    grad_bias = grad_weight.new_empty(channels) if with_bias else None
    if images == 0:
        return grad_weight.zero_(), None if grad_bias is None else grad_bias.zero_()
    channels_last = layout.is_channels_last(input)
    arranged = _channels_last if channels_last else layout.planar
    input, grad_output = arranged(input), arranged(grad_output)
    device, stream, multiprocessors = _place(input.device)
    module = _module(input.device)
    if channels_last:
        run, free_strides = module.weight_gradient_channels_last, _PIXEL_STRIDES
        shares = module.weight_gradient_shares_channels_last(
            images, channels, height, width, kernel_size, multiprocessors
        )
    else:
        run, free_strides = module.weight_gradient, _PLANE_STRIDES
        shares = module.weight_gradient_shares(images, channels, height, width, multiprocessors)
    per_share = channels * (kernel_size * kernel_size + 1)
    workspace = grad_weight.new_empty(shares * per_share if shares > 1 else 0)
    with torch.cuda.device(device):
        run(
            device,
            stream,
            _TYPES[input.dtype],
            input.data_ptr(),
            grad_output.data_ptr(),
            grad_weight.data_ptr(),
            0 if grad_bias is None else grad_bias.data_ptr(),
            workspace.data_ptr(),
            images,
            channels,
            height,
            width,
            kernel_size,
            *map(input.stride, free_strides),
            *map(grad_output.stride, free_strides),
            multiprocessors,
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
    images, channels, height, width = source.shape
    device, stream, multiprocessors = _place(source.device)
    module = _module(source.device)
    run = module.forward_channels_last if channels_last else module.forward
    free_strides = _PIXEL_STRIDES if channels_last else _PLANE_STRIDES
    with torch.cuda.device(device):
        run(
            device,
            stream,
            _TYPES[source.dtype],
            source.data_ptr(),
            weight.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            output.data_ptr(),
            images,
            channels,
            height,
            width,
            weight.shape[-1],
            flipped,
            *map(source.stride, free_strides),
            *map(output.stride, free_strides),
            multiprocessors,
        )
    return output


def _channels_last(tensor: Tensor) -> Tensor:
    """`tensor` itself if the channels of a pixel are adjacent, otherwise a channels-last copy."""
    adjacent = tensor.stride(1) == 1 or tensor.shape[1] == 1
    return tensor if adjacent else tensor.contiguous(memory_format=torch.channels_last)


def _module(device: torch.device) -> ModuleType:
    module = _extension() if device.type == "cuda" else _emulated()
    assert isinstance(module, ModuleType)  # dispatch has asked unavailable()
    return module


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _place(device: torch.device) -> tuple[int, int, int]:
    """Device index, current stream and multiprocessors; -1 makes torch.cuda.device do nothing."""
    if device.type == "cpu":
        return -1, 0, _EMULATED_MULTIPROCESSORS
    index = _index(device)
    return index, torch.cuda.current_stream(device).cuda_stream, _multiprocessors(index)
