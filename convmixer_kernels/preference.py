"""The order in which "auto" tries the implementations: a rule, and measurements that overrule it.

Pure functions of an architecture and a problem, without a GPU and without PyTorch's state. Whether
an implementation is available at all, `dispatch` asks the implementations themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from convmixer_kernels.architectures import Architecture

IMPLEMENTATIONS = ("cuda", "triton", "torch")
_PYTORCH_FIRST = ("torch", "cuda", "triton")
_TENSOR_CORE_DTYPES = (torch.float16, torch.bfloat16)
# Kernels multiply a row of taps with the zeros around it as well, PyTorch its taps alone. The limit
# is predicted, not measured.
_FEWEST_TAPS = 9

Layout = Literal["planar", "channels_last"]


class Plane(NamedTuple):
    """The properties of an image that the order may depend on.

    Args:
        layout: "channels_last", or "planar" for what the kernels read plane by plane.
    """

    layout: Layout
    height: int
    width: int


class Problem(NamedTuple):
    """A call, but for the number of images and channels, on which the order does not depend.

    Args:
        kernel_size: of a square filter; None for any other, and for an operation without one.
        plane: None stands for any.
        fused: the call goes on to activation and normalisation, which PyTorch does in more passes.
            Measurements of the convolution alone say nothing of it.
        taps: of the filter; None without one.
    """

    kernel_size: int | None
    dtype: torch.dtype
    plane: Plane | None = None
    fused: bool = False
    taps: int | None = None


@dataclass(frozen=True)
class Measured:
    """A range of problems whose measured order is not that of the rule.

    Args:
        architecture: the name of one of `architectures.ARCHITECTURES`.
        sizes: the least and the greatest height and width, both inclusive.
        order: every implementation, in the order to try them in.
        measurement: the times, their shape, and where they are recorded, for `explain`.
    """

    architecture: str
    kernel_sizes: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    layouts: tuple[Layout, ...]
    sizes: tuple[int, int]
    order: tuple[str, ...]
    measurement: str

    def may_cover(self, architecture: Architecture, problem: Problem) -> bool:
        """Tell whether it covers the problem for some plane."""
        return (
            not problem.fused
            and self.architecture == architecture.name
            and problem.kernel_size in self.kernel_sizes
            and problem.dtype in self.dtypes
        )

    def covers(self, plane: Plane) -> bool:
        least, greatest = self.sizes
        inside = least <= min(plane.height, plane.width)
        inside = inside and max(plane.height, plane.width) <= greatest
        return inside and plane.layout in self.layouts


# The first that covers a problem counts; a problem that none covers follows the rule. The lines
# between the markers are written by benchmarks/preferences.py.
# measured:begin
MEASURED: tuple[Measured, ...] = (
    Measured(
        architecture="sm_90",
        kernel_sizes=(3,),
        dtypes=(torch.float16,),
        layouts=("channels_last",),
        sizes=(32, 32),
        order=("torch", "cuda", "triton"),
        measurement=(
            "64x1536x32x32 forward and all passes: cuda 158 µs and 504 µs, triton 332 µs and "
            "1.01 ms, torch 117 µs and 358 µs; NVIDIA H200, commit a2830c19b5aa"
        ),
    ),
    Measured(
        architecture="sm_90",
        kernel_sizes=(5,),
        dtypes=(torch.float16,),
        layouts=("channels_last",),
        sizes=(32, 32),
        order=("cuda", "torch", "triton"),
        measurement=(
            "64x1536x32x32 forward and all passes: cuda 162 µs and 510 µs, triton 330 µs and "
            "1.02 ms, torch 210 µs and 616 µs; NVIDIA H200, commit a2830c19b5aa"
        ),
    ),
)
# measured:end


@dataclass(frozen=True)
class Preference:
    """The order to try the implementations in, and why it is not that of `IMPLEMENTATIONS`."""

    order: tuple[str, ...]
    reason: str | None = None


def possible(architecture: Architecture, problem: Problem) -> tuple[Preference, ...]:
    """Return the preferences that a problem may have, a single one if its plane is given.

    The CUDA kernels come before the Triton kernels, which read their bands anew for each row, and
    both before PyTorch, on every architecture; without tensor cores PyTorch comes first, and so it
    does for filters of fewer than nine taps. What was measured goes before every rule.
    """
    measured = [each for each in MEASURED if each.may_cover(architecture, problem)]
    if problem.plane is None:
        return (*map(_measured, measured), _rule(problem))
    for each in measured:
        if each.covers(problem.plane):
            return (_measured(each),)
    return (_rule(problem),)


def _measured(entry: Measured) -> Preference:
    order = ", ".join(entry.order)
    reason = f"on {entry.architecture} the order {order} was measured: {entry.measurement}"
    return Preference(entry.order, reason)


def _rule(problem: Problem) -> Preference:
    if problem.dtype not in _TENSOR_CORE_DTYPES:
        return Preference(_PYTORCH_FIRST, f"it has no tensor-core path for {problem.dtype}")
    if problem.taps is not None and problem.taps < _FEWEST_TAPS:
        return Preference(_PYTORCH_FIRST, f"of {problem.taps} taps, PyTorch needs few products")
    return Preference(IMPLEMENTATIONS)
