"""Copies of numbers that the processor has drawn to the device that applies them."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def uploaded(numbers: NDArray[Any], device: torch.device) -> Tensor:
    """Return numbers on a device; the processor does not wait until a GPU has them."""
    tensor = torch.from_numpy(numbers)
    if device.type == "cuda":
        # A copy from memory that is not pinned waits for all that the GPU has to do before it.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
