"""Preferences of `impl="auto"` from measured times, with the rows they come from.

    python benchmarks/preferences.py build/visit/visit.jsonl           prints them
    python benchmarks/preferences.py build/visit/visit.jsonl --write   puts them into preference.py

An implementation may serve a problem if it is at most 2 % slower than PyTorch at the forward pass,
which is all of inference, and at the three passes of training together, on every shape that was
measured. Of those that may, the fastest in training is preferred; the usual first one stays unless
another is faster by more than 2 %.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the packages may not be installed

from benchmarks.lib.shapes import LAYOUTS, OPERATIONS
from benchmarks.reports import records
from benchmarks.reports.formats import seconds
from benchmarks.reports.records import Record, Run, UsageError
from convmixer_kernels import architectures
from convmixer_kernels.preference import IMPLEMENTATIONS

PREFERENCES = ROOT / "convmixer_kernels" / "preference.py"
BEGIN, END = "# measured:begin", "# measured:end"
MOST_SLOWER = 1.02
_PEERS = {"cuda": "cuda", "triton": "triton", "torch": "PyTorch"}
_LAYOUT = {"contiguous": "planar", "channels_last": "channels_last"}

Shape = tuple[int, int]


@dataclass(frozen=True)
class Problem:
    """A problem as `auto` distinguishes it."""

    kernel_size: int
    dtype: str
    layout: str
    plane: int


@dataclass(frozen=True)
class Times:
    """Seconds of one implementation on one shape; None for a pass that was not measured."""

    forward: float
    training: float | None

    def within(self, limit: Times) -> bool:
        if self.forward > MOST_SLOWER * limit.forward:
            return False
        if self.training is None or limit.training is None:
            return True
        return self.training <= MOST_SLOWER * limit.training


@dataclass(frozen=True)
class Choice:
    """The times measured for a problem, and the preference that follows.

    Attributes:
        faster: the implementation to try first.
        times: of each implementation by images and channels.
    """

    problem: Problem
    faster: str
    times: dict[str, dict[Shape, Times]]

    @property
    def row(self) -> str:
        """Forward, and all three passes, of the largest shape."""
        problem = self.problem
        shape = max(self.times[self.faster], key=lambda shape: shape[0] * shape[1])
        parts = []
        for name in IMPLEMENTATIONS:
            if found := self.times.get(name, {}).get(shape):
                passes = "" if found.training is None else f" and {seconds(found.training)}"
                parts.append(f"{name} {seconds(found.forward)}{passes}")
        size = f"{shape[0]}x{shape[1]}x{problem.plane}x{problem.plane}"
        return f"{size} forward and all passes: {', '.join(parts)}"


def choices(run: Run) -> list[Choice]:
    """A choice for each problem that PyTorch and a kernel were measured on."""
    found: dict[Problem, dict[str, dict[Shape, Times]]] = defaultdict(lambda: defaultdict(dict))
    for (problem, name, shape), by_operation in _grouped(run.of("depthwise")).items():
        if "forward" not in by_operation:
            continue
        whole = len(by_operation) == len(OPERATIONS)
        training = sum(by_operation.values()) if whole else None
        found[problem][name][shape] = Times(by_operation["forward"], training)
    return [
        Choice(problem, _faster(times), dict(times))
        for problem, times in sorted(found.items(), key=lambda item: _order(item[0]))
        if "torch" in times and len(times) > 1
    ]


def _grouped(
    measured: Iterable[Record],
) -> dict[tuple[Problem, str, Shape], dict[str, float]]:
    names = {peer: name for name, peer in _PEERS.items()}
    found: dict[tuple[Problem, str, Shape], dict[str, float]] = defaultdict(dict)
    for each in measured:
        subject = each.subject
        name = names.get(subject["peer"])
        if name is None or each.wrong:
            continue
        problem = Problem(*(subject[key] for key in ("kernel_size", "dtype", "layout", "plane")))
        shape = (subject["images"], subject["channels"])
        found[problem, name, shape][subject["operation"]] = each.seconds
    return found


def _faster(times: dict[str, dict[Shape, Times]]) -> str:
    pytorch = times["torch"]
    allowed = [
        name
        for name in IMPLEMENTATIONS
        if name in times
        and all(
            found.within(pytorch[shape]) for shape, found in times[name].items() if shape in pytorch
        )
    ]
    # A shape that not all of them were measured on would count for some alone.
    common = set.intersection(*(set(times[name]) for name in allowed))
    if not common:
        return allowed[0]

    def total(name: str) -> float:
        return sum(_compared(times[name][shape], whole[shape]) for shape in common)

    whole = {shape: all(times[each][shape].training for each in allowed) for shape in common}

    fastest = min(allowed, key=total)
    return next(name for name in allowed if total(name) <= MOST_SLOWER * total(fastest))


def _compared(times: Times, whole: bool) -> float:
    """All passes, where everybody has them, else the forward pass."""
    return times.training if whole and times.training else times.forward


def _order(problem: Problem) -> tuple[object, ...]:
    layout = LAYOUTS.index(problem.layout)
    return problem.kernel_size, problem.dtype, layout, problem.plane


def entries(run: Run, found: Sequence[Choice]) -> list[str]:
    """`Measured(...)` of preference.py where the first implementation is not the usual one.

    Neighbouring planes with one answer become one range; between planes with different answers
    nothing is claimed.
    """
    groups: list[list[Choice]] = []
    for choice in found:
        last = groups[-1][-1] if groups else None
        if (
            last
            and last.faster == choice.faster
            and _order(last.problem)[:3] == _order(choice.problem)[:3]
        ):
            groups[-1].append(choice)
        else:
            groups.append([choice])
    return [_entry(run, group) for group in groups if group[0].faster != IMPLEMENTATIONS[0]]


def _entry(run: Run, group: Sequence[Choice]) -> str:
    first, last = group[0].problem, group[-1].problem
    architecture = architectures.find(tuple(run.machine["capability"])).name
    rows = [choice.row for choice in group]
    where = f"{run.machine['device']}, commit {run.commits[-1]}"
    lines = [
        "    Measured(",
        f'        architecture="{architecture}",',
        f"        kernel_sizes=({first.kernel_size},),",
        f"        dtypes=(torch.{first.dtype},),",
        f'        layouts=("{_LAYOUT[first.layout]}",),',
        f"        sizes=({first.plane}, {last.plane}),",
        f'        faster="{group[0].faster}",',
        "        measurement=(",
        *(f'            "{line}"' for line in _wrapped("; ".join([*rows, where]))),
        "        ),",
        "    ),",
    ]
    return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    """Lines that fit between quotes in preference.py and make the text again, one after another."""
    lines = textwrap.wrap(text, 80)
    return [f"{line} " for line in lines[:-1]] + lines[-1:]


def source(found: Sequence[str]) -> str:
    """The text between the markers of preference.py."""
    if not found:
        return "MEASURED: tuple[Measured, ...] = ()\n"
    body = "\n".join(found)
    return f"MEASURED: tuple[Measured, ...] = (\n{body}\n)\n"


def write(text: str, path: Path) -> None:
    """Put the text between the markers.

    Raises:
        UsageError: the file has no markers.
    """
    pattern = re.compile(rf"({re.escape(BEGIN)}[^\n]*\n).*?({re.escape(END)})", re.DOTALL)
    replaced, count = pattern.subn(lambda match: match[1] + text + match[2], path.read_text())
    if count != 1:
        raise UsageError(f"{path}: there is no {BEGIN} ... {END}")
    path.write_text(replaced)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULT")
    parser.add_argument("--write", action="store_true", help=f"change {PREFERENCES.name}")
    options = parser.parse_args(arguments)
    return records.exit_code("preferences", partial(show, options.results, options.write))


def show(results: Sequence[Path], into_source: bool) -> None:
    """Print the preferences that follow from results, or write them into the source.

    Raises:
        UsageError: nothing follows from the results.
    """
    run = records.load(results)
    if not run.on_gpu:
        raise UsageError(f"{results[0]}: measured on a CPU, of which nothing follows")
    found = choices(run)
    for choice in found:
        problem = choice.problem
        print(f"k = {problem.kernel_size}, {problem.dtype}, {problem.layout}: {choice.faster}")
        print(f"    {choice.row}")
    text = source(entries(run, found))
    if into_source:
        write(text, PREFERENCES)
        print(f"wrote {PREFERENCES}")
    else:
        print(f"\n{text}", end="")


if __name__ == "__main__":
    sys.exit(main())
