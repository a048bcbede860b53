"""The place where CUDA kernels run: a GPU or an emulated one, its extension, stream and chip."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from types import ModuleType
from typing import cast

import torch
from torch import Tensor

from convmixer_kernels import architectures, build_information, devices, emulated_gpu
from convmixer_kernels.filters import Filter

# Square filters with kernels of their own, which the fused operations have as well. One kernel
# serves all others whose taps reach over at most this many rows and columns.
KERNEL_SIZES = (3, 5, 7, 8, 9, 11, 13, 15)
MOST_EXTENT = 31
_TYPES = {torch.float16: 0, torch.bfloat16: 1}
# The emulated GPU is small, so that tests have several items for a warp, with the shared memory
# of sm_90.
EMULATED_CHIP = architectures.Chip(
    multiprocessors=1, shared_bytes=architectures.find((9, 0)).shared_bytes, capability=90
)

# The types of `LaunchContext` and of a tensor in csrc/bindings.cpp.
LaunchContext = tuple[int, int, int, int, int, int]
Located = tuple[int, tuple[int, ...]]


def unavailable(device: torch.device) -> str | None:
    """Say why these kernels cannot run for tensors on `device`, None if they can."""
    if device.type == "cpu":
        if os.environ.get("CONVMIXER_KERNELS_EMULATE") != "1":
            return (
                "it takes CUDA tensors; set CONVMIXER_KERNELS_EMULATE=1 to run its kernels "
                "on CPU tensors, emulated"
            )
        emulated = _emulated()
        return emulated if isinstance(emulated, str) else None
    if device.type != "cuda":
        return f"it takes CUDA tensors, not tensors on {device}"
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    if reason := devices.too_old(device):
        return reason
    extension = _extension()
    return extension if isinstance(extension, str) else _refusal(devices.index_of(device))


def unsupported(
    device: torch.device, dtype: torch.dtype, filter: Filter | None, fused: bool
) -> str | None:
    """Say why these kernels cannot take this dtype or filter, None if they can."""
    if dtype not in _TYPES:
        return f"it takes float16 and bfloat16, not {dtype}; cast or use impl='torch'"
    if filter is not None and (reason := unsupported_filter(filter, fused)):
        return f"{reason}; use impl='torch'"
    return None


def unsupported_filter(filter: Filter, fused: bool = False) -> str | None:
    """Say why there is no kernel for a filter, None if there is."""
    return filter.unserved(fused, KERNEL_SIZES, MOST_EXTENT)


def launcher(tensor: Tensor, dtype: torch.dtype | None = None) -> tuple[ModuleType, LaunchContext]:
    """Return the module that launches kernels for `tensor`, and where and on what they run.

    They run on PyTorch's current stream.

    Args:
        dtype: that of the kernel, if it is not the dtype of `tensor`.
    """
    index = tensor.get_device()
    kind = _TYPES[dtype or tensor.dtype]
    # dispatch has asked unavailable(), so there is a module.
    if index < 0:
        return cast(ModuleType, _emulated()), (-1, 0, kind, *EMULATED_CHIP)
    # The public way to the stream makes an object of it, for several microseconds.
    stream = torch._C._cuda_getCurrentRawStream(index)
    return cast(ModuleType, _extension()), (index, stream, kind, *_chip(index))


def current(context: LaunchContext) -> contextlib.AbstractContextManager[object]:
    """Make the device of `context` PyTorch's current one, for a launch.

    An emulated GPU lets kernels access the tensors whose addresses are taken meanwhile, no others.
    """
    if context[0] < 0:
        return _ALREADY if emulated_gpu.skips_kernels else emulated_gpu.launching()
    return _ALREADY if torch._C._cuda_getDevice() == context[0] else torch.cuda.device(context[0])


_ALREADY = contextlib.nullcontext()


def located(tensor: Tensor, strides: tuple[int, ...], written: bool = False) -> Located:
    """Return the address of a tensor that kernels read, or write as well, with its strides."""
    if emulated_gpu.is_launching:
        emulated_gpu.permit(tensor, written)
    return tensor.data_ptr(), strides


def address(tensor: Tensor | None, written: bool = False) -> int:
    """Return the address of a tensor that kernels read, or write as well; 0 for None."""
    if tensor is None:
        return 0
    if emulated_gpu.is_launching:
        emulated_gpu.permit(tensor, written)
    return tensor.data_ptr()


@functools.cache
def _extension() -> ModuleType | str:
    """Import the compiled extension, or say why there is none."""
    if reason := build_information.cuda_missing_reason():
        return reason
    try:
        return importlib.import_module("convmixer_kernels._cuda")
    except ImportError as error:
        return f"the CUDA extension does not load ({error}); reinstall the package"


@functools.cache
def _emulated() -> ModuleType | str:
    try:
        return emulated_gpu.extension()
    except (ImportError, RuntimeError, FileNotFoundError) as error:
        return f"the emulated GPU cannot be built ({error})"


@functools.cache
def _refusal(index: int) -> str | None:
    """Say why this GPU or its driver does not take the extension, which others may."""
    error = importlib.import_module("convmixer_kernels._cuda").refusal(index)
    if not error:
        return None
    return (
        f"cuda:{index} does not take the CUDA extension ({error}), which was "
        f"{build_information.summary()}; build it on this machine: pip install -e ."
    )


@functools.cache
def _chip(index: int) -> architectures.Chip:
    major, minor = devices.capability(index)
    return architectures.Chip(
        devices.multiprocessors(index),
        architectures.find((major, minor)).shared_bytes,
        10 * major + minor,
    )
