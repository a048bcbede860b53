"""Preferences of `impl="auto"` from measured times, with the rows they come from.

    python benchmarks/preferences.py build/visit/visit.jsonl           prints them
    python benchmarks/preferences.py build/visit/visit.jsonl --write   puts them into preference.py

A kernel goes before PyTorch if it is at most 2 % slower than PyTorch at the forward pass, which is
all of inference, and at the three passes of training together, on every shape that was measured;
else it goes behind. Of those before PyTorch the usual first one stays unless another is faster by
more than 2 % in training, and at most 2 % slower at the forward pass. A kernel that was not
measured keeps its place behind the one that it usually follows.
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
KERNELS = tuple(name for name in IMPLEMENTATIONS if name != "torch")
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
        order: every implementation, in the order to try them in.
        times: of each implementation by the images and channels that PyTorch was measured on.
    """

    problem: Problem
    order: tuple[str, ...]
    times: dict[str, dict[Shape, Times]]

    @property
    def row(self) -> str:
        """Forward, and all three passes, of the largest shape."""
        problem = self.problem
        shape = max(self.times["torch"], key=lambda shape: shape[0] * shape[1])
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
    compared = {problem: _beside_pytorch(times) for problem, times in found.items()}
    return [
        Choice(problem, _ordered(times), times)
        for problem, times in sorted(compared.items(), key=lambda item: _place(item[0]))
        if len(times) > 1
    ]


def _beside_pytorch(times: dict[str, dict[Shape, Times]]) -> dict[str, dict[Shape, Times]]:
    """Keep the shapes that PyTorch was measured on, and the implementations with such shapes."""
    shapes = times.get("torch", {}).keys()
    kept = {
        name: {shape: each for shape, each in by_shape.items() if shape in shapes}
        for name, by_shape in times.items()
    }
    return {name: by_shape for name, by_shape in kept.items() if by_shape}


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


def _ordered(times: dict[str, dict[Shape, Times]]) -> tuple[str, ...]:
    pytorch = times["torch"]
    before: list[str] = []
    behind: list[str] = []
    side = before
    for name in KERNELS:
        if name in times:
            within = all(each.within(pytorch[shape]) for shape, each in times[name].items())
            side = before if within else behind
        side.append(name)
    # Those that were measured are ordered among themselves, the others keep their places.
    measured = iter(_fastest_first({name: times[name] for name in before if name in times}))
    placed = [next(measured) if name in times else name for name in before]
    return (*placed, "torch", *behind)


def _fastest_first(times: dict[str, dict[Shape, Times]]) -> list[str]:
    """Put the implementation first that no other overtakes."""
    if not times:
        return []
    # A shape that not all of them were measured on would count for some alone.
    common = set.intersection(*(set(by_shape) for by_shape in times.values()))
    whole = {shape: all(each[shape].training for each in times.values()) for shape in common}

    def total(name: str) -> float:
        return sum(_compared(times[name][shape], whole[shape]) for shape in common)

    def forward(name: str) -> float:
        return sum(times[name][shape].forward for shape in common)

    def is_overtaken(name: str) -> bool:
        return any(
            total(name) > MOST_SLOWER * total(other)
            and forward(other) <= MOST_SLOWER * forward(name)
            for other in times
        )

    first = next(name for name in KERNELS if name in times and not is_overtaken(name))
    return [first, *(name for name in times if name != first)]


def _compared(times: Times, whole: bool) -> float:
    """All passes, where everybody has them, else the forward pass."""
    return times.training if whole and times.training else times.forward


def _place(problem: Problem) -> tuple[object, ...]:
    layout = LAYOUTS.index(problem.layout)
    return problem.kernel_size, problem.dtype, layout, problem.plane


def entries(run: Run, found: Sequence[Choice]) -> list[str]:
    """`Measured(...)` of preference.py where the order is not the usual one.

    Neighbouring planes with one order become one range; between planes with different orders
    nothing is claimed.
    """
    groups: list[list[Choice]] = []
    for choice in found:
        last = groups[-1][-1] if groups else None
        if (
            last
            and last.order == choice.order
            and _place(last.problem)[:3] == _place(choice.problem)[:3]
        ):
            groups[-1].append(choice)
        else:
            groups.append([choice])
    return [_entry(run, group) for group in groups if group[0].order != IMPLEMENTATIONS]


def _entry(run: Run, group: Sequence[Choice]) -> str:
    first, last = group[0].problem, group[-1].problem
    architecture = architectures.find(tuple(run.machine["capability"])).name
    order = ", ".join(f'"{name}"' for name in group[0].order)
    rows = [choice.row for choice in group]
    where = f"{run.machine['device']}, commit {run.commits[-1]}"
    lines = [
        "    Measured(",
        f'        architecture="{architecture}",',
        f"        kernel_sizes=({first.kernel_size},),",
        f"        dtypes=(torch.{first.dtype},),",
        f'        layouts=("{_LAYOUT[first.layout]}",),',
        f"        sizes=({first.plane}, {last.plane}),",
        f"        order=({order}),",
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
        order = ", ".join(choice.order)
        print(f"k = {problem.kernel_size}, {problem.dtype}, {problem.layout}: {order}")
        print(f"    {choice.row}")
    text = source(entries(run, found))
    if into_source:
        write(text, PREFERENCES)
        print(f"wrote {PREFERENCES}")
    else:
        print(f"\n{text}", end="")


if __name__ == "__main__":
    sys.exit(main())
