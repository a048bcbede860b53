"""A file of PTX as text: its kernels, and lines where a change could make no difference."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from convmixer_kernels import emulated_gpu

from .ptx_flow import Flow

_WARP_BARRIER, _BLOCK_BARRIER = r"bar\.warp\.sync", r"(?:bar|barrier)\.sync"


class Module:
    """A file of PTX, one of whose kernels can be changed and loaded again."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines = Path(file).read_text().split("\n")
        entries = [number for number, line in enumerate(self.lines) if ".entry " in line]
        self._head = self.lines[: entries[0]]
        self._spans = {}
        for first, after in zip(entries, [*entries[1:], len(self.lines)], strict=True):
            name = re.search(r"\.entry (\w+)\(", self.lines[first])
            assert name is not None
            self._spans[name[1]] = first, self._after_body(first, after)
        self._files = [line for line in self.lines if line.startswith(".file")]
        self._without_barriers_for_ptxas()

    def _after_body(self, first: int, after: int) -> int:
        """The line after the body that opens below `first`; braces within it open scopes."""
        depth = 0
        for number in range(first, after):
            depth += self.lines[number].count("{") - self.lines[number].count("}")
            if depth == 0 and "}" in self.lines[number]:
                return number + 1
        raise LookupError(f"{self.file}:{first + 1}: the body of this kernel does not end")

    def _without_barriers_for_ptxas(self) -> None:
        """Leave out the barriers that only keep ptxas from loading early.

        They would stand in for the others.
        """
        place = ""
        for number, line in enumerate(self.lines):
            if line.startswith(".loc"):
                place = line + " "
            elif re.match(_WARP_BARRIER, line) and self._inlined_at(_places().for_ptxas) in place:
                self.lines[number] = ""

    def _inlined_at(self, line: int) -> str:
        """The part of .loc that names a line of the header of the bands."""
        header = _places().header
        file = next((f.split()[1] for f in self._files if f.endswith(f'{header}"')), None)
        return f"inlined_at {file} {line} "

    def instructions(self, kernel: str) -> Iterator[tuple[int, str]]:
        """Number, from 1, and text of each line of a kernel."""
        first, end = self._spans[kernel]
        for number in range(first, end):
            yield number + 1, self.lines[number].strip()

    def alone(self, kernel: str, line: int = 0, text: str = "") -> str:
        """A module of one kernel, with another text in a line if one is given."""
        first, end = self._spans[kernel]
        body = self.lines[first:end]
        if line:
            body[line - 1 - first] = text
        return "\n".join([*self._head, *body, *self._files, ""])

    def first_line_alone(self) -> int:
        """The number, from 1, of the first line of a kernel in its module of one kernel."""
        return len(self._head) + 1

    def without_effect(self, kernel: str, executed: set[int]) -> set[int]:
        """Lines that can be changed without any difference if the others of `executed` run alone.

        Choices between divisions of 32 and of 64 bits, either of which is right; results that
        nothing reads; barriers with no two accesses to shared memory to keep apart that another
        barrier does not keep apart. The one after the bands were loaded is among these in most
        kernels, as copies go elsewhere.
        """
        flow = Flow(dict(self.instructions(kernel)), executed)
        barriers = self._idle_barriers(flow)
        return self._choices_of_divisions(kernel) | flow.unread_results() | barriers

    def _choices_of_divisions(self, kernel: str) -> set[int]:
        lines, high = set(), ""
        for number, line in self.instructions(kernel):
            if found := re.match(
                r"(?:and\.b64 (%rd\d+), .*, -4294967296|setp\.\S+ (%p\d+), (%rd\d+), 0);", line
            ):
                if found[1] or found[3] == high:
                    high = found[1] or found[2]
                    lines.add(number)
            elif high and re.match(rf"@!?{high} bra", line):
                lines.add(number)
        return lines

    def _idle_barriers(self, flow: Flow) -> set[int]:
        after_bands = self._inlined_at(_places().after_bands)
        idle, place = set(), ""
        for number, line in flow.lines.items():
            if line.startswith(".loc"):
                place = line + " "
            for barrier in (_WARP_BARRIER, _BLOCK_BARRIER):
                if re.match(barrier, line):
                    # Barriers of the block keep a warp's own accesses apart, too.
                    others = _BLOCK_BARRIER if barrier == _BLOCK_BARRIER else r"(?:bar|barrier)\."
                    before = flow.accesses(number, flow.before, others)
                    after = flow.accesses(number, flow.after, others)
                    conflict = before and after and "write" in before | after
                    if after_bands in place or not conflict:
                        idle.add(number)
        return idle


@functools.cache
def module_of(kernel: str) -> Module:
    """The module of the extension that has a kernel."""
    return _module(emulated_gpu.files()[kernel])


@functools.cache
def _module(file: str) -> Module:
    return Module(file)


class _Places(NamedTuple):
    """Lines of a header with barriers that are special."""

    header: str
    after_bands: int  # the one that ends Bands::load
    for_ptxas: int


@functools.cache
def _places() -> _Places:
    for header in sorted(emulated_gpu.CSRC.rglob("*.cuh")):
        last_barrier = 0
        for number, line in enumerate(header.read_text().split("\n"), 1):
            if "void load_no_further()" in line:
                return _Places(header.name, last_barrier, number)
            if "__syncwarp" in line:
                last_barrier = number
    raise LookupError(f"no header of {emulated_gpu.CSRC} defines load_no_further any more")
