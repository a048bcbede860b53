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
_TENSOR_CORE_DTYPES = (torch.float16, torch.bfloat16)

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
        kernel_size: None for an operation that has no filter.
        plane: may be None where no measurement asks for it.
    """

    kernel_size: int | None
    dtype: torch.dtype
    plane: Plane | None = None


@dataclass(frozen=True)
class Measured:
    """A range of problems in which an implementation other than the first was measured faster.

    Args:
        architecture: the name of one of `architectures.ARCHITECTURES`.
        sizes: the least and the greatest height and width, both inclusive.
        faster: the implementation that goes first.
        measurement: the two times, their shape, and where they are recorded, for `explain`.
    """

    architecture: str
    kernel_sizes: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    layouts: tuple[Layout, ...]
    sizes: tuple[int, int]
    faster: str
    measurement: str

    def may_cover(self, architecture: Architecture, problem: Problem) -> bool:
        """Tell whether it covers the problem for some plane."""
        return (
            self.architecture == architecture.name
            and problem.kernel_size in self.kernel_sizes
            and problem.dtype in self.dtypes
        )

    def covers(self, plane: Plane) -> bool:
        least, greatest = self.sizes
        inside = least <= min(plane.height, plane.width)
        inside = inside and max(plane.height, plane.width) <= greatest
        return inside and plane.layout in self.layouts


# The first that covers a problem counts; none: nothing has been measured. The lines between the
# markers are written by benchmarks/preferences.py.
# measured:begin
MEASURED: tuple[Measured, ...] = ()
# measured:end


@dataclass(frozen=True)
class Preference:
    """The order to try the implementations in, and why it is not that of `IMPLEMENTATIONS`."""

    order: tuple[str, ...]
    reason: str | None = None


def prefer(architecture: Architecture, problem: Problem) -> Preference | None:
    """Return the order for a problem; None if it depends on a plane that is not given.

    The CUDA kernels come before the Triton kernels, which read their bands anew for each row, and
    both before PyTorch, on every architecture; without tensor cores PyTorch comes first. What was
    measured goes before either rule.
    """
    for each in MEASURED:
        if not each.may_cover(architecture, problem):
            continue
        if problem.plane is None:
            return None
        if each.covers(problem.plane):
            return Preference(
                _with_first(each.faster),
                f"{each.faster} was measured faster on {each.architecture}: {each.measurement}",
            )
    if problem.dtype not in _TENSOR_CORE_DTYPES:
        return Preference(_with_first("torch"), f"it has no tensor-core path for {problem.dtype}")
    return Preference(IMPLEMENTATIONS)


def _with_first(name: str) -> tuple[str, ...]:
    return (name, *(other for other in IMPLEMENTATIONS if other != name))
