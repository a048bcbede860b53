"""Switches and fixtures: without a GPU Triton is interpreted, and CUDA runs on an emulated GPU.

Both switches must be set before the packages are first imported.
"""

from __future__ import annotations

import gc
import os
import random
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

# The environment of this process and of those that tests start.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("CONVMIXER_KERNELS_EMULATE", "1")
# Libraries would round the factors of float32 products to ten bits.
os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")

pytest.register_assert_rewrite("tests.helpers")


def pytest_collection_finish() -> None:
    """Make the tests cheaper, now that all they import has been imported."""
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") == "1":
        from tests.helpers import triton_interpreter

        triton_interpreter.patch_language_once_a_launch()
    # Modules are not garbage: collections need not walk them.
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def empty_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run all tests in an empty folder, so that none depends on where pytest was started."""
    started_in = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("empty"))
    yield
    os.chdir(started_in)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Give every test the same random numbers, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fill new tensors with NaN, so that an element that a kernel leaves out shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Turn a name of `fused_cases.IMPLEMENTATIONS` into a value of `impl`."""
    from convmixer_kernels import functional

    def impl(name: str) -> str:
        if name == "steps":
            monkeypatch.setattr(functional, "_in_pytorch", lambda *_: False)
        return "torch" if name == "steps" else name

    return impl


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Give the memory that a test held on the GPU back to other processes."""
    if item.get_closest_marker("memory") and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, Any]:
    """End a process after an illegal access, which fails every later test: xdist starts another."""
    report = yield
    if report.failed and "PYTEST_XDIST_WORKER" in os.environ and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            text = f"{item.nodeid} lost the GPU\n{report.longreprtext}"
            print(text, file=sys.__stderr__, flush=True)
            os._exit(1)
    return report
