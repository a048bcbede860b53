"""Measurements as they are stored: read, merged, and held against each other. No PyTorch here."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.lib import facts
from benchmarks.lib.arithmetic import Ceilings, Work, noise, speedup
from benchmarks.lib.facts import Fact, Facts

Key = tuple[tuple[str, Any], ...]

# Fields that distinguish the ways to do one thing, by kind of record.
_CHOICES = {
    "depthwise": ("layout", "peer"),
    "block": ("layout", "peer"),
    "inference": ("way",),
    "training": ("way",),
    "input_size": ("way",),
    "ceiling": (),
    "host": (),
    "loader": (),
}
# Kinds whose subject is a `shapes.Case` and who runs it.
SWEEPS = ("depthwise", "block")


@dataclass(frozen=True)
class Record:
    """One thing that was measured.

    Attributes:
        kind: "ceiling", "host", "loader", "depthwise", "block", "inference", "training" or
            "input_size".
        subject: what identifies it among records of its kind.
        median, mean: seconds.
        noise: interquartile range over median.
        info: everything else, such as `gigabytes_per_second`.
    """

    kind: str
    subject: dict[str, Any]
    median: float
    mean: float
    noise: float
    info: dict[str, Any]

    @property
    def key(self) -> Key:
        return (("kind", self.kind), *sorted(self.subject.items()))

    @property
    def task(self) -> Key:
        """The fields of the task, without who does it and in which layout."""
        choices = _CHOICES[self.kind]
        return tuple(entry for entry in self.key if entry[0] not in choices)

    @property
    def seconds(self) -> float:
        """The mean where batches of networks are timed, as in the paper, else the median."""
        return self.median if self.kind in ("ceiling", *SWEEPS) else self.mean

    @property
    def wrong(self) -> str | None:
        """The error of a wrong result of a peer, whose time then counts for nothing."""
        return self.info.get("wrong")

    @property
    def is_pytorch(self) -> bool:
        return bool(self.info.get("is_pytorch"))

    @property
    def operation(self) -> str | None:
        """The operation of a `shapes.Case`."""
        return self.subject.get("operation")

    @property
    def who(self) -> str:
        """Implementation and layout, as tables call them."""
        if self.kind not in SWEEPS:
            return str(self.subject.get("way", ""))
        layout = self.subject["layout"]
        return self.subject["peer"] + ("" if layout == "contiguous" else f", {layout}")

    def __str__(self) -> str:
        values = " ".join(f"{value}" for name, value in self.subject.items())
        return f"{self.kind} {values}"


@dataclass(frozen=True)
class Run:
    """The records of one machine.

    Attributes:
        machine: hardware and versions, see machine.py.
        ceilings: of the latest file that has them; all records are held against these.
        commits, dates: of the files, in their order.
        selections: names of the lists that were measured.
        records: the latest of each key.
        skipped: number of measurements skipped, by reason.
        facts: all else that a visit found out, in its order: checks, failures, phases.
    """

    machine: dict[str, Any]
    ceilings: Ceilings | None
    commits: list[str]
    dates: list[str]
    selections: list[str]
    records: list[Record]
    skipped: dict[str, int]
    facts: list[Fact]

    @property
    def on_gpu(self) -> bool:
        return bool(self.machine["kind"] == "cuda")

    def of(self, kind: str) -> list[Record]:
        return [each for each in self.records if each.kind == kind]


class UsageError(Exception):
    """A file or a combination of files that cannot be reported on; says which and why."""


def exit_code(program: str, command: Callable[[], None]) -> int:
    """Run a command; where it raises UsageError, print that in a line and return 2."""
    try:
        command()
    except UsageError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    return 0


def load(paths: Sequence[Path]) -> Run:
    """Read the results of `make gpu` or `pytest benchmarks --benchmark-json`; later files win.

    Raises:
        UsageError: a file is neither, it does not say on what it was measured, or the files are
            from different machines.
    """
    files = [_read(path) for path in paths]
    ceilings = [Ceilings(**content["ceilings"]) for content in files if content["ceilings"]]
    records: dict[Key, Record] = {}
    skipped: dict[str, int] = {}
    for path, content in zip(paths, files, strict=True):
        for name in ("device", "kind"):
            mine, first = content["machine_info"][name], files[0]["machine_info"][name]
            if mine != first:
                raise UsageError(f"{path}: measured on {mine}, {paths[0]} on {first}")
        for entry in content["benchmarks"] if ceilings else ():
            _hold_against(entry, ceilings[-1])
        records.update((found.key, found) for found in map(record, content["benchmarks"]))
        for reason, count in content["skipped"].items():
            skipped[reason] = skipped.get(reason, 0) + count
    return Run(
        machine=files[-1]["machine_info"],
        ceilings=ceilings[-1] if ceilings else None,
        commits=list(dict.fromkeys(commit_name(content["commit_info"]) for content in files)),
        dates=list(dict.fromkeys(content["datetime"][:10] for content in files)),
        selections=list(dict.fromkeys(content["selection"] for content in files)),
        records=list(records.values()),
        skipped=skipped,
        facts=[fact for content in files for fact in content.get("facts", [])],
    )


def _read(path: Path) -> dict[str, Any]:
    content = read_visit(path) if path.suffix == ".jsonl" else _read_benchmarks(path)
    if content["machine_info"] is None:
        raise UsageError(f"{path}: ended before it knew on what machine it was")
    return content


def read_visit(path: Path) -> dict[str, Any]:
    """Facts of a visit in the form in which pytest-benchmark stores measurements.

    Raises:
        UsageError: the file does not hold facts.
    """
    try:
        found = facts.read(path)
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file") from None
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    began, machines, ceilings = (
        facts.fields(each[-1]) if each else None
        for each in (facts.of(found, name) for name in ("begin", "machine", "ceilings"))
    )
    if began is None:
        raise UsageError(f"{path}: not written by `make gpu`")
    entries = [
        {key: fact[key] for key in ("extra_info", "stats")} for fact in facts.of(found, "measured")
    ]
    reasons = Counter(fact["reason"] for fact in facts.of(found, "skipped"))
    return {
        "machine_info": machines,
        "commit_info": began["commit"],
        "datetime": began["time"],
        "selection": began["selection"],
        "ceilings": ceilings,
        "benchmarks": entries,
        "skipped": dict(reasons),
        "facts": [fact for fact in found if fact["fact"] not in _STORED_ELSEWHERE],
    }


_STORED_ELSEWHERE = ("machine", "ceilings", "measured", "skipped")


def add_provenance(to: Facts, selection: str, commit: dict[str, Any], **more: Any) -> None:
    """Begin a file of facts with the list that is measured, the commit and the time."""
    time = datetime.now(timezone.utc).isoformat(timespec="seconds")
    to.add("begin", selection=selection, commit=commit, time=time, **more)


def _hold_against(entry: dict[str, Any], ceilings: Ceilings) -> None:
    info = entry["extra_info"]
    if "bytes" in info:
        work = Work(info["bytes"], info["operations"])
        info |= ceilings.reached(work, entry["stats"]["median"])


def _read_benchmarks(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file") from None
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict) or "selection" not in content:
        raise UsageError(f"{path}: not written by `pytest benchmarks --benchmark-json`")
    return content


def commit_name(information: dict[str, Any]) -> str:
    """Return the first digits of a commit, and whether there were changes beside it."""
    return information["id"][:12] + (" with changes" if information.get("dirty") else "")


def record(benchmark: dict[str, Any]) -> Record:
    """Make a record of an entry of pytest-benchmark."""
    info, stats = dict(benchmark["extra_info"]), benchmark["stats"]
    return Record(
        kind=info.pop("kind"),
        subject=info.pop("subject"),
        median=stats["median"],
        mean=stats["mean"],
        noise=noise(stats["median"], stats["iqr"]),
        info=info,
    )


def fastest(records: Iterable[Record]) -> Record | None:
    """The fastest of those whose results are right."""
    right = (each for each in records if not each.wrong)
    return min(right, key=lambda each: each.seconds, default=None)


def best_pytorch(records: Iterable[Record]) -> dict[Key, Record]:
    """PyTorch's fastest way for each task, whatever its layout and settings."""
    best: dict[Key, Record] = {}
    for each in records:
        known = best.get(each.task)
        if each.is_pytorch and not each.wrong and (known is None or each.seconds < known.seconds):
            best[each.task] = each
    return best


def backward_passes(blocks: Sequence[Record]) -> list[Record]:
    """The backward passes of blocks: the time of both passes less that of the forward pass alone.

    They are records of the operation "backward", of whoever has both times in a layout. A
    difference that noise explains is none.
    """
    forward = {_who_and_what(each): each for each in blocks if each.operation == "training_forward"}
    found = []
    for both in blocks:
        alone = forward.get(_who_and_what(both))
        if both.operation != "training" or alone is None or both.wrong or alone.wrong:
            continue
        seconds = both.median - alone.median
        uncertain = both.noise * both.median + alone.noise * alone.median
        if seconds <= uncertain:
            continue
        moved = both.info["bytes"] - alone.info["bytes"]
        info = {
            "is_pytorch": both.is_pytorch,
            "bytes": moved,
            "operations": both.info["operations"] - alone.info["operations"],
        }
        if share := both.info.get("share_of_copy"):
            copy_rate = both.info["bytes"] / both.median / share
            info["share_of_copy"] = moved / seconds / copy_rate
        subject = {**both.subject, "operation": "backward"}
        found.append(Record("block", subject, seconds, seconds, uncertain / seconds, info))
    return found


def _who_and_what(block: Record) -> Key:
    return tuple(entry for entry in block.key if entry[0] != "operation")


def add_ratios(benchmarks: list[dict[str, Any]]) -> None:
    """Note in each entry how fast it is against the best of PyTorch in the same run."""
    read = [record(entry) for entry in benchmarks]
    best = best_pytorch(read)
    for entry, mine in zip(benchmarks, read, strict=True):
        if baseline := best.get(mine.task):
            entry["extra_info"]["best_pytorch"] = baseline.who
            entry["extra_info"]["speedup_over_best_pytorch"] = speedup(
                mine.seconds, baseline.seconds
            )
