"""Arguments of a launch that all kernels share."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from convmixer_kernels import devices
from convmixer_kernels.backends.triton.configurations import Configuration
from convmixer_kernels.backends.triton.problem import COLUMNS, Device, Problem

# One multiprocessor keeps the number of programs small in the interpreter, which runs them in turn.
_INTERPRETER = Device(capability=(8, 0), multiprocessors=1)


def device(device: torch.device) -> Device:
    """What configurations depend on; a small made-up GPU for the interpreter."""
    if device.type != "cuda":
        return _INTERPRETER
    return _cuda_device(devices.index_of(device))


@functools.cache
def _cuda_device(index: int) -> Device:
    return Device(devices.capability(index), devices.multiprocessors(index))


def run_time_sizes(*tensors: str) -> tuple[str, ...]:
    """The parameters that a kernel is compiled once for, whatever their values.

    The width and the strides within a plane are constants instead: that saves an addition for every
    address in the main loop.
    """
    names = ["strips", "channels", "height", "bands", "band_rows", "programs"]
    for tensor in tensors:
        names += [f"{tensor}_image_stride", f"{tensor}_channel_stride"]
    return tuple(names)


def sizes(
    tensors: tuple[Tensor | None, ...], problem: Problem, configuration: Configuration
) -> tuple[int, ...]:
    """The values of `run_time_sizes`, with strides of 0 for a tensor that is left out."""
    tiles = math.ceil(problem.width / COLUMNS)
    values = [
        problem.images * configuration.bands * tiles,
        problem.channels,
        problem.height,
        configuration.bands,
        configuration.band_rows,
        configuration.programs,
    ]
    for tensor in tensors:
        values += (0, 0) if tensor is None else tensor.stride()[:2]
    return tuple(values)


def constants(
    tensors: tuple[str, ...], problem: Problem, configuration: Configuration
) -> dict[str, int | bool | str]:
    """What kernels are compiled for, besides types and alignment of their arguments."""
    values: dict[str, int | bool | str] = {
        "WIDTH": problem.width,
        "KERNEL_SIZE": problem.kernel_size,
        "STRIPS": configuration.strips,
        "COLUMNS": COLUMNS,
        "BANDED": configuration.banded,
    }
    for number, tensor in enumerate(tensors):
        present = number < len(problem.row_strides)
        values[f"{tensor}_ROW_STRIDE"] = problem.row_strides[number] if present else 0
        values[f"{tensor}_PIXEL_STRIDE"] = problem.pixel_strides[number] if present else 0
    if problem.tensor_cores:
        values |= {
            "OFFSET": problem.offset,
            "WINDOW": problem.window,
            "ROWS": configuration.rows,
            "STAGES": configuration.num_stages,
            "MASK_ROWS": configuration.mask_rows,
        }
        if configuration.channels > 1:
            values["CHANNELS"] = configuration.channels
        else:
            values["ALIGNMENT"] = problem.alignment
    return values


def options(configuration: Configuration) -> dict[str, int]:
    """What Triton itself is told of a launch."""
    chosen = {"num_warps": configuration.num_warps, "num_stages": configuration.num_stages}
    if configuration.registers is not None:
        chosen["maxnreg"] = configuration.registers
    return chosen
