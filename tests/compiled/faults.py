"""Faults planted in PTX, one at a time, where a case executes it; each must be noticed."""

from __future__ import annotations

import functools
import json
import os
import random
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass

import torch

from convmixer_kernels import emulated_gpu

from .fault_cases import FAMILIES
from .ptx_module import Module, module_of
from .running import SETTINGS, gpu_of, run
from .steps import Case, prepare

SECONDS = 4  # of processor time for a case: a kernel with a fault may not end


@dataclass(frozen=True)
class Fault:
    """One instruction of a kernel, changed; `line` counts in the file of PTX."""

    family: str
    cases: tuple[Case, ...]  # of which one must notice
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
    if not found:
        return None
    before = int(found[2])
    # One byte more is out of line in most addresses, and one element more is nothing to a counter
    # that goes on by many.
    near, far = (before - 1, before + 1), (2 * before, before // 2)
    return f"{found[1]}{pick.choice(near if abs(before) < 16 else far)};"


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
        other = "f16.f16" if ".bf16." in line else "bf16.bf16"
        return re.sub(r"b?f16\.b?f16", other, line, count=1)
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


def faults(
    family: str, of_each_kind: int, seed: int = 1, cases: int | None = None
) -> list[tuple[Fault, Module]]:
    """Faults at instructions that a case of the family executes, some of each kind, at random.

    Args:
        cases: how many of the family, from the first on; all if None.
    """
    chosen_cases = FAMILIES[family][:cases]
    pick = random.Random(f"{family} {seed}")
    possible: dict[str, list[tuple[Fault, Module]]] = {kind: [] for kind in KINDS}
    kernels = _kernels(chosen_cases[0])
    for kernel, lines in _executed(chosen_cases, kernels).items():
        module = module_of(kernel)
        lines -= module.without_effect(kernel, lines)
        registers: list[str] = []
        for number, line in module.instructions(kernel):
            # Inline assembly may stand in braces.
            is_instruction = re.match(r"(?:@|\{ )?!?%?\w[\w.]*\s*.*;(?: ?\})?$", line)
            if not is_instruction or number not in lines:
                continue
            for kind, plant in KINDS.items():
                after = plant(line, registers, pick)
                if after not in (None, line):
                    fault = Fault(family, chosen_cases, kernel, kind, number, line, after)
                    possible[kind].append((fault, module))
            # A copy has the same value.
            if target := re.match(r"(?!mov\.\w+\s+%\w+, %\w+;)[\w.]+\s+(%\w+),", line):
                registers.append(target[1])
    return [
        chosen
        for kind in KINDS
        for chosen in pick.sample(possible[kind], min(of_each_kind, len(possible[kind])))
    ]


def _kernels(case: Case) -> list[str]:
    """The names of the kernels that a case launches."""
    interpreter = emulated_gpu.interpreter()
    before = {each.name: each.launches for each in interpreter.kernels()}
    step, _ = prepare(case)
    with gpu_of(case) as backend:
        step(backend)
    return [each.name for each in interpreter.kernels() if each.launches > before.get(each.name, 0)]


def _executed(cases: tuple[Case, ...], kernels: list[str]) -> dict[str, set[int]]:
    """Of each kernel the lines that some case executes.

    Raises:
        RuntimeError: a case shows a problem without any fault.
    """

    def count() -> str:
        # Counts of executions begin anew with the loading of a kernel.
        for kernel in kernels:
            interpreter.load(modules[kernel].file, modules[kernel].alone(kernel))
        for case in cases:
            if problems := run(case, SETTINGS[:1]).problems:
                return f"{case}: {problems[0]}"
        return json.dumps([[each.line for each in interpreter.unexecuted(k)] for k in kernels])

    interpreter = emulated_gpu.interpreter()
    modules = {kernel: module_of(kernel) for kernel in kernels}
    for case in cases:
        _load_kernels(case)
    result = in_a_process_of_its_own(count)
    if not result.startswith("["):
        raise RuntimeError(f"there is a fault before any is planted: {result}")
    executed = {}
    for kernel, idle in zip(kernels, json.loads(result), strict=True):
        lines = [number for number, _ in modules[kernel].instructions(kernel)]
        first = modules[kernel].first_line_alone()
        executed[kernel] = set(lines) - {lines[0] + line - first for line in idle}
    return executed


def notice(fault: Fault, module: Module) -> str:
    """The first sign of a fault, in a line; empty if there is none."""
    changed = module.alone(fault.kernel, fault.line, fault.after)
    return first_problem(fault.cases, module.file, changed)


def makes_a_difference(fault: Fault, module: Module) -> bool:
    """Tell if the changed instruction gives another value than before in some case.

    Instructions that do not write one register, such as branches and stores, count as if they did.
    """
    probe = _compared(fault)
    if not probe:
        return True
    changed = module.alone(fault.kernel, fault.line, probe)
    return bool(first_problem(fault.cases, module.file, changed))


def _compared(fault: Fault) -> str:
    """Both instructions, and an access out of bounds where they give different bits."""
    found = re.match(r"[a-z][\w.:]*\s+(%(rd|rs|r|f|p)\d+), ", fault.before)
    if not found or found[1] not in fault.after:
        return ""
    register, bits = found[1], {"rd": "b64", "rs": "b16", "p": "pred"}.get(found[2], "b32")
    differ = "xor.pred" if bits == "pred" else f"setp.ne.{bits}"
    return (
        f"{{ .reg .{bits} %before; .reg .pred %differ; .reg .b32 %nowhere; mov.b32 %nowhere, -1; "
        f"{fault.before.replace(register, '%before', 1)} {fault.after} "
        f"{differ} %differ, {register}, %before; @%differ ld.shared.u8 %nowhere, [%nowhere]; }}"
    )


@functools.cache
def _load_kernels(case: Case) -> None:
    """Launch the extension's own kernels, which loads them, before others take their place."""
    run(case, SETTINGS[:1])


def first_problem(cases: tuple[Case, ...], file: str, text: str) -> str:
    """The first problem that any case shows with the kernels of `text`, in a line."""

    def find() -> str:
        emulated_gpu.interpreter().load(file, text)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        for case in cases:
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            if problems := run(case).problems:
                return problems[0]
        return ""

    for case in cases:
        _load_kernels(case)
    return in_a_process_of_its_own(find).replace("\n", " ")[:300]


def in_a_process_of_its_own(work: Callable[[], str]) -> str:
    """The result of `work`, or how it failed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        # Threads of PyTorch are not forked: an operation would wait for them for ever.
        torch.set_num_threads(1)
        try:
            result = work()
        except BaseException as error:
            result = f"{type(error).__name__}: {error}"
        with os.fdopen(writer, "w") as stream:
            stream.write(result)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, errors="replace") as stream:
        result = stream.read()
    _, status = os.waitpid(child, 0)
    return result if status == 0 else f"ended by signal {os.WTERMSIG(status)}"
