"""Runs test programs built on the emulation of CUDA, in a given order and under a sanitizer."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_SANITIZER_OPTIONS = {
    # A launch that ends in a fault leaks what its threads held.
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


def run_program(
    program: Path,
    *arguments: str,
    order: str = "forward",
    copies: str = "late",
    seed: int = 1,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """The finished program, with all it printed in `stdout`."""
    environment = {
        **os.environ,
        **_SANITIZER_OPTIONS,
        "CONVMIXER_KERNELS_EMULATION_ORDER": order,
        "CONVMIXER_KERNELS_EMULATION_COPIES": copies,
        "CONVMIXER_KERNELS_EMULATION_SEED": str(seed),
    }

    def start(*prefix: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*prefix, str(program), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    result = start()
    if "unexpected memory mapping" in result.stdout:
        # Older thread sanitizers do not get along with as much address randomisation as newer
        # kernels have.
        result = start("setarch", "--addr-no-randomize")
    return result
