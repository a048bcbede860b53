"""`make gpu` with stand-ins for GPU, Python and compute-sanitizer: what runs, and what fails."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SANITIZERS = ["memcheck", "racecheck", "synccheck", "initcheck"]
# What the phases call, by a part of the command that is in none before it.
COMMANDS = {
    "pip install": "build",
    "-m convmixer_kernels": "build",
    **{f"--tool {tool}": tool for tool in SANITIZERS},
    "--benchmark-only": "benchmark",
    "report.py": "benchmark",
    "-m pytest -q benchmarks --quick -n": "benchmark",
    "-m pytest -q -n": "test",
}


def stand_in(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def make(
    folder: Path, goal: str, failing: str = "nothing", gpu: bool = True
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """The outcome of a goal, and the commands that it ran; those with `failing` in them fail."""
    log = folder / "log"
    log.touch()
    noted = f'echo "$(basename $0) $*" >> {log}; case "$*" in *"{failing}"*) exit 3;; esac'
    stand_in(folder / "nvidia-smi", "echo 'GPU 0: of a test'" if gpu else "exit 1")
    stand_in(folder / "compute-sanitizer", noted)
    stand_in(folder / "python", noted)
    # Recipes find the stand-ins first and change nothing: build/ is theirs as well.
    (folder / "Makefile").write_text((ROOT / "Makefile").read_text())
    tests = folder / "tests"
    tests.mkdir(exist_ok=True)
    (tests / "test_on_a_gpu.py").write_text("DEVICE")
    (tests / "test_elsewhere.py").write_text("CUDA_VISIBLE_DEVICES")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    environment["PATH"] = f"{folder}:{environment['PATH']}"
    outcome = subprocess.run(
        ["make", goal, f"PYTHON={folder}/python"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return outcome, [line for line in log.read_text().splitlines() if "import xdist" not in line]


def phases(commands: list[str]) -> list[str]:
    return [next(name for part, name in COMMANDS.items() if part in line) for line in commands]


# Kernels of CUDA, then those of Triton.
TWICE = [tool for tool in SANITIZERS for _ in range(2)]
ALL = ["build", "build", "test", *TWICE, "benchmark", "benchmark", "benchmark"]


def test_phases_run_in_their_order(tmp_path: Path) -> None:
    outcome, commands = make(tmp_path, "gpu")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert phases(commands) == ALL
    of_tests = [line for line in commands if "pytest -q" in line and " benchmarks " not in line]
    assert of_tests and all("test_on_a_gpu.py" in line for line in of_tests)
    assert not any("test_elsewhere.py" in line for line in commands)


@pytest.mark.parametrize(
    ("failing", "named", "left_out"),
    [
        ("pip install", "gpu-build", 1),
        ("test_on_a_gpu.py", "gpu-test gpu-sanitize", 0),
        ("racecheck", "gpu-sanitize", 0),
        ("--benchmark-only", "gpu-benchmark", 0),
        ("report.py", "gpu-benchmark", 0),
    ],
)
def test_a_failing_phase_hides_no_other(
    failing: str, named: str, left_out: int, tmp_path: Path
) -> None:
    outcome, commands = make(tmp_path, "gpu", failing)
    assert outcome.returncode != 0
    assert f"make gpu: failed: {named}\n" in outcome.stdout
    assert phases(commands) == ALL[left_out:]


@pytest.mark.parametrize(
    ("goal", "wanted"),
    [
        ("gpu-build", ["build", "build"]),
        ("gpu-test", ["test"]),
        ("gpu-sanitize", TWICE),
        ("gpu-synccheck", ["synccheck", "synccheck"]),
        ("gpu-benchmark", ["benchmark", "benchmark", "benchmark"]),
    ],
)
def test_each_phase_by_itself(goal: str, wanted: list[str], tmp_path: Path) -> None:
    outcome, commands = make(tmp_path, goal)
    assert (outcome.returncode, phases(commands)) == (0, wanted)


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    outcome, commands = make(tmp_path, "gpu", gpu=False)
    assert outcome.returncode != 0
    assert "nvidia-smi finds no NVIDIA GPU" in outcome.stdout
    assert commands == []
