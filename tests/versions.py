"""Run the tests that touch PyTorch's own interfaces under several of its versions.

    python tests/versions.py 2.8.0 2.13.0
    python tests/versions.py --keep build/versions 2.13.0

Run it with the Python of an environment in which the tests run. Each version is installed into a
virtual environment of its own, which takes up to 6 GB and is removed after its tests unless
`--keep` names a folder for it; all other packages are those of the Python that runs this script.
Prints for each version what was skipped and a line that sums up, and exits with 1 if a test failed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# torchvision is compiled against one version of PyTorch. The interpreter of Triton cannot run loops
# with run-time bounds under numpy 2.4.
PACKAGES = ("torchvision", "numpy<2.4")
TESTS = (
    "test_branches.py",
    "test_exporting.py",
    "test_flops.py",
    "test_megengine.py",
    "test_model_surgery.py",
    "test_modules.py",
    "test_operators.py",
    "test_pytorch_tools.py",
    "test_sharding.py",
)


def python_with(version: str, folder: Path) -> Path:
    """The interpreter of an environment in `folder` with this PyTorch, made if it is not there."""
    python = folder / "bin" / "python"
    installed = folder / "installed"
    if not installed.exists():
        venv.create(folder, clear=True, with_pip=True)
        command = [python, "-m", "pip", "install", "--quiet", f"torch=={version}", *PACKAGES]
        subprocess.run(command, check=True)
        (packages,) = folder.glob("lib/python*/site-packages")
        # Of what both have, the one that was installed here is found first.
        (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
        installed.touch()
    return python


def run_tests(python: Path) -> str:
    """Return the last line of pytest's output, after its report of failures."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        # Programs that come with packages, such as ninja.
        "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    files = [path for name in TESTS for path in ROOT.glob(f"tests/**/{name}")]
    command = [python, "-m", "pytest", "-q", "-rfEs", *files]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    output = done.stdout.rstrip()
    skipped = [line for line in output.splitlines() if line.startswith("SKIPPED")]
    print("\n".join(skipped) if done.returncode == 0 else output + done.stderr, file=sys.stderr)
    return output.splitlines()[-1] if output else done.stderr.strip()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("versions", nargs="+", metavar="VERSION", help="of PyTorch, such as 2.8.0")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where environments stay")
    arguments = parser.parse_args()
    failed = False
    for version in arguments.versions:
        with tempfile.TemporaryDirectory() as temporary:
            folder = (arguments.keep or Path(temporary)) / version
            summary = run_tests(python_with(version, folder))
        failed |= re.search(r"\d+ (failed|errors?)|no tests ran", summary) is not None
        print(f"{version}: {summary}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
