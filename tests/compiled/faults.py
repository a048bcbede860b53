"""Faults planted in PTX, one at a time, where a case executes it; each must be noticed."""

from __future__ import annotations

import functools
import os
import random
import re
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from convmixer_kernels import emulated_gpu

from .running import SETTINGS, gpu_of, run
from .steps import Case, prepare

Shape = tuple[int, int, int, int]
_PLANES = ((3, 2, 20, 44), (5, 9, 50, 41), (1, 5, 70, 48), (40, 2, 9, 44))
_WHOLE = ((9, 5, 16, 16), (40, 9, 16, 16))
_PIXELS = ((2, 16, 20, 44), (3, 11, 50, 41), (1, 40, 70, 47), (40, 8, 9, 44))
_VALUES = ((9, 3, 16, 16), (19, 9, 32, 24), (3, 5, 7, 9))


def _cases(operation: str, shapes: Iterable[Shape], layout: str = "contiguous") -> tuple[Case, ...]:
    """The first in one share of the images, the others in several."""
    return tuple(
        Case(operation, shape, 9, torch.bfloat16, layout, multiprocessors=7 if number else 1)
        for number, shape in enumerate(shapes)
    )


# For each family of kernels, the cases of which one must notice a fault; the first one chooses the
# kernels, the others are for the same ones: other alignments, more items, channels left over.
FAMILIES = {
    "forward, whole planes": _cases("forward", _WHOLE),
    "forward": _cases("forward", _PLANES),
    "weight gradient": _cases("weight_gradient", _PLANES),
    "channels_last forward": _cases("forward", _PIXELS, "channels_last"),
    "channels_last weight gradient": _cases("weight_gradient", _PIXELS, "channels_last"),
    "fused forward": _cases("forward_normalised", _PLANES),
    "fused channels_last forward": _cases("forward_normalised", _PIXELS, "channels_last"),
    "moments forward": _cases("forward_moments", _WHOLE),
    "backward": _cases("fused_backward", _WHOLE),
    "batch norm": _cases("statistics", _VALUES),
    "channels_last batch norm": _cases("statistics", _PIXELS, "channels_last"),
}
SECONDS = 5  # seconds of processor time; a kernel with a fault may not end


@dataclass(frozen=True)
class Fault:
    """One instruction of a kernel, changed; `line` counts in the file of PTX."""

    family: str
    kernel: str
    kind: str
    line: int
    before: str
    after: str

    def __str__(self) -> str:
        name = re.sub(r"^_ZN9depthwise\d+", "", self.kernel)[:40]
        return (
            f"{self.family}, {name}, line {self.line}, {self.kind}: {self.before} -> {self.after}"
        )


# ---- kinds of faults -----------------------------------------------------------------------------


def _other_register(line: str, registers: list[str], pick: random.Random) -> str | None:
    """Read another register of the same kind than the right one."""
    sources = list(re.finditer(r"%(?:rd|rs|r|f|p)\d+", line))[1:]
    if not sources or line.startswith(("@", "st", "cp", "shr")):
        return None  # a shift to the right is mostly the sign of an index, never negative
    source = pick.choice(sources)
    kind = re.match(r"%[a-z]+", source[0])
    assert kind is not None
    others = [each for each in registers if re.fullmatch(kind[0] + r"\d+", each)]
    others = [each for each in others[-6:] if each != source[0]]
    if not others:
        return None
    return line[: source.start()] + pick.choice(others) + line[source.end() :]


def _other_offset(line: str, registers: list[str], pick: random.Random) -> str | None:
    """Accesses memory further on."""
    found = re.search(r"\[(%\w+)(?:\+(-?\d+))?\]", line)
    if not found:
        return None
    step = pick.choice((2, 4, 16, 64))
    return f"{line[: found.start()]}[{found[1]}+{int(found[2] or 0) + step}]{line[found.end() :]}"


def _negated_predicate(line: str, registers: list[str], pick: random.Random) -> str | None:
    if line.startswith("@"):
        return line.replace("@!%", "@%", 1) if line.startswith("@!") else "@!" + line[1:]
    opposite = {"lt": "ge", "ge": "lt", "gt": "le", "le": "gt", "eq": "ne", "ne": "eq"}
    found = re.match(r"setp\.(\w\w)\.(?=[us]\d|b)", line)
    return None if not found else line.replace(found[1], opposite[found[1]], 1)


def _other_constant(line: str, registers: list[str], pick: random.Random) -> str | None:
    # Reciprocals of divisions, and shifts of a sign that is never negative, are left alone.
    found = re.fullmatch(r"((?:add|sub|mul\.lo|mad|shl)\.\S+\s.*, )(-?\d{1,5});", line)
    return None if not found else f"{found[1]}{int(found[2]) + pick.choice((-1, 1))};"


def _cut_off(line: str, registers: list[str], pick: random.Random) -> str | None:
    """Rounds towards zero instead of to the nearest."""
    return line.replace(".rn.", ".rz.", 1) if re.match(r"(?:\{ )?cvt\.rn\.b?f16", line) else None


def _removed(pattern: str) -> Callable[[str, list[str], random.Random], str | None]:
    return lambda line, registers, pick: "" if re.match(pattern, line) else None


def _shorter_wait(line: str, registers: list[str], pick: random.Random) -> str | None:
    found = re.fullmatch(r"cp\.async\.wait_group (\d+);", line)
    return None if not found else f"cp.async.wait_group {int(found[1]) + 1};"


def _other_layout(line: str, registers: list[str], pick: random.Random) -> str | None:
    """Take matrices transposed, or bfloat16 for float16."""
    if line.startswith("ldmatrix"):
        if ".trans" in line:
            return line.replace(".trans", "")
        return re.sub(r"\.shared", ".trans.shared", line, count=1)
    if line.startswith("mma"):
        return line.replace("bf16.bf16", "f16.f16")
    return None


KINDS: dict[str, Callable[[str, list[str], random.Random], str | None]] = {
    "register": _other_register,
    "offset": _other_offset,
    "predicate": _negated_predicate,
    "constant": _other_constant,
    "rounding": _cut_off,
    "layout": _other_layout,
    "block barrier removed": _removed(r"bar\.sync|barrier\.sync"),
    "warp barrier removed": _removed(r"bar\.warp\.sync"),
    "wait removed": _removed(r"cp\.async\.wait_group"),
    "wait for too few": _shorter_wait,
    "commit removed": _removed(r"cp\.async\.commit_group"),
}


# ---- planting ------------------------------------------------------------------------------------


class Module:
    """A file of PTX, one of whose kernels can be changed and loaded again."""

    def __init__(self, file: str) -> None:
        with open(file) as text:
            self.file, self.lines = file, text.read().split("\n")
        entries = [number for number, line in enumerate(self.lines) if ".entry " in line]
        self._head = self.lines[: entries[0]]
        self._spans = {}
        for first, after in zip(entries, [*entries[1:], len(self.lines)], strict=True):
            name = re.search(r"\.entry (\w+)\(", self.lines[first])
            assert name is not None
            end = next(n for n in range(first, after) if self.lines[n] == "}")
            self._spans[name[1]] = first, end + 1
        self._files = [line for line in self.lines if line.startswith(".file")]
        self._without_extra_barriers()

    def _without_extra_barriers(self) -> None:
        """Leave out the barriers that only keep ptxas from loading early.

        They would stand in for the others. So would the one that ends Bands::load: each kernel has
        another one before it writes there.
        """
        source = (emulated_gpu.CSRC / "toeplitz.cuh").read_text().split("\n")
        early = next(n for n, line in enumerate(source, 1) if "void load_no_further()" in line)
        bands = max(n for n, line in enumerate(source[: early - 1], 1) if "__syncwarp" in line)
        file = next((f.split()[1] for f in self._files if f.endswith('toeplitz.cuh"')), None)
        inlined = tuple(f"inlined_at {file} {at} " for at in (early, bands))
        place = ""
        for number, line in enumerate(self.lines):
            if line.startswith(".loc"):
                place = line + " "
            elif line.startswith("bar.warp.sync") and any(each in place for each in inlined):
                self.lines[number] = ""

    def instructions(self, kernel: str) -> Iterator[tuple[int, str]]:
        """Number, from 1, and text of each line of a kernel."""
        first, end = self._spans[kernel]
        for number in range(first, end):
            yield number + 1, self.lines[number].strip()

    def changed(self, fault: Fault) -> str:
        """A module of the kernel alone, with the fault."""
        first, end = self._spans[fault.kernel]
        body = self.lines[first:end]
        body[fault.line - 1 - first] = fault.after
        return "\n".join([*self._head, *body, *self._files, ""])


def faults(family: str, of_each_kind: int, seed: int = 1) -> list[tuple[Fault, Module]]:
    """Faults at instructions that the case of a family executes, some of each kind, at random."""
    case = FAMILIES[family][0]
    interpreter = emulated_gpu.interpreter()
    before = {each.name: each.launches for each in interpreter.kernels()}
    step, _ = prepare(case)
    with gpu_of(case) as backend:
        step(backend)
    kernels = [each for each in interpreter.kernels() if each.launches > before.get(each.name, 0)]
    pick = random.Random(f"{family} {seed}")
    possible: dict[str, list[tuple[Fault, Module]]] = {kind: [] for kind in KINDS}
    for kernel in kernels:
        module = Module(emulated_gpu.files()[kernel.name])
        idle = {each.line for each in interpreter.unexecuted(kernel.name)}
        registers: list[str] = []
        choices = _choices_of_divisions(module, kernel.name)
        for number, line in module.instructions(kernel.name):
            # Inline assembly may stand in braces.
            if (
                not re.match(r"(?:@|\{ )?!?%?\w[\w.]*\s*.*;(?: ?\})?$", line)
                or number in idle | choices
            ):
                continue
            for kind, plant in KINDS.items():
                after = plant(line, registers, pick)
                if after is not None:
                    fault = Fault(family, kernel.name, kind, number, line, after)
                    possible[kind].append((fault, module))
            if target := re.match(r"[\w.]+\s+(%\w+),", line):
                registers.append(target[1])
    return [
        chosen
        for kind in KINDS
        for chosen in pick.sample(possible[kind], min(of_each_kind, len(possible[kind])))
    ]


def _choices_of_divisions(module: Module, kernel: str) -> set[int]:
    """Lines that choose between divisions of 32 and of 64 bits, either of which is right."""
    lines, high = set(), ""
    for number, line in module.instructions(kernel):
        if found := re.match(
            r"(?:and\.b64 (%rd\d+), .*, -4294967296|setp\.\S+ (%p\d+), (%rd\d+), 0);", line
        ):
            if found[1] or found[3] == high:
                high = found[1] or found[2]
                lines.add(number)
        elif high and re.match(rf"@!?{high} bra", line):
            lines.add(number)
    return lines


def notice(fault: Fault, module: Module) -> str:
    """The first sign of a fault, in a line; empty if there is none."""
    return in_a_process_of_its_own(FAMILIES[fault.family], module.file, module.changed(fault))


@functools.cache
def _load_kernels(case: Case) -> None:
    """Launch the extension's own kernels, which loads them, before others take their place."""
    run(case, SETTINGS[:1])


def in_a_process_of_its_own(cases: tuple[Case, ...], file: str, text: str) -> str:
    """The first problem that any case shows with the kernels of `text`, in a line.

    A process of its own runs them, and is ended if a kernel does not end.
    """
    for case in cases:
        _load_kernels(case)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            emulated_gpu.interpreter().load(file, text)
            found = next((problem for case in cases for problem in run(case).problems), "")
        except BaseException as error:
            found = f"{type(error).__name__}: {error}"
        os.write(writer, found.replace("\n", " ")[:300].encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        found = stream.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    return found if status == 0 else f"ended by signal {os.WTERMSIG(status)}"
