"""Optional autotuning: measure the best candidates of `configurations`, keep the fastest on disk.

It is off unless CONVMIXER_KERNELS_AUTOTUNE=1. Then, the first time a shape key is met on a GPU, a
few candidates are compiled and timed, one line is logged, and the winner is written to
``$XDG_CACHE_HOME/convmixer_kernels/triton-<GPU>.json`` (by default under ~/.cache), for later
processes to read. Nothing is measured while a CUDA graph is captured, since the measurement would
become part of the graph: shape keys first met there take the model's choice.
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
from convmixer_kernels.backends.triton.shape_key import ShapeKey

MOST_CANDIDATES = 6
_logger = logging.getLogger(__name__)

Run = Callable[[Configuration], Any]
"""A function that launches a configuration on real tensors."""
Timer = Callable[[Callable[[], Any]], float]
"""A function that returns the milliseconds which a call takes on the GPU."""


def choose(
    operation: str,
    key: ShapeKey,
    candidates: Sequence[Configuration],
    run: Run,
    device: torch.device,
) -> Configuration:
    """Choose the best of `candidates`, of which the first is the model's choice."""
    if os.environ.get("CONVMIXER_KERNELS_AUTOTUNE") != "1" or device.type != "cuda":
        return candidates[0]
    capturing = torch.cuda.is_current_stream_capturing()
    return _tuner(devices.index_of(device)).choose(
        operation, key, candidates, run, may_measure=not capturing
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
    """Hash the sources of these kernels: measurements of other sources do not count."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


class Tuner:
    """Measurements for one kind of GPU, in memory and in a file.

    Args:
        gpu: name of the GPU; names the file.
        folder: where the file lies; made when first written to.
        versions: everything else that a measurement depends on.
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
        key: ShapeKey,
        candidates: Sequence[Configuration],
        run: Run,
        may_measure: bool = True,
    ) -> Configuration:
        """Return the known winner for this shape key, or else the winner of a measurement."""
        entry = f"{operation} {key} {self._versions}"
        if not self._read:
            self._read = True
            self._found = self._load()
        if entry in self._found:
            return self._found[entry]
        if not may_measure:
            return candidates[0]
        chosen = distinct(candidates)
        times = [self._time(functools.partial(run, candidate)) for candidate in chosen]
        best = min(range(len(chosen)), key=times.__getitem__)
        _logger.info(
            "tuned %s of %s on %s: %.3f ms, the model's choice %.3f ms, %d candidates",
            operation,
            _describe(key),
            self._gpu,
            times[best],
            times[0],
            len(chosen),
        )
        self._found[entry] = chosen[best]
        self._save(entry, chosen[best])
        return chosen[best]

    def _time(self, call: Callable[[], Any]) -> float:
        """Time a call; infinity if it needs more than this GPU has at the moment."""
        from triton.runtime.errors import OutOfResources

        try:
            return self._timer(call)
        except (OutOfResources, torch.OutOfMemoryError):
            return math.inf

    def _load(self) -> dict[str, Configuration]:
        try:
            entries = json.loads(self._file.read_text())
            return {name: Configuration(**values) for name, values in entries.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            _logger.warning("ignored what was tuned before, %s: %s", self._file, error)
            return {}

    def _save(self, entry: str, configuration: Configuration) -> None:
        """Add an entry to those of other processes; readers never see half a file."""
        entries = {**self._load(), entry: configuration}
        text = json.dumps(
            {name: dataclasses.asdict(each) for name, each in entries.items()}, indent=1
        )
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self._file.parent, delete=False) as file:
                file.write(text)
            os.replace(file.name, self._file)
        except OSError as error:
            _logger.warning("what was tuned is not kept, %s: %s", self._file, error)


def distinct(candidates: Sequence[Configuration]) -> list[Configuration]:
    """Return the first candidates that differ in their code, not only in their splits."""
    seen: dict[tuple[object, ...], Configuration] = {}
    for each in candidates:
        seen.setdefault((each.tiles, each.unrolled_rows, each.cuts_images), each)
    return list(seen.values())[:MOST_CANDIDATES]


def _describe(key: ShapeKey) -> str:
    shape = (key.images, key.channels, key.height, key.width)
    dtype = str(key.dtype).removeprefix("torch.")
    return f"{'x'.join(map(str, shape))} {dtype}, kernel size {key.kernel_size}"
