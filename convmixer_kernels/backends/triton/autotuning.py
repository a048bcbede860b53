"""Optional: measures the best candidates of `configurations` and keeps the fastest on disk.

Off unless CONVMIXER_KERNELS_AUTOTUNE=1. Then, the first time a problem is met on a GPU, a few
candidates are compiled and timed, one line is logged, and the winner is written to
``$XDG_CACHE_HOME/convmixer_kernels/triton-<GPU>.json`` (by default under ~/.cache), where later
processes find it. Nothing is measured while a CUDA graph is captured, since that would become part
of the graph: problems met there for the first time take the model's choice.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from convmixer_kernels import devices
from convmixer_kernels.backends.triton.configurations import Configuration
from convmixer_kernels.backends.triton.problem import Problem

MOST_CANDIDATES = 6
_logger = logging.getLogger(__name__)

Run = Callable[[Configuration], Any]
"""Launches a configuration on real tensors."""
Timer = Callable[[Callable[[], Any]], float]
"""Milliseconds that a call takes on the GPU."""


def choose(
    operation: str,
    problem: Problem,
    candidates: Sequence[Configuration],
    run: Run,
    device: torch.device,
) -> Configuration:
    """The best of `candidates`, of which the model's choice is the first."""
    if os.environ.get("CONVMIXER_KERNELS_AUTOTUNE") != "1" or device.type != "cuda":
        return candidates[0]
    capturing = torch.cuda.is_current_stream_capturing()
    return _tuner(devices.index_of(device)).choose(
        operation, problem, candidates, run, may_measure=not capturing
    )


@functools.cache
def _tuner(index: int) -> Tuner:
    import triton
    from triton.testing import do_bench

    def timer(call: Callable[[], Any]) -> float:
        return float(do_bench(call, warmup=5, rep=20, return_mode="median"))

    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    versions = f"torch {torch.__version__} triton {triton.__version__} kernels {_source_hash()}"
    name = torch.cuda.get_device_name(index)
    return Tuner(name, root / "convmixer_kernels", versions, timer)


@functools.cache
def _source_hash() -> str:
    """Of these kernels: what was measured with others says nothing."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


class Tuner:
    """Measurements for one kind of GPU, in memory and in a file.

    Args:
        gpu: name of the GPU; names the file.
        folder: where the file lies; made when first written to.
        versions: whatever else a measurement depends on.
        timer: how long a call takes.
    """

    def __init__(self, gpu: str, folder: Path, versions: str, timer: Timer) -> None:
        self._gpu = gpu
        self._file = folder / f"triton-{re.sub(r'[^A-Za-z0-9]+', '-', gpu).strip('-')}.json"
        self._versions = versions
        self._timer = timer
        self._found: dict[str, Configuration] = {}
        self._read = False

    def choose(
        self,
        operation: str,
        problem: Problem,
        candidates: Sequence[Configuration],
        run: Run,
        may_measure: bool = True,
    ) -> Configuration:
        """The known winner for this problem, or else the winner of a measurement."""
        key = f"{operation} {problem} {self._versions}"
        if not self._read:
            self._read = True
            self._found = self._load()
        if key in self._found:
            return self._found[key]
        if not may_measure:
            return candidates[0]
        chosen = distinct(candidates)
        times = [self._time(functools.partial(run, candidate)) for candidate in chosen]
        best = min(range(len(chosen)), key=times.__getitem__)
        _logger.info(
            "tuned %s of %s on %s: %.3f ms, the model's choice %.3f ms, %d candidates",
            operation,
            _describe(problem),
            self._gpu,
            times[best],
            times[0],
            len(chosen),
        )
        self._found[key] = chosen[best]
        self._save(key, chosen[best])
        return chosen[best]

    def _time(self, call: Callable[[], Any]) -> float:
        """Infinite for a candidate that needs more than this GPU has at the moment."""
        from triton.runtime.errors import OutOfResources

        try:
            return self._timer(call)
        except (OutOfResources, torch.OutOfMemoryError):
            return math.inf

    def _load(self) -> dict[str, Configuration]:
        try:
            entries = json.loads(self._file.read_text())
            return {key: Configuration(**entry) for key, entry in entries.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            _logger.warning("ignored what was tuned before, %s: %s", self._file, error)
            return {}

    def _save(self, key: str, configuration: Configuration) -> None:
        """Adds to what other processes have written meanwhile; readers never see half a file."""
        entries = {**self._load(), key: configuration}
        text = json.dumps(
            {key: dataclasses.asdict(entry) for key, entry in entries.items()}, indent=1
        )
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self._file.parent, delete=False) as file:
                file.write(text)
            os.replace(file.name, self._file)
        except OSError as error:
            _logger.warning("what was tuned is not kept, %s: %s", self._file, error)


def distinct(candidates: Sequence[Configuration]) -> list[Configuration]:
    """The first candidates that differ in more than how they are divided among programs."""
    seen: dict[tuple[object, ...], Configuration] = {}
    for each in candidates:
        seen.setdefault((each.strips, each.rows, each.channels, each.banded), each)
    return list(seen.values())[:MOST_CANDIDATES]


def _describe(problem: Problem) -> str:
    shape = (problem.images, problem.channels, problem.height, problem.width)
    dtype = str(problem.dtype).removeprefix("torch.")
    layout = ", channels_last" if problem.channels_last else ""
    return f"{'x'.join(map(str, shape))} {dtype}{layout}, kernel size {problem.kernel_size}"
