"""``make budget``: registers, spills and instructions of every kernel, without a GPU.

Compiles the kernels or takes the objects of a build, reads the machine code and compares it with
the committed table budget.csv. Fails if a kernel has become worse than the table, if the table does
not list exactly the kernels there are, or if it gives no reason for a spill; the reason for one in
a main loop says so.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "csrc" / "build_tools")]

import cuda_build
import toolchain
from benchmarks.kernel_budget import sass

TABLE = Path(__file__).with_name("budget.csv")
# Those of the extension with all architectures.
ARCHITECTURES = tuple(map(str, toolchain.ALL_ARCHITECTURES))
# Numbers that must not grow; the classes of the mix are there to be read.
GUARDED = ("registers", "spill_stores", "spill_loads", "total")
NUMBERS = ("registers", "shared", "spill_stores", "spill_loads", *sass.CLASSES, "total")


@dataclass(frozen=True)
class Row:
    """A line of the table: a kernel for an architecture, made by a compiler."""

    compiler: str
    kernel: str
    architecture: str
    numbers: dict[str, int]
    local_in_loops: int = 0
    reason: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.family, self.kernel, self.architecture

    @property
    def family(self) -> str:
        """ "nvcc" or "triton": the compiler without its version."""
        return self.compiler.split()[0]

    @property
    def spills(self) -> bool:
        return self.numbers["spill_stores"] + self.numbers["spill_loads"] > 0

    def __str__(self) -> str:
        return f"{self.kernel} sm_{self.architecture}"


def row(compiler: str, kernel: sass.Kernel) -> Row:
    numbers = {
        "registers": kernel.registers,
        "shared": kernel.shared,
        "spill_stores": kernel.spill_stores,
        "spill_loads": kernel.spill_loads,
        **{name: kernel.mix[name] for name in (*sass.CLASSES, "total")},
    }
    return Row(compiler, kernel.name, kernel.architecture, numbers, kernel.local_in_loops)


def measure_cuda(architectures: list[str]) -> list[Row]:
    """Every kernel of csrc/, compiled for these architectures."""
    toolkit = toolchain.find_toolkit()
    cubins = cuda_build.build_cubins(toolkit, architectures, ROOT / "build" / "budget")
    return _read(cubins, toolkit)


def measure_objects(folder: Path) -> list[Row]:
    """Every kernel with machine code in the objects of a build of the extension.

    Raises:
        FileNotFoundError: a unit of csrc/ has no object in `folder`.
    """
    objects = [folder / f"{unit.name}.cu.o" for unit in cuda_build.cuda_units()]
    with tempfile.TemporaryDirectory() as extracted:
        cubins = [
            cubin
            for each in objects
            for cubin in sass.extract_cubins(each.resolve(strict=True), Path(extracted, each.stem))
        ]
        return _read(cubins, toolchain.find_toolkit())


def _read(cubins: list[tuple[str, Path]], toolkit: toolchain.Toolkit) -> list[Row]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        kernels = [
            kernel
            for found in pool.map(lambda each: sass.read_cubin(each[1], each[0]), cubins)
            for kernel in found
        ]
    names = readable_names([kernel.name for kernel in kernels])
    compiler = f"nvcc {toolkit.version}"
    return [row(compiler, replace(kernel, name=names[kernel.name])) for kernel in kernels]


def measure_triton(architectures: list[str]) -> list[Row]:
    """Every kernel that triton_kernels.py compiles; none where Triton is missing."""
    if not importlib.util.find_spec("triton"):
        print("budget: there is no triton, the Triton kernels are left out", file=sys.stderr)
        return []
    from benchmarks.kernel_budget import triton_kernels

    compiler = f"triton {metadata.version('triton')}"
    return [row(compiler, kernel) for kernel in triton_kernels.collect(architectures)]


def readable_names(mangled: list[str]) -> dict[str, str]:
    """Turn ``_Z17depthwise_forwardI6__halfLi9EE...`` into ``depthwise_forward<half, 9>``."""
    output = subprocess.run(
        ["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True
    ).stdout
    return dict(zip(mangled, map(readable, output.splitlines()), strict=True))


def readable(demangled: str) -> str:
    """Leave out the return type, the parameters, namespaces and the casts of constants."""
    name = demangled.replace("(anonymous namespace)::", "").removeprefix("void ")
    name = re.sub(r"\([\w: ]+\)(?=-?\d)", "", name)
    name = re.sub(r"\b\w+::", "", name.split("(")[0])
    return name.replace("__half", "half").replace("__nv_bfloat16", "bfloat16")


def read_table(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            Row(
                compiler=line["compiler"],
                kernel=line["kernel"],
                architecture=line["architecture"],
                numbers={name: int(line[name]) for name in NUMBERS},
                reason=line["reason"],
            )
            for line in csv.DictReader(file)
        ]


def write_table(path: Path, rows: Iterable[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["compiler", "kernel", "architecture", *NUMBERS, "reason"])
        for each in sorted(rows, key=_order):
            numbers = [each.numbers[name] for name in NUMBERS]
            writer.writerow([each.compiler, each.kernel, each.architecture, *numbers, each.reason])


def with_reasons(rows: list[Row], committed: list[Row]) -> list[Row]:
    """The measured rows with the reasons that the committed table gives for those that spill."""
    reasons = {each.key: each.reason for each in committed}
    return [replace(each, reason=reasons.get(each.key, "") if each.spills else "") for each in rows]


def table_problems(rows: list[Row], committed: list[Row]) -> list[str]:
    """List what is worse than in the committed table, and where the two do not match.

    Numbers of different versions of a compiler are not compared.
    """
    problems = []
    before = {each.key: each for each in committed}
    for each in rows:
        known = before.pop(each.key, None)
        if each.local_in_loops and "main loop" not in each.reason:
            problems.append(
                f"{each}: {each.local_in_loops} accesses to local memory in a main loop, "
                "and budget.csv gives no reason that says so"
            )
        elif each.spills and not each.reason:
            problems.append(f"{each}: spills outside main loops, and budget.csv gives no reason")
        if known is None:
            problems.append(f"{each}: not in budget.csv")
        elif known.compiler == each.compiler:
            problems += [
                f"{each}: {name} {each.numbers[name]}, in budget.csv {known.numbers[name]}"
                for name in GUARDED
                if each.numbers[name] > known.numbers[name]
            ]
    problems += [f"{gone}: in budget.csv, but there is no such kernel" for gone in before.values()]
    return problems


def render(rows: list[Row]) -> str:
    """An aligned table for each architecture; of the mix, instructions of the main loop."""
    blocks = []
    for compiler, architecture in sorted({(each.compiler, each.architecture) for each in rows}):
        listed = sorted(
            (
                each
                for each in rows
                if (each.compiler, each.architecture) == (compiler, architecture)
            ),
            key=_order,
        )
        header = ["kernel", *(name.replace("spill_", "") for name in NUMBERS)]
        lines = [header]
        lines += [[each.kernel, *(str(each.numbers[name]) for name in NUMBERS)] for each in listed]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        blocks.append(f"{compiler}, sm_{architecture}")
        for kernel, *numbers in lines:
            cells = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
            blocks.append("  ".join([kernel.ljust(widths[0]), *cells]))
        blocks.append("")
    for reason, count in Counter(each.reason for each in rows if each.reason).items():
        blocks.append(f"{count} kernels spill: {reason}")
    return "\n".join(blocks)


def _order(each: Row) -> tuple[object, ...]:
    """Sort key: compiler and architecture, then the name with its numbers taken as numbers."""
    parts = re.split(r"(\d+)", each.kernel)
    natural = [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
    return each.family, int(each.architecture), natural


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--update", action="store_true", help="write budget.csv anew, keeping its reasons"
    )
    parser.add_argument(
        "--only", default="", metavar="REGEX", help="kernels to list and to compare"
    )
    parser.add_argument(
        "--objects",
        type=Path,
        metavar="FOLDER",
        help="read the CUDA kernels of a build, as in build/cuda/90, and no others",
    )
    options = parser.parse_args(arguments)

    try:
        if options.objects:
            rows = measure_objects(options.objects)
        else:
            rows = measure_cuda(list(ARCHITECTURES)) + measure_triton(list(ARCHITECTURES))
    except (toolchain.Missing, FileNotFoundError) as error:
        print(f"make budget: {error}", file=sys.stderr)
        return 2
    measured = {(each.family, each.architecture) for each in rows}
    if not options.objects:
        measured |= {(family, each) for family, _ in measured for each in ARCHITECTURES}
    table = read_table(TABLE)
    committed = [each for each in table if (each.family, each.architecture) in measured]
    rows = with_reasons(rows, committed)
    if options.update:
        others = [each for each in table if (each.family, each.architecture) not in measured]
        write_table(TABLE, [*rows, *others])
        committed = rows

    rows, committed = (
        [each for each in listed if re.search(options.only, each.kernel)]
        for listed in (rows, committed)
    )
    print(render(rows))
    for compiler in sorted(
        {each.compiler for each in committed} - {each.compiler for each in rows}
    ):
        print(f"budget.csv holds numbers of {compiler}, which is not the one here: not compared")
    problems = table_problems(rows, committed)
    for problem in problems:
        print(f"budget: {problem}")
    if problems:
        print("budget: to accept the numbers as they are: python benchmarks/budget.py --update")
    print(f"budget: {len(rows)} kernels, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
