"""The planner of the CUDA kernels, tested on its own in C++."""

from __future__ import annotations

import subprocess
from pathlib import Path

from convmixer_kernels import emulation_build

SOURCE = Path(__file__).parent / "csrc" / "plan_test.cpp"


def test_items_tile_every_plane() -> None:
    program = emulation_build.build_executable("plan_test", [SOURCE])
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "every plane is tiled\n"), result.stdout
