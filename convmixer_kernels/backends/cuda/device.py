"""The place where CUDA kernels run: a GPU or an emulated one, its extension and its chip."""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor

from convmixer_kernels import (
    architectures,
    build_information,
    devices,
    emulated_gpu,
)
from convmixer_kernels.filters import Filter

# Square filters with kernels of their own, which the fused operations have as well. One kernel
# serves all others whose taps reach over at most this many rows and columns.
KERNEL_SIZES = (3, 5, 7, 8, 9, 11, 13, 15)
MOST_EXTENT = 31
DTYPES = (torch.float16, torch.bfloat16)
# The emulated GPU is small, so that tests have several items for a warp, with the shared memory
# of sm_90.
EMULATED_CHIP = architectures.Chip(
    multiprocessors=1, shared_bytes=architectures.find((9, 0)).shared_bytes, capability=90
)


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
    if dtype not in DTYPES:
        return f"it takes float16 and bfloat16, not {dtype}; cast or use impl='torch'"
    if filter is not None and (reason := unsupported_filter(filter, fused)):
        return f"{reason}; use impl='torch'"
    return None


def unsupported_filter(filter: Filter, fused: bool = False) -> str | None:
    """Say why there is no kernel for a filter, None if there is."""
    return filter.unserved(fused, KERNEL_SIZES, MOST_EXTENT)


def extension_for(tensor: Tensor) -> ModuleType:
    """Return the extension that launches kernels for `tensor`; dispatch has asked `unavailable`."""
    index = tensor.get_device()
    if index >= 0:
        return _extension_of(index)
    emulated = _emulated_with(EMULATED_CHIP)
    return emulated if emulated_gpu.skips_kernels else cast(ModuleType, _Emulated(emulated))


@functools.cache
def _extension_of(index: int) -> ModuleType:
    extension = cast(ModuleType, _extension())
    major, minor = devices.capability(index)
    shared_bytes = architectures.find((major, minor)).shared_bytes
    extension.set_chip(index, devices.multiprocessors(index), shared_bytes, 10 * major + minor)
    return extension


# One entry, so that it is the chip that the extension was told of last.
@functools.lru_cache(maxsize=1)
def _emulated_with(chip: architectures.Chip) -> ModuleType:
    extension = cast(ModuleType, _emulated())
    extension.set_chip(-1, *chip)
    return extension


class _Emulated:
    """The extension on the emulated GPU, which lets kernels access the tensors of a call alone."""

    def __init__(self, extension: ModuleType) -> None:
        self._extension = extension

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._extension, name)

        def call(*arguments: object) -> Any:
            with emulated_gpu.launching():
                return function(*arguments)

        return call


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
