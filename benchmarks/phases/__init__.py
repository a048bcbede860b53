"""The phases of a visit to a GPU, in the order of their value. No PyTorch in this file."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """A part of a visit, which runs in a process of its own.

    Attributes:
        name: as on the command line.
        function: "module:function" of this package; it takes a `context.Visit`.
        estimate: seconds beside an H200 on 16 processor cores; of a phase that begins beside
            another, what it takes longer. Measured in part: some phases have changed since.
        limit: seconds after which it is killed.
        least: seconds that must be left for it to begin.
        beside: the phase it begins together with, because that one leaves alone what this one needs
            most: processors, or a quiet GPU. It is waited for in its own place in the list.
        kept: seconds that phases before it leave to it, see `visit.Schedule`.
    """

    name: str
    function: str
    estimate: float
    limit: float
    least: float
    beside: str | None = None
    kept: float = 0

    @property
    def group(self) -> str:
        """The phase with which all that run side by side begin."""
        return self.beside or self.name

    def load(self) -> Callable[..., None]:
        module, _, name = self.function.partition(":")
        function: Callable[..., None] = getattr(
            importlib.import_module(f"benchmarks.phases.{module}"), name
        )
        return function


# The build leaves the GPU alone, so PyTorch is timed meanwhile. Phases that time nothing come last
# and together.
PHASES = (
    Phase("environment", "environment:environment", 1, 20, 5),
    Phase("peers", "timings:peers", 110, 130, 15),
    Phase("extension", "building:extension", 0, 170, 20, beside="environment"),
    Phase("smoke", "correctness:smoke", 6, 60, 10),
    Phase("ours", "timings:ours", 8, 60, 10),
    Phase("blocks", "timings:blocks", 55, 65, 10),
    Phase("networks", "timings:networks", 47, 80, 15),
    Phase("profile", "profiling:profile", 15, 40, 10),
    Phase("micro", "micro:micro", 7, 30, 8),
    Phase("training", "timings:training", 60, 80, 15),
    Phase("triton", "timings:triton", 70, 100, 15),
    Phase("counters", "counters:counters", 26, 90, 25),
    Phase("compiled", "timings:compiled", 65, 100, 30),
    Phase("sanitize", "sanitizers:sanitize", 50, 150, 20, kept=100),
    Phase("triton_smoke", "correctness:triton_smoke", 0, 120, 20, beside="sanitize", kept=100),
    Phase("suite", "suite:suite", 200, 400, 30, beside="sanitize", kept=100),
)
NAMES = tuple(phase.name for phase in PHASES)
