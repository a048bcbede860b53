"""Properties of CUDA devices that the choice of kernels asks for, remembered by index."""

from __future__ import annotations

import functools

import torch


def index_of(device: torch.device) -> int:
    """Return the index of a CUDA device; "cuda" without one is the current device."""
    return torch.cuda.current_device() if device.index is None else device.index


@functools.cache
def capability(index: int) -> tuple[int, int]:
    """Return the compute capability, major and minor."""
    return torch.cuda.get_device_capability(index)


@functools.cache
def multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count
