"""Changes between two results that noise does not explain."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.lib.arithmetic import LEAST_CHANGE, Change, change
from benchmarks.reports.formats import aligned, percent, seconds
from benchmarks.reports.records import Record, Run


def compare(before: Run, after: Run, least: float = LEAST_CHANGE) -> list[str]:
    """A line for each measurement that is faster or slower than noise explains, worst first."""
    old = {each.key: each for each in before.records}
    new = {each.key: each for each in after.records}
    pairs = [(old[key], new[key]) for key in new if key in old]
    changes = [(_change(*pair, least), *pair) for pair in pairs]
    beyond = sorted(
        (entry for entry in changes if entry[0].beyond_noise),
        key=lambda entry: entry[0].ratio,
        reverse=True,
    )
    lines = [_describe("before", before), _describe("after", after)]
    if before.machine["device"] != after.machine["device"]:
        lines.append("These are different machines: the changes are theirs as much as the code's.")
    if beyond:
        header = ["measurement", "before", "after", "change", "noise"]
        lines += ["", *aligned(header, [_row(*entry) for entry in beyond])]
    slower = sum(entry[0].ratio > 1 for entry in beyond)
    lines += [
        "",
        f"{len(pairs)} in both: {slower} slower, {len(beyond) - slower} faster, "
        f"{len(pairs) - len(beyond)} within noise; "
        f"{len(old.keys() - new.keys())} only before, {len(new.keys() - old.keys())} only after",
    ]
    return lines


def _change(before: Record, after: Record, least: float) -> Change:
    return change(before.seconds, after.seconds, (before.noise, after.noise), least)


def _row(found: Change, before: Record, after: Record) -> Sequence[str]:
    return (
        str(after),
        seconds(before.seconds),
        seconds(after.seconds),
        f"{100 * (found.ratio - 1):+.1f} %",
        percent(found.threshold),
    )


def _describe(word: str, run: Run) -> str:
    commits, dates = ", ".join(run.commits), ", ".join(run.dates)
    return f"{word}: {run.machine['device']}, commit {commits}, {dates}"
