"""The tests whose tensors are on the GPU: of CUDA, of Triton, then those that fill its memory."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

from measurement import NotMeasured
from phases.context import ROOT, Visit, environment

# Name, expression of markers, words, and whether processes run side by side.
PARTS = (
    ("cuda", "gpu and not memory", "not triton", True),
    ("triton", "gpu and not memory", "triton", True),
    ("memory", "gpu and memory", "", False),
)
_MARKED = re.compile(r"^pytestmark = .*pytest\.mark\.gpu\b", re.MULTILINE)


def suite(visit: Visit) -> None:
    visit.needs_gpu("the suite")
    missing = [name for name in ("pytest", "xdist") if importlib.util.find_spec(name) is None]
    if missing:
        raise NotMeasured(f"there is no {missing[0]}")
    for name, markers, words, parallel in PARTS:
        log = visit.folder / f"suite-{name}.log"
        jobs = f"-n{os.cpu_count()}" if parallel else "-pno:xdist"
        with log.open("w") as output:
            status = subprocess.run(
                [
                    *(sys.executable, "-m", "pytest", "-v", "--tb=short", "-pno:cacheprovider"),
                    *(jobs, "-m", markers, "-k", words, *gpu_tests()),
                ],
                cwd=ROOT,
                env=environment(OMP_NUM_THREADS="1", TORCHINDUCTOR_COMPILE_THREADS="1"),
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        visit.facts.add("suite", part=name, status=status, **outcomes(log.read_text()))


def gpu_tests(folder: Path = ROOT / "tests") -> list[str]:
    """Files whose tests have their tensors on the GPU where there is one."""
    return [
        str(path) for path in sorted(folder.glob("test_*.py")) if _MARKED.search(path.read_text())
    ]


def outcomes(log: str) -> dict[str, object]:
    """Counted line by line, so that what a killed run has left counts too."""
    found = {
        word.lower(): len(re.findall(rf"\b{word}\b(?! \[)", log)) for word in ("PASSED", "SKIPPED")
    }
    failed = re.findall(r"(?:^|\s)(?:FAILED|ERROR)\s+(\S+::\S+)", log)
    failed += re.findall(r"(\S+::\S+) (?:FAILED|ERROR)", log)
    return {**found, "failed": sorted(set(failed))}
