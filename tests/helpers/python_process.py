"""Programs in a process of their own: Triton decides at import whether it interprets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_python(program: str, interpret: bool) -> str:
    """Run `program` with the paths that pytest has in this repository; return its output."""
    root = Path(__file__).resolve().parents[2]
    switches = ("TRITON_INTERPRET", "CONVMIXER_KERNELS_EMULATE")
    environment = {key: value for key, value in os.environ.items() if key not in switches}
    paths = (root, root / "csrc" / "build_tools")
    environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
