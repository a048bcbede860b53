"""The host code of the CUDA extension under the sanitizers of the C++ compiler."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import cuda_build
import toolchain
from convmixer_kernels import emulated_gpu
from tests.helpers.python_process import run_python

PROGRAM = Path(__file__).with_name("host_calls.py")


def test_every_function_keeps_to_its_memory_and_to_what_is_defined() -> None:
    toolkit = toolchain.find_toolkit()
    extension = cuda_build.build_sanitized(toolkit)
    # The sanitizer looks for the functions that throw when it is loaded.
    libraries = (library(toolkit, "libasan.so"), library(toolkit, "libstdc++.so.6"))
    environment = os.environ | {
        "LD_PRELOAD": " ".join(libraries),
        # Python frees little at its end, and tensors may be too large for the machine.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    done = subprocess.run(
        [sys.executable, PROGRAM, extension],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    counted = re.fullmatch(r"(\d+) calls, (\d+) variants, (\d+) refused\n", done.stdout)
    assert counted is not None, done.stdout
    calls, variants, refused = map(int, counted.groups())
    assert calls > 100 and variants > 10 * calls and refused > variants // 2


def test_the_emulated_gpu_needs_no_runtime_of_cuda() -> None:
    """PyTorch for CPUs brings none, and that of other builds has what is missing here."""
    library = emulated_gpu.interpreter().__file__
    assert (
        run_python(f"import ctypes; ctypes.CDLL({library!r}); print('loaded')", False) == "loaded\n"
    )


def library(toolkit: toolchain.Toolkit, name: str) -> str:
    """The file of a library that belongs to the host compiler."""
    command = [toolkit.host_compiler, f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
