"""The tests that `make gpu-test` and a visit run on a GPU are those with their tensors there."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.phases import suite

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE_PATTERN = re.compile(r"^GPU_TESTS = .* '(\^\(pytestmark[^']*)'", re.MULTILINE)
# Examples and benchmarks run on a CPU as well as they run anywhere.
EXEMPT = {"test_documents.py", "test_benchmarks.py"}


def test_files_with_tensors_on_the_gpu_are_marked() -> None:
    """A file is marked if it takes the device from what the machine has, or some tests are."""
    takes_device = re.compile(
        r"^DEVICE = |^from .* import .*\bDEVICE\b|^    DEVICE,$", re.MULTILINE
    )
    files = {str(path): path for path in (ROOT / "tests").rglob("test_*.py")}
    assert set(suite.gpu_tests()) == {
        name
        for name, path in files.items()
        if "\n@pytest.mark.gpu\n" in path.read_text()
        or (takes_device.search(path.read_text()) and path.name not in EXEMPT)
    }


def test_make_finds_the_same_files() -> None:
    (pattern,) = MAKEFILE_PATTERN.findall((ROOT / "Makefile").read_text())
    marked = re.compile(pattern, re.MULTILINE)
    paths = (ROOT / "tests").rglob("test_*.py")
    assert sorted(str(path) for path in paths if marked.search(path.read_text())) == sorted(
        suite.gpu_tests()
    )
