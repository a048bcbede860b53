"""One short visit to a GPU: the most valuable facts first, whatever fails.

    python benchmarks/visit.py --minutes 10                 every phase there is time for
    python benchmarks/visit.py --only smoke,ours            those alone, in their order
    python benchmarks/visit.py --match 'k7-|768_32 cuda'    of convolutions, blocks and networks
                                                            those in whose name this is found
    python benchmarks/visit.py --table build/visit          the table of a visit that was killed
    python benchmarks/visit.py --dry-run                    the same on a CPU, with tiny shapes

Each phase runs in a process of its own with a limit of its own. Every fact is a line of JSON in
visit.jsonl, on disk as soon as it is known; a short table comes last, also after SIGTERM or SIGINT.
Results go to the folder named by OUT, or else to build/visit. `report.py` makes tables and pictures
of them, `preferences.py` the preferences of `impl="auto"`. With --match a later visit measures what
an earlier one left out: `report.py` takes the facts of both. The names are as in

    depthwise input_gradient-64x1536x32x32-k9-float16-channels_last PyTorch
    block training-64x1536x32x32-k9-float16-contiguous cuda
    inference convmixer_1536_20 cuda, channels_last
    training convmixer_768_32 PyTorch
    profile of inference convmixer_768_32 cuda
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the packages may not be installed

from benchmarks import phases
from benchmarks.lib import facts
from benchmarks.phases import Phase
from benchmarks.phases.processes import Process
from benchmarks.reports import summary

if TYPE_CHECKING:
    from benchmarks.phases.context import Visit

# Kept for the table and for what the machine does at the end.
_SECONDS_FOR_THE_TABLE = 5
_LOOK_EVERY = 0.02
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(BaseException):
    """A signal asks the visit to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Schedule:
    """Run of phases in their order, with a note of each outcome as soon as it is known."""

    def __init__(self, visit: Visit, wanted: Sequence[Phase], end: float) -> None:
        self._visit = visit
        self._wanted = wanted
        self._end = end
        self._seconds = end - time.monotonic()
        self._running: dict[str, tuple[Process, float]] = {}

    def run(self) -> None:
        tried: set[str] = set()
        for phase in self._wanted:
            for each in self._wanted:
                if phase.name in (each.name, each.beside) and each.name not in tried:
                    tried.add(each.name)
                    self._begin(each)
            while phase.name in self._running:
                time.sleep(_LOOK_EVERY)
                self._look()

    def interrupt(self) -> None:
        for name in list(self._running):
            process, _ = self._running.pop(name)
            seconds = process.seconds
            process.kill()
            self._note(name, "interrupted", seconds)

    def _begin(self, phase: Phase) -> None:
        left = self._end - self._kept(phase) - time.monotonic()
        if left < phase.least:
            self._note(phase.name, "not begun", 0)
            return
        with _later(*_SIGNALS):
            process = Process(partial(run_phase, phase, self._visit), self._visit.log)
            self._running[phase.name] = (process, min(phase.limit, left))

    def _kept(self, phase: Phase) -> float:
        """Seconds that a phase leaves to those after it: at most a third of the visit."""
        later = self._wanted[self._wanted.index(phase) + 1 :]
        kept = [each.kept for each in later if each.group != phase.group]
        return min(max(kept, default=0), self._seconds / 3)

    def _look(self) -> None:
        """Note the phases that have ended, and end those whose time is over."""
        for name, (process, limit) in list(self._running.items()):
            if process.ended() or process.seconds >= limit:
                seconds = process.seconds
                with _later(*_SIGNALS):
                    self._note(name, process.wait(0), seconds)
                    del self._running[name]

    def _note(self, name: str, outcome: str, seconds: float) -> None:
        self._visit.facts.add("phase", name=name, outcome=outcome, seconds=round(seconds, 1))


def run_phase(phase: Phase, visit: Visit) -> None:
    """Run a phase in this process, which is its own."""
    from benchmarks.lib.measurement import NotMeasured

    try:
        phase.load()(visit)
    except NotMeasured as reason:
        visit.facts.add("skipped", what=phase.name, reason=str(reason))
    except Exception as error:
        visit.facts.add("failed", what=phase.name, error=facts.message(error))
        raise


def prepare(dry_run: bool) -> str | None:
    """Import what phases need, once for all of their processes; say why none of them can run.

    CUDA does not survive a fork: no GPU is touched.
    """
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    if dry_run:
        os.environ.setdefault("TRITON_INTERPRET", "1")
    try:
        importlib.import_module("benchmarks.phases.context")
    except ImportError as error:
        return f"the benchmarks do not import: {error}"
    for phase in phases.PHASES:
        # A phase that does not import will fail in its own process, and say why.
        with contextlib.suppress(Exception):
            phase.load()
    return None


def gpu_problem(log: Path) -> str | None:
    """Find out, in a process of its own, why nothing can be measured here; None if it can."""
    import torch

    def look() -> None:
        if not torch.cuda.is_available():
            raise SystemExit(1)

    if Process(look, log).wait(60) == "done":
        return None
    return "PyTorch finds no CUDA device; --dry-run shows on a CPU that the visit runs"


def folder_of_results() -> Path:
    return Path(os.environ.get("OUT") or ROOT / "build" / "visit")


def start_afresh(path: Path) -> None:
    """Put the facts of an earlier visit aside."""
    if path.exists():
        number = 1
        while (aside := path.with_stem(f"{path.stem}-{number}")).exists():
            number += 1
        path.rename(aside)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10, help="for all of it (default: 10)")
    parser.add_argument(
        "--only", metavar="PHASES", help=f"some of {','.join(phases.NAMES)}, with commas between"
    )
    parser.add_argument("--match", default="", metavar="REGEX", help="measure only what has a name")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, with tiny shapes")
    parser.add_argument("--table", type=Path, metavar="FOLDER", help="only print its table")
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error(f"--minutes: got {options.minutes:g}, expected more than 0")
    names = options.only.split(",") if options.only else phases.NAMES
    if unknown := [name for name in names if name not in phases.NAMES]:
        parser.error(f"--only: got {unknown[0]!r}, expected some of {', '.join(phases.NAMES)}")
    try:
        re.compile(options.match)
    except re.error as error:
        parser.error(f"--match: {options.match!r} is no regular expression: {error}")
    options.wanted = [phase for phase in phases.PHASES if phase.name in names]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all was right, 1 if something was not, 2 if nothing could run."""
    begun = time.monotonic()
    options = parse(arguments)
    if options.table is not None:
        return print_table(options.table / "visit.jsonl")
    folder = folder_of_results()
    folder.mkdir(parents=True, exist_ok=True)
    problem = prepare(options.dry_run)
    if problem is None and not options.dry_run:
        problem = gpu_problem(folder / "visit.log")
    if problem is not None:
        print(f"visit: {problem}", file=sys.stderr)
        return 2
    return run(options, folder, begun + 60 * options.minutes - _SECONDS_FOR_THE_TABLE)


def run(options: argparse.Namespace, folder: Path, end: float) -> int:
    from benchmarks.lib import machine
    from benchmarks.phases.context import Visit
    from benchmarks.reports import records

    visit = Visit(folder, options.dry_run, options.match)
    start_afresh(visit.facts.path)
    schedule = Schedule(visit, options.wanted, end)
    interrupted = 0
    try:
        _raise_at(*_SIGNALS)
        name = visit.selection.name
        records.add_provenance(
            visit.facts, name, machine.commit(), minutes=options.minutes, match=options.match
        )
        schedule.run()
    except Interrupted as signal_:
        interrupted = signal_.number
    finally:
        _ignore(*_SIGNALS)  # The table comes first.
        schedule.interrupt()
        status = print_table(visit.facts.path)
    return 128 + interrupted if interrupted else status


def _raise_at(*numbers: int) -> None:
    def end(number: int, frame: object) -> None:
        _ignore(*numbers)
        raise Interrupted(number)

    for number in numbers:
        signal.signal(number, end)


@contextlib.contextmanager
def _later(*numbers: int) -> Iterator[None]:
    """Let signals wait, so that no process is begun or ended without a note of it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def _ignore(*numbers: int) -> None:
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def print_table(path: Path) -> int:
    if not path.exists():
        print(f"visit: {path}: there is no such file", file=sys.stderr)
        return 2
    found = facts.read(path)
    print("\n".join(summary.lines(path, found)), flush=True)
    return int(summary.is_trouble(found))


if __name__ == "__main__":
    sys.exit(main())
