"""Without a GPU the kernels run on CPU tensors: Triton interpreted, CUDA on an emulated GPU.

Both switches must be set before the packages are first imported.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from typing import Any

import pytest


def _gpu_present() -> bool:
    if shutil.which("nvidia-smi") is None:
        return False
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listing.returncode == 0 and "GPU" in listing.stdout


if not _gpu_present():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("CONVMIXER_KERNELS_EMULATE", "1")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, Any]:
    """After an illegal access every test of the process would fail: xdist starts another one."""
    report = yield
    if report.failed and "PYTEST_XDIST_WORKER" in os.environ:
        import torch  # not before the switches above are set

        if torch.cuda.is_initialized():
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                text = f"{item.nodeid} lost the GPU\n{report.longreprtext}"
                print(text, file=sys.__stderr__, flush=True)
                os._exit(1)
    return report
