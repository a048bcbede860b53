"""Compiled kernels of CUDA and Triton on an emulated GPU, and faults planted in them.

A small part of `make compiled`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.compiled import faults, source_faults
from tests.helpers.python_process import run_python

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="only without a GPU")

# Faults that the first settings show already, of kernels of both layouts and of every kind.
SAMPLE = ["forward", "channels_last weight gradient", "backward", "batch norm"]
# Cases of Triton kernels: operation, shape, kernel size, dtype, layout, architecture.
TRITON = [
    ("forward", (2, 3, 32, 32), 9, "bfloat16", "contiguous", (8, 0)),
    ("forward_normalised", (2, 16, 16, 16), 9, "bfloat16", "channels_last", (9, 0)),
    ("weight_gradient", (2, 3, 32, 32), 9, "bfloat16", "contiguous", (9, 0)),
    ("weight_gradient", (5, 24, 7, 7), 9, "bfloat16", "channels_last", (9, 0)),
    ("forward", (2, 2, 20, 16), 31, "bfloat16", "contiguous", (8, 0)),
    ("input_gradient", (3, 1, 7, 14), 24, "float16", "channels_last", (9, 0)),
    ("weight_gradient", (2, 2, 20, 16), 31, "bfloat16", "contiguous", (9, 0)),
    ("statistics", (5, 3, 7, 7), 9, "bfloat16", "contiguous", (8, 0)),
    ("statistics", (2, 16, 16, 16), 9, "float16", "channels_last", (9, 0)),
    ("forward", (2, 3, 20, 9), 7, "float32", "channels_last", (8, 0)),
    ("weight_gradient", (2, 3, 20, 9), 7, "float32", "contiguous", (8, 0)),
]


@pytest.mark.parametrize("family", SAMPLE)
def test_faults_in_ptx_are_noticed(family: str) -> None:
    planted = faults.faults(family, of_each_kind=1, cases=2)
    assert len(planted) >= 4
    missed = [str(fault) for fault, module in planted if not faults.notice(fault, module)]
    assert len(missed) <= 1, missed


def test_a_fork_waits_for_no_thread() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    large = torch.ones(1 << 20)
    large.exp()  # starts the threads of PyTorch
    try:
        result = faults.in_a_process_of_its_own(lambda: str(large.exp().numel()))
    finally:
        torch.set_num_threads(before)
    assert result == str(1 << 20)


def test_a_fault_in_a_source_is_noticed() -> None:
    fault = next(each for each in source_faults.FAULTS if each.what == "halo one row off")
    assert "times the allowed error" in source_faults.notice(fault)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which Triton keeps what it compiles for GPUs."""
    return tmp_path_factory.mktemp("triton")


@pytest.fixture(scope="module")
def problems(cache: Path) -> list[list[str]]:
    """Return the errors of each case of Triton, from a process that does not interpret."""
    program = f"""
import json, os, torch
os.environ["TRITON_CACHE_DIR"] = {str(cache)!r}
from tests.compiled import running, steps
results = []
for operation, shape, size, dtype, layout, capability in {TRITON!r}:
    case = steps.Case(
        operation, shape, size, getattr(torch, dtype), layout, backend="triton",
        capability=capability,
    )
    results.append(running.run(case).problems)
print(json.dumps(results))
"""
    pytest.importorskip("triton")
    found: list[list[str]] = json.loads(run_python(program, interpret=False))
    return found


@pytest.mark.parametrize("number", range(len(TRITON)), ids=lambda number: str(TRITON[number]))
def test_triton_as_compiled(number: int, problems: list[list[str]]) -> None:
    assert problems[number] == []


@pytest.mark.usefixtures("problems")
def test_what_runs_as_ptx_is_not_left_to_a_gpu(cache: Path) -> None:
    assert not list(cache.iterdir())
