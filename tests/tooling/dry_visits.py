"""Dry runs of benchmarks/visit.py: whole, killed, and with phases that hang or crash.

    python -m tests.tooling.dry_visits FOLDER KILLS SEED

A program, so that all of them are forks of one process that has imported PyTorch. It writes
FOLDER/outcome.json, which tests/tooling/test_visit.py judges.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "csrc" / "build_tools")]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# The phases that take longest, of which there are many kills without, and words of their facts.
LONGEST = ("blocks", "profile", "micro", "triton_smoke")
OF_LONGEST = ('"kind": "block"', '"fact": "profile', '"fact": "micro"')


def started(folder: Path, run: Callable[[], int], reports: int | None = None) -> int:
    """The number of a fork that runs `run` with its results and output in `folder`.

    It writes a byte to the pipe `reports` whenever a fact is said to be on disk.
    """
    from benchmarks.lib import facts

    folder.mkdir(parents=True, exist_ok=True)
    number = os.fork()
    if number:
        return number
    os.environ["OUT"] = str(folder)
    with (folder / "output").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    add = facts.Facts.add

    def reported(self: Any, fact: str, **fields: Any) -> None:
        add(self, fact, **fields)
        if reports is not None:
            os.write(reports, b".")

    facts.Facts.add = reported  # type: ignore[method-assign]
    status = run()
    sys.stdout.flush()
    os._exit(status)


def ended(number: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def whole(folder: Path) -> dict[str, Any]:
    from benchmarks import visit

    status = ended(started(folder, lambda: visit.main(["--dry-run"])))
    return {"status": status, "output": (folder / "output").read_text()}


def killed(folder: Path, after: int, pause: float, by: signal.Signals) -> dict[str, Any]:
    """A dry run that gets a signal a moment after it has reported so many facts."""
    from benchmarks import phases, visit

    names = [name for name in phases.NAMES if name not in LONGEST]
    read, write = os.pipe()
    arguments = ["--dry-run", "--only", ",".join(names)]
    number = started(folder, lambda: visit.main(arguments), write)
    os.close(write)
    reported = 0
    while reported < after and os.read(read, 1):
        reported += 1
    time.sleep(pause)
    os.set_blocking(read, False)
    with contextlib.suppress(BlockingIOError):
        while os.read(read, 1):
            reported += 1
    os.kill(number, by)
    status = ended(number)
    # Its phases end with it, and with them the last writer of the pipe.
    os.set_blocking(read, True)
    while os.read(read, 1):
        pass
    os.close(read)
    lines = (folder / "visit.jsonl").read_text().splitlines()
    table = io.StringIO()
    with contextlib.redirect_stdout(table):
        visit.print_table(folder / "visit.jsonl")
    return {
        "signal": by.name,
        "status": status,
        "reported": reported,
        "lines": lines,
        "output": (folder / "output").read_text(),
        "table": table.getvalue(),
    }


def given(name: str, run: Callable[[Any], None], limit: float = 300, **more: Any) -> Any:
    """A phase that runs a function of this module."""
    from benchmarks import phases

    @dataclass(frozen=True)
    class Given(phases.Phase):
        def load(self) -> Callable[..., None]:
            return run

    return Given(name, "", 1, limit, 0, **more)


def visit_of(listed: list[Any], folder: Path, seconds: float) -> int:
    """The exit status of a visit of these phases."""
    from benchmarks import visit

    def run() -> int:
        options = visit.parse(["--dry-run"])
        options.wanted = listed
        return visit.run(options, folder, time.monotonic() + seconds)

    return ended(started(folder, run))


def short_of_time(folder: Path) -> list[str]:
    """The facts of a visit whose last phase gets a third of its time, which the first would take.

    A phase that ends beside a longer one has its outcome before that.
    """
    listed = [
        given("long", lambda each: time.sleep(1000)),
        given("beside", lambda each: None, beside="long"),
        given("last", lambda each: None, kept=100),
    ]
    visit_of(listed, folder, 3)
    return (folder / "visit.jsonl").read_text().splitlines()


def troubled(folder: Path) -> dict[str, Any]:
    """A visit of phases that go wrong between phases that do not."""
    from benchmarks.phases import processes
    from benchmarks.phases.context import Visit

    def fine(each: Visit) -> None:
        each.facts.add("fine")

    def tool() -> None:
        child = subprocess.Popen(["sleep", "1000"])
        (folder / "child").write_text(str(child.pid))
        child.wait()

    def hang(each: Visit) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        processes.side_by_side([tool])

    def crash(each: Visit) -> None:
        ctypes.string_at(0)

    def leave(each: Visit) -> None:
        os._exit(7)

    def fail(each: Visit) -> None:
        with each.attempt("a part"):
            raise ValueError("which the phase survives")
        raise ValueError("which it does not")

    parts = {
        "first": fine,
        "hang": hang,
        "crash": crash,
        "leave": leave,
        "fail": fail,
        "last": fine,
    }
    listed = [given(name, run, 3 if name == "hang" else 300) for name, run in parts.items()]
    status = visit_of(listed, folder, 600)
    child = folder / "child"
    return {
        "status": status,
        "lines": (folder / "visit.jsonl").read_text().splitlines(),
        "output": (folder / "output").read_text(),
        "child": int(child.read_text()) if child.exists() else None,
    }


def touches_no_gpu() -> str | None:
    """Name the calls of CUDA before the visit forks, which no fork would survive."""
    import torch

    from benchmarks import visit

    asked, undo = [], []
    for module, name in (
        (torch.cuda, "is_available"),
        (torch.cuda, "init"),
        (torch.cuda, "_lazy_init"),
    ):
        original = getattr(module, name)
        setattr(module, name, lambda *_, name=name: asked.append(name))
        undo.append((module, name, original))
    problem = visit.prepare(dry_run=True)
    for module, name, original in undo:
        setattr(module, name, original)
    return problem or (f"asked for {asked}" if asked else None)


def main() -> None:
    folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    outcome: dict[str, Any] = {"before_forks": touches_no_gpu()}
    from benchmarks import visit
    from benchmarks.phases import processes

    work = (lambda: None, lambda: os._exit(5), lambda: os.kill(os.getpid(), signal.SIGABRT))
    outcome["side_by_side"] = processes.in_parallel(work, 2, 600, folder / "log")
    outcome["whole"] = whole(folder / "whole")
    outcome["troubled"] = troubled(folder / "troubled")
    outcome["short_of_time"] = short_of_time(folder / "short_of_time")
    without = ended(started(folder / "without", lambda: visit.main([])))
    outcome["without_gpu"] = {
        "status": without,
        "output": (folder / "without" / "output").read_text(),
    }
    lines = (folder / "whole" / "visit.jsonl").read_text().splitlines()
    total = sum(not any(words in line for words in OF_LONGEST) for line in lines)
    dice = random.Random(seed)
    outcome["killed"] = [
        killed(
            folder / f"killed-{number}",
            dice.randrange(1, total - len(LONGEST) - 10),
            dice.uniform(0, 0.05),
            SIGNALS[number % len(SIGNALS)],
        )
        for number in range(kills)
    ]
    (folder / "outcome.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main()
