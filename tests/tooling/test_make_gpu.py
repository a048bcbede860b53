"""The goals of make for machines with a GPU, with a stand-in for Python: what runs, what fails."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What the goals of gpu-full call, by a part of the command that is in none before it.
COMMANDS = {
    "pip install": "build",
    "-m convmixer_kernels": "build",
    "--only extension,sanitize": "sanitize",
    "--only triton_smoke": "benchmark",
    "--benchmark-only": "benchmark",
    "report.py": "benchmark",
    "-m pytest -v": "test",
}
ALL = ["build", "build", "test", "test", "sanitize", "benchmark", "benchmark", "benchmark"]


def make(
    folder: Path, *goals: str, failing: str = "nothing"
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """The outcome of goals, and the commands that they ran; those with `failing` in them fail."""
    log = folder / "log"
    log.touch()
    python = folder / "python"
    python.write_text(f'#!/bin/sh\necho "$*" >> {log}; case "$*" in *"{failing}"*) exit 3;; esac\n')
    python.chmod(0o755)
    # Recipes change nothing: build/ is that of the folder.
    (folder / "Makefile").write_text((ROOT / "Makefile").read_text())
    tests = folder / "tests"
    tests.mkdir(exist_ok=True)
    (tests / "test_on_a_gpu.py").write_text("pytestmark = pytest.mark.gpu\n")
    (tests / "test_elsewhere.py").write_text('DEVICE = "it speaks of pytest.mark.gpu"\n')
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    outcome = subprocess.run(
        ["make", *goals, f"PYTHON={python}"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    asked = ("import xdist", "is_available")
    lines = log.read_text().splitlines()
    return outcome, [line for line in lines if not any(word in line for word in asked)]


def phases(commands: list[str]) -> list[str]:
    return [next(name for part, name in COMMANDS.items() if part in line) for line in commands]


def test_a_visit_gets_its_minutes_and_phases(tmp_path: Path) -> None:
    for words, expected in (
        ([], "benchmarks/visit.py --minutes 8"),
        (["MINUTES=3", "ONLY=smoke,ours"], "benchmarks/visit.py --minutes 3 --only smoke,ours"),
    ):
        outcome, commands = make(tmp_path, "gpu", *words)
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr
        assert commands[-1] == expected


def test_the_outcome_of_a_visit_is_that_of_make(tmp_path: Path) -> None:
    outcome, _ = make(tmp_path, "gpu", failing="visit.py")
    assert outcome.returncode != 0


def test_phases_run_in_their_order(tmp_path: Path) -> None:
    outcome, commands = make(tmp_path, "gpu-full")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert phases(commands) == ALL
    of_tests = [line for line in commands if "pytest -v" in line]
    assert [re.findall("-m (gpu and.*?) tests", line) for line in of_tests] == [
        ["gpu and not memory"],
        ["gpu and memory"],
    ]
    assert all("test_on_a_gpu.py" in line for line in of_tests)
    assert not any("test_elsewhere.py" in line for line in commands)


@pytest.mark.parametrize(
    ("failing", "named", "left_out"),
    [
        ("pip install", "gpu-build", 1),
        ("gpu and not memory", "gpu-test", 0),
        ("gpu and memory", "gpu-test", 0),
        ("extension,sanitize", "gpu-sanitize", 0),
        ("--benchmark-only", "gpu-benchmark", 0),
        ("report.py", "gpu-benchmark", 0),
    ],
)
def test_a_failing_phase_hides_no_other(
    failing: str, named: str, left_out: int, tmp_path: Path
) -> None:
    outcome, commands = make(tmp_path, "gpu-full", failing=failing)
    assert outcome.returncode != 0
    assert f"make gpu-full: failed: {named}\n" in outcome.stdout
    assert phases(commands) == ALL[left_out:]


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    """As PyTorch finds it: there are GPUs without nvidia-smi."""
    outcome, commands = make(tmp_path, "gpu-full", failing="torch.cuda.is_available")
    assert outcome.returncode != 0
    assert "finds no CUDA device" in outcome.stdout
    assert commands == []


def test_what_is_carried_to_a_machine_without_history(tmp_path: Path) -> None:
    """The extension, built with the Python that is named, and the commit."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "c"], cwd=tmp_path, check=True)
    (tmp_path / "build").mkdir()
    outcome, commands = make(tmp_path, "gpu-carry")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert commands == ["setup.py --quiet build_ext --inplace"]
    assert re.fullmatch(r"[0-9a-f]{40}\n", (tmp_path / "build" / "commit").read_text())


def test_files_with_tensors_on_the_gpu_are_marked() -> None:
    """Those that take the device from what there is, and only those."""
    marked = re.compile(r"^pytestmark = .*pytest\.mark\.gpu\b", re.MULTILINE)
    takes_device = re.compile(
        r"^DEVICE = |^from .* import .*\bDEVICE\b|^    DEVICE,$", re.MULTILINE
    )
    files = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    assert {name for name, text in files.items() if marked.search(text)} == {
        name for name, text in files.items() if takes_device.search(text)
    } - {
        # Examples and benchmarks run on a CPU as well as they run anywhere.
        "test_documents.py",
        "test_benchmarks.py",
        Path(__file__).name,
    }
