"""Folder, device and shapes of a visit, and the way from a failure to a fact."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from benchmarks.lib import facts, measure, peers, shapes
from benchmarks.lib.facts import Facts
from benchmarks.lib.measurement import Measurement, NotMeasured, WrongResult
from benchmarks.lib.peers import Peer

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Visit:
    """One visit, which every phase is given.

    Attributes:
        folder: where its results go.
        dry_run: whether it runs on the CPU, with the smallest shapes. PyTorch then stands in for
            the kernels, and what needs a GPU or its tools is skipped with its reason.
        match: regular expression; of convolutions, blocks and networks only those are measured in
            whose name it is found. All of them without it.
    """

    folder: Path
    dry_run: bool
    match: str = ""

    @cached_property
    def facts(self) -> Facts:
        return Facts(self.folder / "visit.jsonl")

    @property
    def log(self) -> Path:
        """The file that takes the output of phases."""
        return self.folder / "visit.log"

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry_run else "cuda")

    @property
    def selection(self) -> shapes.Selection:
        return shapes.DRY_RUN if self.dry_run else shapes.VISIT

    @property
    def budget(self) -> float:
        """Seconds for which one thing is timed: shorter than where there are hours."""
        return 0.0 if self.dry_run else measure.BUDGET_SECONDS / 2

    @property
    def kernels(self) -> Peer:
        """The CUDA kernels, or what stands in for them."""
        return Peer("PyTorch as a stand-in") if self.dry_run else peers.KERNELS[0]

    @property
    def implementation(self) -> str:
        """The word for `impl` that names `kernels`."""
        return "torch" if self.dry_run else "cuda"

    def wants(self, what: str) -> bool:
        """Tell whether what has this name is to be measured."""
        return re.search(self.match, what) is not None

    def needs_gpu(self, what: str) -> None:
        """Raise NotMeasured in a dry run."""
        if self.dry_run:
            raise NotMeasured(f"{what} needs a GPU")

    def record(self, measurement: Measurement) -> None:
        self.facts.add("measured", extra_info=measurement.extra_info, stats=measurement.stats)

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Turn a failure into a fact, so that the phase goes on, unless the GPU is lost."""
        try:
            yield
        except NotMeasured as reason:
            self.facts.add("skipped", what=what, reason=str(reason))
        except WrongResult as error:
            self.facts.add("wrong", what=what, error=facts.shortened(error))
        except Exception as error:
            self.facts.add("failed", what=what, error=facts.message(error))
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()  # This raises once more after an illegal access.
                torch.cuda.empty_cache()


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a child process that imports this checkout and the benchmarks."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **more}


def tool(
    command: Sequence[object], seconds: float, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a tool in the root of the checkout and keep its output.

    Raises:
        TimeoutError: it took longer than `seconds`.
    """
    try:
        return subprocess.run(
            [str(word) for word in command],
            cwd=ROOT,
            env=environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"{command[0]} took longer than {seconds:g} seconds") from error


def python_tool(
    module: str, *arguments: object, seconds: float, before: Sequence[object] = (), **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a module of this package in a new interpreter, behind the words of another tool."""
    command = [*before, sys.executable, "-m", f"benchmarks.phases.{module}", *arguments]
    return tool(command, seconds, **more)
