"""Measurements of one thing: samples, or the reason why there are none. No PyTorch here."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.lib.arithmetic import Work


class NotMeasured(Exception):
    """Something that cannot be measured here; says why."""


class WrongResult(Exception):
    """A kernel of this project computes something else than it promises; says how far off it is."""


@dataclass(frozen=True)
class Measurement:
    """Samples of one thing.

    Attributes:
        kind: as in `records.Record`.
        subject: what identifies it among measurements of its kind.
        samples: seconds.
        work: what the operation cannot do without, where that is known.
        info: everything else. "wrong" says how far off the result of a peer is.
    """

    kind: str
    subject: dict[str, Any]
    samples: Sequence[float]
    work: Work | None = None
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def extra_info(self) -> dict[str, Any]:
        """All but the samples, as results store it."""
        work = {} if self.work is None else vars(self.work)
        return {"kind": self.kind, "subject": self.subject, **work, **self.info}

    @property
    def stats(self) -> dict[str, float]:
        """Statistics of the samples, under the names of pytest-benchmark."""
        samples = list(self.samples)
        least, _, greatest = statistics.quantiles(samples, n=4) if samples[1:] else [0.0] * 3
        return {
            "median": statistics.median(samples),
            "mean": statistics.mean(samples),
            "min": min(samples),
            "max": max(samples),
            "iqr": greatest - least,
            "rounds": len(samples),
        }
