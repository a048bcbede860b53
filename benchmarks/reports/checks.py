"""Facts of a visit beside times: failures, checks, choices. This file needs no PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.lib.facts import Fact, fields, of
from benchmarks.reports.formats import NOTHING, digits, markdown
from benchmarks.reports.records import Run, commit_name

# Facts of which each says that something is not as it should be.
_TROUBLE = ("wrong", "failed")
# Fields of a choice that need no name beside their value, and those that are its value.
_WORDS = ("headers", "dtype", "layout", "way", "library")
_VALUES = ("clocks", "microseconds", "teraflops")
# The facts of `phases/splits.cu`, which have a table of their own.
_SPLITS = "splits"


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
    """Rows of what was measured for choices: what, under which circumstances, and the number.

    Of a choice that several files have, the last one counts.
    """
    rows = {}
    for fact in of(list(facts), "micro"):
        if fact["what"] == _SPLITS:
            continue
        where = ["x".join(map(str, fact["shape"]))] if "shape" in fact else []
        where += [str(fact[name]) for name in _WORDS if name in fact]
        where += [
            f"{name.replace('_', ' ')} {value}"
            for name, value in fields(fact).items()
            if name not in ("what", "shape", *_WORDS, *_VALUES)
        ]
        values = [f"{fact[name]} {name}" for name in _VALUES if name in fact]
        what, place = str(fact["what"]), ", ".join(where)
        rows[what, place] = [what, place, ", ".join(values)]
    return list(rows.values())


def splits(facts: Iterable[Fact]) -> list[list[str]]:
    """Rows of the numbers of splits that were tried: a header, then a row for each task.

    A row names the number that the planner of that time chose, and the fastest one.
    """
    tasks: dict[str, dict[int, Fact]] = {}
    for fact in of(list(facts), "micro"):
        if fact["what"] == _SPLITS:
            shape = "x".join(str(fact[name]) for name in ("images", "channels", "plane", "plane"))
            task = f"{fact['pass']}, {fact['layout']}, {shape}"
            tasks.setdefault(task, {})[fact["splits"]] = fact
    rows = []
    for task, tried in tasks.items():
        planned = next(fact for fact in tried.values() if fact["planned"])
        best = min(tried.values(), key=lambda fact: float(fact["microseconds"]))
        rows.append([task, _split(planned), _split(best)])
    return [["splits, k = 9, float16", "planned", "fastest"], *rows] if rows else []


def _split(fact: Fact) -> str:
    return f"{fact['splits']}: {fact['microseconds']} µs"


def copies(facts: Iterable[Fact]) -> list[list[str]]:
    """Rows of the ways to copy: the way, the bytes that it moved, and its rate."""
    return [
        [
            f"{fact['way']}",
            f"{fact['bytes'] / 1e6:,.0f} MB",
            f"{fact['bytes_per_second'] / 1e9:,.0f} GB/s",
        ]
        for fact in of(list(facts), "copy")
    ]


def counters(facts: Iterable[Fact]) -> list[list[str]]:
    """Rows of what Nsight Compute counted: a header, then a row for each launch."""
    found = of(list(facts), "counters")
    names = list(dict.fromkeys(name for fact in found for name in fields(fact)))
    header = [name.replace("_", " ") for name in names]
    rows = [[_cell(fact.get(name)) for name in names] for fact in found]
    return [header, *rows] if rows else []


def profiles(facts: Iterable[Fact]) -> list[list[str]]:
    """Rows of profiled calls: a header, then milliseconds of each kind of kernels and of all."""
    found = of(list(facts), "profile of a call")
    kinds = list(dict.fromkeys(kind for fact in found for kind in fact["kinds"]))
    rows = [
        [
            f"{fact['network']}, {fact['way']}, {'training' if fact['training'] else 'inference'}",
            *(_milliseconds(fact["kinds"].get(kind)) for kind in kinds),
            _milliseconds(fact["microseconds"]),
        ]
        for fact in found
    ]
    return [["milliseconds of kernels", *kinds, "all"], *rows] if rows else []


def _milliseconds(microseconds: float | None) -> str:
    return NOTHING if microseconds is None else digits(microseconds / 1e3)


def _cell(value: object) -> str:
    if value is None:
        return NOTHING
    return digits(value) if isinstance(value, float) else str(value)


def phases(facts: Iterable[Fact]) -> list[str]:
    return [
        f"{fact['name']} {fact['outcome']} after {fact['seconds']} s"
        for fact in of(list(facts), "phase")
    ]


def report(run: Run) -> list[str]:
    """Parts of the report; none for results that check nothing but what they time."""
    parts = []
    wrong = [f"{each}: {each.wrong}" for each in run.records if each.wrong]
    for began, others in reversed(_visits(run.facts)):
        commit = commit_name(began["commit"])
        wrong += [f"{began['time'][:16]}, commit {commit}: {line}" for line in trouble(others)]
    if wrong:
        parts += ["## Wrong or failed\n", _list(wrong)]
    if found := results(run.facts):
        parts += ["## Checked\n", _list(found)]
    if rows := micro(run.facts):
        parts += ["## Choices\n", markdown(["", "", "time"], rows, left=2)]
    for title, rows in (
        ("Splits", splits(run.facts)),
        ("Copies", [["", "", "rate"], *copies(run.facts)]),
        ("Time of networks by kernels", profiles(run.facts)),
        ("Hardware counters", counters(run.facts)),
    ):
        if rows[1:]:
            parts += [f"## {title}\n", markdown(rows[0], rows[1:])]
    return parts


def _visits(facts: Iterable[Fact]) -> list[tuple[Fact, list[Fact]]]:
    """The first fact of each visit, and those after it."""
    visits: list[tuple[Fact, list[Fact]]] = []
    for fact in facts:
        if fact["fact"] == "begin":
            visits.append((fact, []))
        else:
            visits[-1][1].append(fact)
    return visits


def _text(fact: Fact) -> str:
    words = (
        f"{name} {', '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in fields(fact).items()
        if value != []
    )
    return f"{fact['fact']}: {'; '.join(words)}"


def _list(lines: list[str]) -> str:
    return "".join(f"- {' '.join(line.split())}\n" for line in lines)
