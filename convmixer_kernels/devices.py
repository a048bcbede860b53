"""Properties of CUDA devices that the choice of kernels asks for, remembered by index."""

from __future__ import annotations

import functools

import torch

from convmixer_kernels.architectures import LEAST_CAPABILITY


def index_of(device: torch.device) -> int:
    """Return the index of a CUDA device; "cuda" without one is the current device."""
    return torch.cuda.current_device() if device.index is None else device.index


@functools.cache
def capability(index: int) -> tuple[int, int]:
    """Return the compute capability, major and minor."""
    return torch.cuda.get_device_capability(index)


def too_old(device: torch.device) -> str | None:
    """Say in a line that no kernel runs on a CUDA device because of its age, None if some do."""
    major, minor = capability(index_of(device))
    if (major, minor) >= LEAST_CAPABILITY:
        return None
    return f"it needs compute capability 8.0 or newer; {device} has {major}.{minor}"


@functools.cache
def multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count
