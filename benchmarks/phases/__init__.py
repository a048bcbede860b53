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
        estimate: seconds on 16 processor cores and one GPU; of a phase that begins beside another,
            what it takes longer. An estimate, from processor seconds counted on other machines: no
            GPU has been timed.
        limit: seconds after which it is killed.
        least: seconds that must be left for it to begin.
        beside: the phase it begins together with, because that one leaves alone what this one needs
            most: processors, or a quiet GPU. It is waited for in its own place in the list.
    """

    name: str
    function: str
    estimate: float
    limit: float
    least: float
    beside: str | None = None

    def load(self) -> Callable[..., None]:
        module, _, name = self.function.partition(":")
        function: Callable[..., None] = getattr(
            importlib.import_module(f"benchmarks.phases.{module}"), name
        )
        return function


# The build leaves the GPU alone, so PyTorch is timed meanwhile; compilers of Triton run while the
# sanitizers, which nobody times, keep the GPU busy.
PHASES = (
    Phase("environment", "environment:environment", 5, 20, 5),
    Phase("peers", "timings:peers", 45, 75, 15),
    Phase("extension", "building:extension", 45, 170, 20, beside="environment"),
    Phase("smoke", "correctness:smoke", 25, 60, 10),
    Phase("ours", "timings:ours", 25, 60, 10),
    Phase("blocks", "timings:blocks", 25, 60, 10),
    Phase("networks", "timings:networks", 50, 80, 15),
    Phase("micro", "micro:micro", 12, 30, 8),
    Phase("sanitize", "sanitizers:sanitize", 70, 110, 20),
    Phase("triton_smoke", "correctness:triton_smoke", 10, 120, 20, beside="sanitize"),
    Phase("triton", "timings:triton", 20, 40, 10),
    Phase("training", "timings:training", 40, 70, 15),
    Phase("counters", "counters:counters", 40, 90, 25),
    Phase("compiled", "timings:compiled", 45, 90, 30),
    Phase("suite", "suite:suite", 300, 400, 30),
)
NAMES = tuple(phase.name for phase in PHASES)
