"""GPU architectures, and their properties that the choice of kernels depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Chip(NamedTuple):
    """One GPU as the CUDA planner (`csrc/host/plan.h`) knows it.

    Args:
        multiprocessors: how many blocks of threads run at a time, at least.
        shared_bytes: the most dynamic shared memory that a block may have.
        capability: ten times the compute capability, such as 90.
    """

    multiprocessors: int
    shared_bytes: int
    capability: int


@dataclass(frozen=True)
class Architecture:
    """A compute capability, with the properties that the choice of kernels depends on.

    Args:
        name: as nvcc writes it.
        capability: compute capability, major and minor.
        shared_bytes: the most dynamic shared memory that a block may have (CUDA C++ Programming
            Guide, "Technical Specifications per Compute Capability").
    """

    name: str
    capability: tuple[int, int]
    shared_bytes: int


def _architecture(major: int, minor: int, shared_kilobytes: int) -> Architecture:
    return Architecture(f"sm_{major}{minor}", (major, minor), shared_kilobytes << 10)


ARCHITECTURES = (
    _architecture(8, 0, 163),
    _architecture(8, 6, 99),
    _architecture(8, 9, 99),
    _architecture(9, 0, 227),
    _architecture(10, 0, 227),
    _architecture(12, 0, 99),
)
LEAST_CAPABILITY = ARCHITECTURES[0].capability


def find(capability: tuple[int, int]) -> Architecture:
    """Return the architecture by which kernels are chosen for a GPU of capability 8.0 or newer.

    That is the newest in `ARCHITECTURES` of the same major version that is not newer than the GPU:
    10.3 is treated as 10.0. Of a major version that is not listed the name is its own, so that no
    measurement applies, and the shared memory the least of all, which every GPU has.

    Raises:
        ValueError: the GPU is older than 8.0.
    """
    if capability < LEAST_CAPABILITY:
        major, minor = capability
        raise ValueError(f"capability: got {major}.{minor}, expected 8.0 or newer")
    relatives = [
        each
        for each in ARCHITECTURES
        if each.capability[0] == capability[0] and each.capability <= capability
    ]
    if relatives:
        return relatives[-1]
    least = min(each.shared_bytes for each in ARCHITECTURES)
    return Architecture(f"sm_{capability[0]}{capability[1]}", capability, least)
