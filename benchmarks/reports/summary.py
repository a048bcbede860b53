"""The short table at the end of a visit, from whatever facts there are. No PyTorch here."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.lib.arithmetic import Ceilings
from benchmarks.lib.facts import Fact, of
from benchmarks.lib.shapes import OPERATIONS
from benchmarks.reports import checks, records, tables
from benchmarks.reports.formats import aligned, digits, rate

_LONGEST_LINE = 200


def lines(path: Path, facts: list[Fact]) -> list[str]:
    """A table that fits a screen or two; the file holds every fact."""
    content = records.read_visit(path)
    found = [records.record(entry) for entry in content["benchmarks"]]
    ceilings = Ceilings(**content["ceilings"]) if content["ceilings"] else None
    shown = [*_machine(content, ceilings)]
    for kind in ("depthwise", "block"):
        if table := tables.terminal(found, ceilings, kind):
            shown += ["", *table]
    if ratios := tables.ratio_table(
        [each for each in found if each.kind == "depthwise"], OPERATIONS, terminal=True
    ):
        shown += ["", "times as fast as the best of PyTorch", *ratios.splitlines()]
    shown += _networks(found)
    extra = (
        ([["copy", "", ""], *checks.copies(facts)], 1),
        (checks.profiles(facts), 1),
        (checks.counters(facts), 1),
        ([["choice", "", ""], *checks.micro(facts)], 2),
        (checks.splits(facts), 1),
    )
    for rows, left in extra:
        if rows[1:]:
            shown += ["", *aligned(rows[0], rows[1:], left)]
    shown += ["", *checks.results(facts)]
    shown += [f"TROUBLE {line}" for line in checks.trouble(facts)]
    reasons = Counter(fact["reason"] for fact in of(facts, "skipped"))
    shown += [f"{count} not measured: {reason}" for reason, count in reasons.items()]
    shown += [f"phases: {'; '.join(checks.phases(facts)) or 'none has ended'}", f"facts: {path}"]
    return [line[:_LONGEST_LINE] if not line.startswith("phases") else line for line in shown]


def is_trouble(facts: list[Fact]) -> bool:
    return not all(map(checks.is_right, facts))


def _machine(content: dict[str, Any], ceilings: Ceilings | None) -> list[str]:
    machine = content["machine_info"] or {"device": "a machine that is not known yet"}
    commit = content["commit_info"]
    versions = [
        f"{name} {machine[name]}" for name in ("torch", "cudnn", "driver") if machine.get(name)
    ]
    dirty = " with changes" if commit["dirty"] else ""
    first = f"{machine['device']}, commit {commit['id'][:12]}{dirty}"
    rates = []
    if ceilings:
        rates = [
            f"copy {ceilings.bytes_per_second / 1e9:,.0f} GB/s, "
            f"{ceilings.dtype} products {rate(ceilings.operations_per_second)}"
        ]
    return [", ".join([first, *versions]), *rates]


def _networks(found: list[records.Record]) -> list[str]:
    rows = [
        [
            f"{each.kind}, {each.subject['network']}",
            each.who,
            f"{digits(each.info['images_per_second'])} images/s"
            + (" (wrong)" if each.wrong else "")
            + (" (host)" if tables.is_host_bound(each) else ""),
        ]
        for each in found
        if each.kind in ("inference", "training")
    ]
    return ["", *aligned(["network", "", ""], rows, left=2)] if rows else []
