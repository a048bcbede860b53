"""The tests whose tensors are on the GPU: of CUDA, of Triton, and those of large tensors."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

from benchmarks.lib.facts import Facts
from benchmarks.lib.measurement import NotMeasured
from benchmarks.phases import processes
from benchmarks.phases.context import ROOT, Visit, environment


class Part(NamedTuple):
    """Tests of one run of pytest: its options -m and -k, and whether processes run side by side."""

    name: str
    markers: str
    words: str
    parallel: bool


# All run at once. A process takes seconds to import what tests need, so that more of them would
# spend their time on that: two parts share the processors.
PARTS = (
    Part("cuda", "gpu and not memory", "not triton", True),
    Part("triton", "gpu and not memory", "triton", True),
    Part("memory", "gpu and memory", "", False),
)
PLUGINS = ("-pno:cacheprovider", "-ptests.reasons")
# Outcomes as pytest prints them, alone and from several processes.
_OUTCOME = re.compile(
    r"(?P<test>\S+::\S.*?) (?P<word>PASSED|FAILED|ERROR|SKIPPED)\b"
    r"|\] (?P<word_>PASSED|FAILED|ERROR|SKIPPED) (?P<test_>\S+::\S.*)"
)
# The lines of tests/reasons.py, each before the outcome of its test.
_REASON = re.compile(r"REASON (?P<test>[^\t]+)\t(?P<reason>.*)")
# After so many tests their counts become a fact: the limit of this phase is likely to end it.
_TESTS_A_FACT = 50
# A whole file is marked, or one test of it.
_MARKED = re.compile(r"^(pytestmark = .*|@)pytest\.mark\.gpu\b", re.MULTILINE)


def suite(visit: Visit) -> None:
    visit.needs_gpu("the suite")
    missing = [name for name in ("pytest", "xdist") if importlib.util.find_spec(name) is None]
    if missing:
        raise NotMeasured(f"there is no {missing[0]}")
    processes.side_by_side([partial(_run, visit, part) for part in PARTS])


def _run(visit: Visit, part: Part) -> None:
    jobs = f"-n{max(1, (os.cpu_count() or 1) // 2)}" if part.parallel else "-pno:xdist"
    command = [
        *(sys.executable, "-m", "pytest", "-v", "--tb=short", *PLUGINS),
        *(jobs, "-m", part.markers, "-k", part.words, *gpu_tests()),
    ]
    log = visit.folder / f"suite-{part.name}.log"
    with (
        log.open("w", buffering=1) as output,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(OMP_NUM_THREADS="1", TORCHINDUCTOR_COMPILE_THREADS="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as tests,
    ):
        assert tests.stdout is not None
        count(part.name, tests.stdout, visit.facts, output)


def count(part: str, lines: Iterable[str], facts: Facts, log: IO[str]) -> None:
    """Pass lines of pytest on and count them; each failure is a fact as soon as it is known."""
    counts: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    for line in lines:
        log.write(line)
        if reason := _REASON.match(line):
            reasons[reason["test"]] = reason["reason"]
            continue
        match = _OUTCOME.search(line)
        if match is None:
            continue
        word = (match["word"] or match["word_"]).lower()
        counts[word] += 1
        if word in ("failed", "error"):
            test = (match["test"] or match["test_"]).strip()
            facts.add("failed", what=f"test {test}", error=reasons.pop(test, word))
        if counts.total() % _TESTS_A_FACT == 0:
            facts.add("suite", part=part, **counts)
    facts.add("suite", part=part, ended=True, **counts)


def gpu_tests(folder: Path = ROOT / "tests") -> list[str]:
    """Files whose tests have their tensors on the GPU where there is one."""
    return [
        str(path) for path in sorted(folder.rglob("test_*.py")) if _MARKED.search(path.read_text())
    ]
