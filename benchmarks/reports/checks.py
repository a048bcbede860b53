"""Facts of a visit beside times: failures, checks, choices. This file needs no PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.lib.facts import Fact, of
from benchmarks.reports.formats import markdown
from benchmarks.reports.records import Run

# Facts of which each says that something is not as it should be.
_TROUBLE = ("wrong", "failed")
# Fields of a choice that need no name beside their value.
_WORDS = ("fact", "what", "headers", "shape", "dtype", "layout")


def is_right(fact: Fact) -> bool:
    """Tell whether a fact is as it should be; one that checks nothing is."""
    if fact["fact"] in ("wrong", "failed"):
        return False
    if fact["fact"] == "phase":
        return fact["outcome"] in ("done", "not begun", "interrupted", "out of time")
    if fact["fact"] == "measured":
        return "wrong" not in fact["extra_info"]
    if fact["fact"] == "checked":
        return fact["wrong"] == 0
    return bool(fact.get("clean", True) and fact.get("right", True))


def trouble(facts: Iterable[Fact]) -> list[str]:
    """A line for each wrong result and each failure."""
    lines = []
    for fact in facts:
        if fact["fact"] in _TROUBLE:
            lines.append(f"{fact['what']}: {fact['error']}")
        elif fact["fact"] == "measured" and not is_right(fact):
            subject = " ".join(str(value) for value in fact["extra_info"]["subject"].values())
            lines.append(f"{subject}: {fact['extra_info']['wrong']}")
        elif not is_right(fact):
            lines.append(_text(fact))
    return lines


def results(facts: Sequence[Fact]) -> list[str]:
    """A line for each check of kernels."""
    kinds = ("checked", "sanitizer", "planted fault")
    found = [fact for fact in facts if fact["fact"] in kinds and is_right(fact)]
    latest = {fact["part"]: fact for fact in facts if fact["fact"] == "suite"}
    return [_text(fact) for fact in [*found, *latest.values()]]


def micro(facts: Iterable[Fact]) -> list[list[str]]:
    """Rows of what was measured for choices: what, under which circumstances, and the number."""
    rows = []
    for fact in of(list(facts), "micro"):
        unit = "clocks" if "clocks" in fact else "microseconds"
        where = ["x".join(map(str, fact["shape"]))] if "shape" in fact else []
        where += [str(fact[name]) for name in ("headers", "dtype", "layout") if name in fact]
        where += [
            f"{name.replace('_', ' ')} {value}"
            for name, value in fact.items()
            if name not in (*_WORDS, "clocks", "microseconds")
        ]
        rows.append([str(fact["what"]), ", ".join(where), f"{fact[unit]} {unit}"])
    return rows


def phases(facts: Iterable[Fact]) -> list[str]:
    return [
        f"{fact['name']} {fact['outcome']} after {fact['seconds']} s"
        for fact in of(list(facts), "phase")
    ]


def report(run: Run) -> list[str]:
    """Parts of the report; none for results that check nothing but what they time."""
    parts = []
    wrong = trouble(run.facts)
    wrong += [f"{each}: {each.wrong}" for each in run.records if each.wrong]
    if wrong:
        parts += ["## Wrong or failed\n", _list(wrong)]
    if found := results(run.facts):
        parts += ["## Checked\n", _list(found)]
    if rows := micro(run.facts):
        parts += ["## Choices\n", markdown(["", "", "time"], rows, left=2)]
    return parts


def _text(fact: Fact) -> str:
    fields = (
        f"{name} {', '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in fact.items()
        if name != "fact" and value != []
    )
    return f"{fact['fact']}: {'; '.join(fields)}"


def _list(lines: list[str]) -> str:
    return "".join(f"- {' '.join(line.split())}\n" for line in lines)
