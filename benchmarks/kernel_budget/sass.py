"""Registers, spills and the instructions of the main loop, read from machine code."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import toolchain

# The columns of an instruction mix, in the order in which they are printed. FFMA stands for all
# floating-point arithmetic, integer for addresses, predicates and bit operations.
CLASSES = (
    *("HMMA", "LDSM", "LDS", "STS", "LDGSTS", "LDG", "STG", "MUFU", "FFMA"),
    *("integer", "MOV", "LDL", "STL", "other"),
)

_NAMED_CLASSES = {"LDSM", "LDS", "STS", "LDGSTS", "LDG", "STG", "MUFU", "LDL", "STL"}
_FLOAT = re.compile(r"FFMA|FMUL|FADD|FMNMX|FSEL|FSETP|HFMA2|HMUL2|HADD2|HMNMX2|HSETP2")
_INTEGER = re.compile(
    r"U?(IADD|IMAD|IMNMX|ISETP|IABS|LEA|LOP|PLOP|SHF|SHL|SHR|PRMT|SEL|SGXT|BMSK|BREV|FLO|POPC|"
    r"VIADD|VIADDMNMX|VIMNMX|P2R|R2P)\d?"
)
_MOVE = re.compile(r"U?MOV|IMAD\.MOV|CS2R|R2UR")

_FUNCTION = re.compile(r"^\s*Function : (\S+)$", re.M)
# cuobjdump 12.8 notes the scheduling of sm_120 behind the operands: "&req={0} ?trans6".
_INSTRUCTION = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)"
    r"\s*([^;&?]*?)\s*(?:[&?][^;]*)?;",
    re.M,
)
_USAGE = re.compile(r"^\s*Function (\S+):\s+REG:(\d+) STACK:\d+ SHARED:(\d+)", re.M)


@dataclass(frozen=True)
class Instruction:
    """One line of a disassembly, such as ``@!P0 HMMA.16816.F32 R4, R8, R2, R4``."""

    address: int
    predicate: str | None
    opcode: str
    operands: str

    @property
    def base(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def target(self) -> int | None:
        """The address a branch names."""
        match = re.search(r"0x([0-9a-f]+)$", self.operands)
        return int(match[1], 16) if match else None


@dataclass(frozen=True)
class Kernel:
    """A kernel as `make budget` weighs it.

    All counts are static: an instruction counts once, however often it runs. Spills are in bytes a
    thread. `shared` is the shared memory in bytes that is not asked for at launch. `local_in_loops`
    counts the accesses to local memory in any main loop, `mix` the instructions of the main loop by
    class, where ``total`` is their sum.
    """

    name: str
    architecture: str
    registers: int
    shared: int
    spill_stores: int
    spill_loads: int
    local_in_loops: int
    mix: Counter[str]


def read_cubin(cubin: Path, architecture: str) -> list[Kernel]:
    """Every kernel of a cubin, by its mangled name.

    Raises:
        toolchain.Missing: no cuobjdump is installed.
        RuntimeError: cuobjdump cannot read the file; says why.
    """
    usage = {
        name: (int(registers), int(shared))
        for name, registers, shared in _USAGE.findall(_cuobjdump("-res-usage", cubin))
    }
    return [
        measure(name, architecture, instructions, *usage[name])
        for name, instructions in functions(_cuobjdump("-sass", cubin))
    ]


def extract_cubins(object: Path, folder: Path) -> list[tuple[str, Path]]:
    """Write the machine code in an object of the extension to `folder`.

    Returns:
        The architecture, as ``90``, and the file of each cubin; none of an object with PTX alone.

    Raises:
        toolchain.Missing: no cuobjdump is installed.
        RuntimeError: cuobjdump cannot read the file; says why.
    """
    folder.mkdir()
    _cuobjdump("-xelf", "all", object.resolve(), folder=folder)
    return [
        (re.findall(r"\.sm_(\d+)\.cubin$", cubin.name)[0], cubin)
        for cubin in sorted(folder.glob("*.cubin"))
    ]


def measure(
    name: str, architecture: str, instructions: list[Instruction], registers: int, shared: int
) -> Kernel:
    """Weigh a kernel, given its machine code and the assembler's report of its resources."""
    found = main_loops(instructions)
    in_loops = {each for loop in found for each in loop if each.base in ("LDL", "STL")}
    return Kernel(
        name=name,
        architecture=architecture,
        registers=registers,
        shared=shared,
        spill_stores=sum(_bytes(each) for each in instructions if each.base == "STL"),
        spill_loads=sum(_bytes(each) for each in instructions if each.base == "LDL"),
        local_in_loops=len(in_loops),
        mix=mix(_busiest(found)),
    )


def functions(disassembly: str) -> Iterator[tuple[str, list[Instruction]]]:
    """Split the output of ``cuobjdump -sass`` into functions."""
    pieces = _FUNCTION.split(disassembly)
    for name, body in zip(pieces[1::2], pieces[2::2], strict=True):
        yield (
            name,
            [
                Instruction(int(address, 16), predicate or None, opcode, operands)
                for address, predicate, opcode, operands in _INSTRUCTION.findall(body)
            ],
        )


def main_loops(instructions: list[Instruction]) -> list[list[Instruction]]:
    """The loops with matrix instructions, or those that touch global memory if there are none."""
    every = loops(instructions)
    with_matrix = [loop for loop in every if any(_is_matrix(each) for each in loop)]
    return with_matrix or [
        loop for loop in every if any(each.base in ("LDG", "LDGSTS", "STG") for each in loop)
    ]


def mix(instructions: Iterable[Instruction]) -> Counter[str]:
    """Count the instructions of each class, and all of them."""
    counts = Counter(_class(each) for each in instructions if each.base != "NOP")
    counts["total"] = counts.total()
    return counts


def loops(instructions: list[Instruction]) -> list[list[Instruction]]:
    """The natural loops, each in the order of its addresses.

    A loop is what can reach a branch back to its header, where the header dominates that branch:
    going by addresses alone would take a detour that was moved to the end of a kernel, and branches
    back from there, for a loop around everything in between.
    """
    blocks, successors = _flow(instructions)
    predecessors: list[list[int]] = [[] for _ in blocks]
    for block, following in enumerate(successors):
        for successor in following:
            predecessors[successor].append(block)
    bodies: dict[int, set[int]] = {}
    for latch, header in _back_edges(successors, predecessors):
        body = bodies.setdefault(header, {header})
        pending = [latch]
        while pending:
            block = pending.pop()
            if block not in body:
                body.add(block)
                pending += predecessors[block]
    return [[each for block in sorted(body) for each in blocks[block]] for body in bodies.values()]


def _flow(instructions: list[Instruction]) -> tuple[list[list[Instruction]], list[list[int]]]:
    """The basic blocks, and for each the blocks that may follow it."""
    leaders = {0}
    addresses = {each.address: index for index, each in enumerate(instructions)}
    for index, each in enumerate(instructions):
        if each.base in ("BRX", "BRXU", "JMX", "JMXU"):
            raise ValueError(f"indirect branch at {each.address:#x}: its targets are not known")
        if _leaves_block(each):
            leaders.add(index + 1)
            if each.target in addresses:
                leaders.add(addresses[each.target])
    starts = sorted(leaders - {len(instructions)})
    number = {start: block for block, start in enumerate(starts)}
    blocks = [
        instructions[start:end]
        for start, end in zip(starts, [*starts[1:], len(instructions)], strict=True)
    ]
    successors: list[list[int]] = []
    for block, body in enumerate(blocks):
        last = body[-1]
        following = []
        if not _never_continues(last) and block + 1 < len(blocks):
            following.append(block + 1)
        if _leaves_block(last) and last.target in addresses:
            following.append(number[addresses[last.target]])
        successors.append(following)
    return blocks, successors


def _leaves_block(instruction: Instruction) -> bool:
    return instruction.base in ("BRA", "JMP", "CALL", "RET", "EXIT")


def _never_continues(instruction: Instruction) -> bool:
    if instruction.predicate is not None:
        return False
    if instruction.base in ("RET", "EXIT"):
        return True
    # A condition may also stand before the target: BRA.U UP0, 0x80.
    return instruction.base in ("BRA", "JMP") and "," not in instruction.operands


def _back_edges(
    successors: list[list[int]], predecessors: list[list[int]]
) -> Iterator[tuple[int, int]]:
    """The edges to a block that dominates the block they come from."""
    order = _postorder(successors)
    rank = {block: position for position, block in enumerate(order)}
    # Cooper, Harvey and Kennedy, "A Simple, Fast Dominance Algorithm".
    dominator = {0: 0}
    changed = True
    while changed:
        changed = False
        for block in reversed(order[:-1]):
            known = [each for each in predecessors[block] if each in dominator]
            closest = known[0]
            for other in known[1:]:
                while closest != other:
                    if rank[closest] < rank[other]:
                        closest = dominator[closest]
                    else:
                        other = dominator[other]
            if dominator.get(block) != closest:
                dominator[block] = closest
                changed = True
    for block in order:
        above = {block, 0}
        ancestor = block
        while ancestor != 0:
            ancestor = dominator[ancestor]
            above.add(ancestor)
        for successor in successors[block]:
            if successor in above:
                yield block, successor


def _postorder(successors: list[list[int]]) -> list[int]:
    """The blocks that can be reached, each after those found through it; the entry comes last."""
    order = []
    seen = {0}
    path = [(0, iter(successors[0]))]
    while path:
        block, remaining = path[-1]
        for successor in remaining:
            if successor not in seen:
                seen.add(successor)
                path.append((successor, iter(successors[successor])))
                break
        else:
            order.append(block)
            path.pop()
    return order


def _busiest(found: list[list[Instruction]]) -> list[Instruction]:
    """The loop with the most matrix instructions, the innermost of those that have as many."""
    return max(found, key=lambda loop: (sum(map(_is_matrix, loop)), -len(loop)), default=[])


def _is_matrix(instruction: Instruction) -> bool:
    return instruction.base.endswith("MMA")


def _class(instruction: Instruction) -> str:
    if _is_matrix(instruction):
        return "HMMA"
    if instruction.base in _NAMED_CLASSES:
        return instruction.base
    # The compiler also moves constants with the half-precision units: HFMA2 R0, -RZ, RZ, 0, 0.
    if _MOVE.match(instruction.opcode) or "-RZ, RZ, " in instruction.operands:
        return "MOV"
    if _FLOAT.match(instruction.base):
        return "FFMA"
    return "integer" if _INTEGER.fullmatch(instruction.base) else "other"


def _bytes(access: Instruction) -> int:
    match = re.search(r"\.[US]?(8|16|64|128)\b", access.opcode)
    return int(match[1]) // 8 if match else 4


def _cuobjdump(*arguments: str | Path, folder: Path | None = None) -> str:
    """Run it in a folder, by default the current one, and return what it prints."""
    command = [str(each) for each in (toolchain.find_cuobjdump(), *arguments)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode != 0:
        said = (result.stderr or result.stdout).strip() or "it says nothing"
        raise RuntimeError(f"{' '.join(command)} exits with {result.returncode}: {said}")
    return result.stdout
