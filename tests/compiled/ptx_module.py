"""A file of PTX as text: its kernels, and lines where a change could make no difference."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

from convmixer_kernels import emulated_gpu

_WARP_BARRIER, _BLOCK_BARRIER = r"bar\.warp\.sync", r"(?:bar|barrier)\.sync"
# A copy writes at any time until it was waited for.
_SHARED_WRITE = r"st\.shared|stmatrix|cp\.async\.(?!commit)"
_SHARED_READ = r"ld\.shared|ldmatrix"


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
            end = next(n for n in range(first, after) if self.lines[n] == "}")
            self._spans[name[1]] = first, end + 1
        self._files = [line for line in self.lines if line.startswith(".file")]
        self._without_barriers_for_ptxas()

    def _without_barriers_for_ptxas(self) -> None:
        """Leaves out the barriers that only keep ptxas from loading early.

        They would stand in for the others. So would the one that ends Bands::load: each kernel has
        another one before it writes there.
        """
        source, places = _barriers_for_ptxas()
        file = next((f.split()[1] for f in self._files if f.endswith(f'{source}"')), None)
        inlined = [f"inlined_at {file} {line} " for line in places]
        place = ""
        for number, line in enumerate(self.lines):
            if line.startswith(".loc"):
                place = line + " "
            elif re.match(_WARP_BARRIER, line) and any(each in place for each in inlined):
                self.lines[number] = ""

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

    def without_effect(self, kernel: str) -> set[int]:
        """Lines that can be changed without any difference to what the kernel does.

        Choices between divisions of 32 and of 64 bits, either of which is right, and barriers with
        no two accesses to shared memory to keep apart that another barrier does not keep apart.
        """
        return self._choices_of_divisions(kernel) | self._idle_barriers(kernel)

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

    def _idle_barriers(self, kernel: str) -> set[int]:
        flow = _Flow(dict(self.instructions(kernel)))
        idle = set()
        for number, line in flow.lines.items():
            for barrier in (_WARP_BARRIER, _BLOCK_BARRIER):
                if re.match(barrier, line):
                    # Barriers of the block keep a warp's own accesses apart, too.
                    others = _BLOCK_BARRIER if barrier == _BLOCK_BARRIER else r"(?:bar|barrier)\."
                    before = flow.accesses(number, flow.before, others)
                    after = flow.accesses(number, flow.after, others)
                    if not (before and after and "write" in before | after):
                        idle.add(number)
        return idle


class _Flow:
    """Which lines of a kernel may run before and after which."""

    def __init__(self, lines: dict[int, str]) -> None:
        self.lines = lines
        labels = {line[:-1]: number for number, line in lines.items() if line.endswith(":")}
        self.after: dict[int, list[int]] = {number: [] for number in lines}
        self.before: dict[int, list[int]] = {number: [] for number in lines}
        for number, line in lines.items():
            target = re.match(r"(?:@!?%p\d+ )?bra(?:\.uni)? (\S+);", line)
            ends = re.match(r"bra|ret;|exit;|trap;", line)
            following = [] if ends or number + 1 not in lines else [number + 1]
            for each in following + ([labels[target[1]]] if target else []):
                self.after[number].append(each)
                self.before[each].append(number)

    def accesses(self, barrier: int, next_lines: dict[int, list[int]], until: str) -> set[str]:
        """ "read" or "write", of the accesses to shared memory up to other barriers."""
        found, seen, waiting = set(), {barrier}, list(next_lines[barrier])
        while waiting:
            number = waiting.pop()
            if number in seen:
                continue
            seen.add(number)
            line = re.sub(r"^@!?%p\d+ ", "", self.lines[number])
            if re.match(until, line):
                continue
            if re.match(_SHARED_WRITE, line):
                found.add("write")
            elif re.match(_SHARED_READ, line):
                found.add("read")
            waiting += next_lines[number]
        return found


@functools.cache
def module_of(kernel: str) -> Module:
    """The module of the extension that has a kernel."""
    return _module(emulated_gpu.files()[kernel])


@functools.cache
def _module(file: str) -> Module:
    return Module(file)


@functools.cache
def _barriers_for_ptxas() -> tuple[str, tuple[int, int]]:
    """The header that holds them and their lines there."""
    for header in sorted(emulated_gpu.CSRC.rglob("*.cuh")):
        last_barrier = 0
        for number, line in enumerate(header.read_text().split("\n"), 1):
            if "void load_no_further()" in line:
                return header.name, (number, last_barrier)
            if "__syncwarp" in line:
                last_barrier = number
    raise LookupError(f"no header of {emulated_gpu.CSRC} defines load_no_further any more")
