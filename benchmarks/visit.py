"""One short visit to a GPU: the most valuable facts first, whatever fails.

    python benchmarks/visit.py --minutes 8                  every phase there is time for
    python benchmarks/visit.py --only smoke,ours            those alone, in their order
    python benchmarks/visit.py --table build/visit          the table of a visit that was killed
    python benchmarks/visit.py --dry-run                    the same on a CPU, with tiny shapes

Each phase runs in a process of its own with a limit of its own. Every fact is a line of JSON in
visit.jsonl, on disk as soon as it is known; a short table comes last, also after SIGTERM or SIGINT.
Results go to the folder named by OUT, or else to build/visit. `report.py` makes tables and pictures
of them, `preferences.py` the preferences of `impl="auto"`.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
import time
from collections.abc import Sequence
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


class Interrupted(BaseException):
    """A signal asks the visit to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Schedule:
    """Run of phases in their order, with a note of each outcome."""

    def __init__(self, visit: Visit, wanted: Sequence[Phase], end: float) -> None:
        self._visit = visit
        self._wanted = wanted
        self._end = end
        self._running: dict[str, Process] = {}

    def run(self) -> None:
        for phase in self._wanted:
            if phase.name not in self._running and not self._begin(phase):
                continue
            for other in self._wanted:
                if other.beside == phase.name:
                    self._begin(other)
            self._finish(phase)

    def interrupt(self) -> None:
        for name in list(self._running):
            process = self._running.pop(name)
            seconds = process.seconds
            process.kill()
            self._note(name, "interrupted", seconds)

    def _begin(self, phase: Phase) -> bool:
        if self._end - time.monotonic() < phase.least:
            self._note(phase.name, "not begun", 0)
            return False
        work = partial(run_phase, phase, self._visit)
        self._running[phase.name] = Process(work, self._visit.log)
        return True

    def _finish(self, phase: Phase) -> None:
        process = self._running[phase.name]
        left = min(phase.limit - process.seconds, self._end - time.monotonic())
        outcome = process.wait(max(0, left))
        del self._running[phase.name]
        self._note(phase.name, outcome, process.seconds)

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
    parser.add_argument("--minutes", type=float, default=8, help="for all of it (default: 8)")
    parser.add_argument(
        "--only", metavar="PHASES", help=f"some of {','.join(phases.NAMES)}, with commas between"
    )
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, with tiny shapes")
    parser.add_argument("--table", type=Path, metavar="FOLDER", help="only print its table")
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error(f"--minutes: got {options.minutes:g}, expected more than 0")
    names = options.only.split(",") if options.only else phases.NAMES
    if unknown := [name for name in names if name not in phases.NAMES]:
        parser.error(f"--only: got {unknown[0]!r}, expected some of {', '.join(phases.NAMES)}")
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

    visit = Visit(folder, options.dry_run)
    start_afresh(visit.facts.path)
    schedule = Schedule(visit, options.wanted, end)
    interrupted = 0
    try:
        _raise_at(signal.SIGTERM, signal.SIGINT)
        name = visit.selection.name
        records.add_provenance(visit.facts, name, machine.commit(), minutes=options.minutes)
        schedule.run()
    except Interrupted as signal_:
        interrupted = signal_.number
    finally:
        _ignore(signal.SIGTERM, signal.SIGINT)  # The table comes first.
        schedule.interrupt()
        status = print_table(visit.facts.path)
    return 128 + interrupted if interrupted else status


def _raise_at(*numbers: int) -> None:
    def end(number: int, frame: object) -> None:
        _ignore(*numbers)
        raise Interrupted(number)

    for number in numbers:
        signal.signal(number, end)


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
