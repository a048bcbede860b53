"""The launch context: those properties of the GPU on which the choice of tile sizes depends."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from convmixer_kernels import architectures, devices


@dataclass(frozen=True)
class LaunchContext:
    """The chip that a kernel is launched on.

    Args:
        capability: compute capability, major and minor.
    """

    capability: tuple[int, int]
    multiprocessors: int

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a multiprocessor.

        It is 1 KB more than a block may have: every block takes so much for itself.
        """
        return architectures.find(self.capability).shared_bytes + 1024


# One multiprocessor keeps the number of programs small in the interpreter, which runs them in turn.
INTERPRETER = LaunchContext(capability=(8, 0), multiprocessors=1)


def launch_context(device: torch.device) -> LaunchContext:
    """Describe the GPU of a device, or a small made-up one for the interpreter."""
    if device.type != "cuda":
        return INTERPRETER
    return _of_gpu(devices.index_of(device))


@functools.cache
def _of_gpu(index: int) -> LaunchContext:
    return LaunchContext(devices.capability(index), devices.multiprocessors(index))
