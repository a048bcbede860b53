"""Run the tests that touch PyTorch's own interfaces under several of its versions.

    python tests/versions.py 2.8.0 2.13.0

Each version is installed into a virtual environment of its own in `build/versions`, which stays,
and the tests run on the CPU without the emulated CUDA kernels. Prints a line for each version and
exits with 1 if a test failed under one of them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The interpreter of Triton cannot run loops with run-time bounds under numpy 2.4.
PACKAGES = ("numpy<2.4", "pytest", "pyyaml", "setuptools", "triton")
TESTS = (
    "tests/operators/test_exporting.py",
    "tests/operators/test_flops.py",
    "tests/operators/test_megengine.py",
    "tests/model/test_model_surgery.py",
    "tests/operators/test_modules.py",
    "tests/operators/test_operators.py",
    "tests/operators/test_pytorch_tools.py",
    "tests/operators/test_sharding.py",
)


def python_with(version: str) -> Path:
    """The interpreter of an environment with this version of PyTorch, made if it is not there."""
    folder = ROOT / "build" / "versions" / version
    python = folder / "bin" / "python"
    installed = folder / "installed"
    if not installed.exists():
        venv.create(folder, clear=True, with_pip=True)
        command = [python, "-m", "pip", "install", "--quiet", f"torch=={version}", *PACKAGES]
        subprocess.run(command, check=True)
        installed.touch()
    return python


def run_tests(version: str) -> str:
    """Return the last line of pytest's output, after its report of failures."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "CONVMIXER_KERNELS_EMULATE": "0",
        "OMP_NUM_THREADS": "1",
    }
    command = [python_with(version), "-m", "pytest", "-q", "-rs", "-k", "not cuda", *TESTS]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    output = done.stdout.rstrip()
    if done.returncode != 0:
        print(output + done.stderr, file=sys.stderr)
    return output.splitlines()[-1] if output else done.stderr.strip()


def main(versions: list[str]) -> int:
    if not versions:
        sys.exit("usage: python tests/versions.py VERSION...")
    failed = False
    for version in versions:
        summary = run_tests(version)
        failed |= re.search(r"\d+ (failed|errors?)|no tests ran", summary) is not None
        print(f"{version}: {summary}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
