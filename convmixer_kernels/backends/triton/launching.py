"""Arguments of a launch that all kernels share."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from convmixer_kernels.backends.triton.configurations import COLUMNS, Configuration, Device, Problem

# One multiprocessor keeps the number of programs small in the interpreter, which runs them in turn.
_INTERPRETER = Device(capability=(8, 0), multiprocessors=1)


def device(device: torch.device) -> Device:
    """What configurations depend on; a small made-up GPU for the interpreter."""
    if device.type != "cuda":
        return _INTERPRETER
    return _cuda_device(device.index if device.index is not None else torch.cuda.current_device())


@functools.cache
def _cuda_device(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    return Device((properties.major, properties.minor), properties.multi_processor_count)


def sizes(
    first: Tensor, second: Tensor, problem: Problem, configuration: Configuration
) -> tuple[int, ...]:
    """The run-time sizes of a kernel in the order of its parameters."""
    tiles = math.ceil(problem.width / COLUMNS)
    return (
        problem.images * configuration.bands * tiles,
        problem.channels,
        problem.height,
        configuration.bands,
        configuration.band_rows,
        configuration.programs,
        first.stride(0),
        first.stride(1),
        second.stride(0),
        second.stride(1),
    )


def options(configuration: Configuration) -> dict[str, int]:
    """What Triton itself is told of a launch."""
    chosen = {"num_warps": configuration.num_warps, "num_stages": configuration.num_stages}
    if configuration.registers is not None:
        chosen["maxnreg"] = configuration.registers
    return chosen
