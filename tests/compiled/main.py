"""``make compiled``: what nvcc and Triton compile, run on an interpreter of PTX, without a GPU.

Thousands of cases against float64, and faults planted in the PTX that must be noticed. Fails on a
wrong value, on anything that the interpreter finds, and if too many faults go unnoticed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

# A part of the faults makes no difference to any result; docs/kernels.md says which.
LEAST_NOTICED = 0.97
LEAST_PLANTED = 300
FAULTS_OF_EACH_KIND = 4


@dataclass
class Row:
    """The outcome of the cases of an operation."""

    cases: int = 0
    wrong: list[str] = field(default_factory=list)
    largest_error: float = 0.0
    warp_instructions: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make compiled", description=__doc__)
    parts = ("cuda", "triton", "faults", "sources")
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="all unless named")
    parser.add_argument("--seed", type=int, default=1, help="of the faults that are planted")
    options = parser.parse_args(arguments)
    chosen = options.parts or parts
    os.environ["CONVMIXER_KERNELS_EMULATE"] = "1"
    os.environ.pop("TRITON_INTERPRET", None)  # Triton would interpret
    from convmixer_kernels import emulated_gpu

    emulated_gpu.interpreter()  # built once, not by every worker
    begin = time.time()
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        failed = False
        if "cuda" in chosen or "triton" in chosen:
            failed |= not _all_right(pool, chosen)
        if "faults" in chosen:
            failed |= not _all_noticed(pool, options.seed)
        if "sources" in chosen:
            failed |= not _all_in_sources_noticed(pool)
        pool.close()
        pool.join()
    times = os.times()
    processor = sum(times[:4])
    print(f"{time.time() - begin:.0f} s, {processor / 60:.1f} minutes of processor time")
    return int(failed)


def _all_right(pool: Any, backends: Sequence[str]) -> bool:
    from . import cases

    groups = defaultdict(list)
    for backend, every in (("cuda", cases.cuda_cases), ("triton", cases.triton_cases)):
        for case in every() if backend in backends else ():
            groups[backend, case.capability, case.kernel_size, case.dtype].append(case)
    rows: dict[tuple[str, str, str], Row] = defaultdict(Row)
    # Triton's take the longest.
    for verdicts in pool.imap_unordered(_run, sorted(groups.values(), key=_work, reverse=True)):
        for case, verdict, instructions in verdicts:
            gpu = "sm_{}{}".format(*case.capability)
            row = rows[case.backend, gpu, case.operation]
            row.cases += 1
            row.warp_instructions += instructions
            row.largest_error = max([row.largest_error, *verdict.errors.values()])
            row.wrong += [f"{case}: {problem}" for problem in verdict.problems]
            for problem in verdict.problems:
                print(f"WRONG {case}: {problem}", flush=True)
    print("\nlargest error: in units of what is allowed; million: instructions of warps\n")
    print(
        f"{'backend':8}{'GPU':7}{'operation':26}{'cases':>6}{'wrong':>7}{'error':>7}{'million':>9}"
    )
    for (backend, gpu, operation), row in sorted(rows.items()):
        print(
            f"{backend:8}{gpu:7}{operation:26}{row.cases:6}{len(row.wrong):7}"
            f"{row.largest_error:7.2f}{row.warp_instructions / 1e6:9.1f}"
        )
    total = sum(row.cases for row in rows.values())
    wrong = sum(len(row.wrong) for row in rows.values())
    print(f"{total} cases, {wrong} problems\n")
    return wrong == 0


def _work(group: list[Any]) -> float:
    return len(group) * (20 if group[0].backend == "triton" else 1)


def _run(group: list[Any]) -> list[tuple[Any, Any, int]]:
    from convmixer_kernels import emulated_gpu

    from .running import run

    results = []
    for case in group:
        verdict = run(case)
        counters = emulated_gpu.interpreter().take_counters()
        results.append((case, verdict, counters["warp_instructions"]))
    return results


def _all_noticed(pool: Any, seed: int) -> bool:
    from . import fault_cases

    planted, noticed = Counter[str](), Counter[str]()
    families = [(family, seed) for family in fault_cases.FAMILIES]
    for outcomes in pool.imap_unordered(_plant, families):
        for fault, sign, difference in outcomes:
            planted[fault.kind] += 1
            noticed[fault.kind] += bool(sign)
            if not sign:
                why = "no result depends on it" if difference else "the same values in all cases"
                print(f"UNNOTICED {fault} ({why})", flush=True)
    print(f"{'fault':24}{'planted':>8}{'noticed':>8}")
    for kind, count in planted.items():
        print(f"{kind:24}{count:8}{noticed[kind]:8}")
    share = noticed.total() / planted.total()
    print(f"{planted.total()} faults, {100 * share:.1f} % noticed")
    return share >= LEAST_NOTICED and planted.total() >= LEAST_PLANTED


def _all_in_sources_noticed(pool: Any) -> bool:
    from . import source_faults

    results = pool.map(source_faults.notice, source_faults.FAULTS, chunksize=1)
    missed = [
        f"{fault.family}: {fault.what}"
        for fault, found in zip(source_faults.FAULTS, results, strict=True)
        if not found
    ]
    noticed = len(results) - len(missed)
    print(f"{len(results)} faults in sources, {noticed} noticed", *missed, sep="\n")
    return not missed


def _plant(family_and_seed: tuple[str, int]) -> list[tuple[Any, str, bool]]:
    """Faults of a family, the sign by which each is noticed and whether it changes a value."""
    from .faults import faults, makes_a_difference, notice

    outcomes = []
    for fault, module in faults(family_and_seed[0], FAULTS_OF_EACH_KIND, family_and_seed[1]):
        sign = notice(fault, module)
        outcomes.append((fault, sign, bool(sign) or makes_a_difference(fault, module)))
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
