"""Without a GPU the kernels run on CPU tensors: Triton interpreted, CUDA emulated.

Both switches must be set before the packages are first imported.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest


def _gpu_present() -> bool:
    if shutil.which("nvidia-smi") is None:
        return False
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listing.returncode == 0 and "GPU" in listing.stdout


if not _gpu_present():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("CONVMIXER_KERNELS_EMULATE", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: else one worker waits for compilers after the others have finished."""
    items.sort(key=lambda item: item.path.name != "test_sanitizers.py")
