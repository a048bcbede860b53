"""Machine code of the Triton kernels, compiled without a GPU; not where Triton interprets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .python_process import run_python

KERNELS = {
    "forward 9 sm_80": ("forward", 9, "float16", "80"),
    "forward 9 sm_90": ("forward", 9, "float16", "90"),
    "forward 13 sm_90": ("forward", 13, "float16", "90"),
    "weight gradient 9 sm_90": ("weight_gradient", 9, "float16", "90"),
    "weight gradient 11 sm_80": ("weight_gradient", 11, "float16", "80"),
    "forward float32 sm_90": ("forward", 7, "float32", "90"),
}


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, Any]]:
    """Registers, spills and the instructions of the main loop, per row of a block of strips."""
    program = f"""
import json, torch
import budget_triton
results = {{}}
for name, (operation, size, dtype, architecture) in {KERNELS!r}.items():
    case = budget_triton.Case(operation, size, getattr(torch, dtype))
    kernel = budget_triton.weigh(case, architecture)
    results[name] = {{**vars(kernel), "rows": case.configuration(architecture).rows}}
print(json.dumps(results))
"""
    pytest.importorskip("triton")
    results: dict[str, dict[str, Any]] = json.loads(run_python(program, interpret=False))
    return results


@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_spills(kernel: str, compiled: dict[str, dict[str, Any]]) -> None:
    found = compiled[kernel]
    assert found["spill_stores"] == found["spill_loads"] == 0
    assert found["local_in_loops"] == 0


def per_row(kernel: dict[str, Any], instruction: str) -> float:
    count: float = kernel["mix"].get(instruction, 0) / kernel["rows"]
    return count


@pytest.mark.parametrize("architecture", ["80", "90"])
def test_forward_machine_code(architecture: str, compiled: dict[str, dict[str, Any]]) -> None:
    """32 strips by 8 columns: two matrix instructions and one store for each row of the filter."""
    kernel = compiled[f"forward 9 sm_{architecture}"]
    assert per_row(kernel, "HMMA") == 2 * 9
    # Only the window is read from shared memory: the filter stays in registers.
    assert per_row(kernel, "LDSM") == 2
    assert per_row(kernel, "LDGSTS") == 4 and per_row(kernel, "STG") == 1
    assert per_row(kernel, "FFMA") == 0
    assert per_row(kernel, "total") <= 48
    assert kernel["registers"] <= 136


def test_wide_forward_machine_code(compiled: dict[str, dict[str, Any]]) -> None:
    """24 input columns take one and a half matrix instructions, and one for the row beyond."""
    kernel = compiled["forward 13 sm_90"]
    assert per_row(kernel, "HMMA") == 2 * 13 + 14
    assert per_row(kernel, "FFMA") == 0
    assert per_row(kernel, "total") <= 70


def test_weight_gradient_machine_code(compiled: dict[str, dict[str, Any]]) -> None:
    narrow = compiled["weight gradient 9 sm_90"]
    assert per_row(narrow, "HMMA") == 9 + 1  # the filter's rows, and the bias gradient
    assert per_row(narrow, "FFMA") == 0
    assert per_row(narrow, "LDGSTS") == 3  # pipelined
    assert per_row(narrow, "total") <= 42
    wide = compiled["weight gradient 11 sm_80"]
    assert per_row(wide, "HMMA") == 11 + 1
    assert per_row(wide, "LDGSTS") > 0


def test_float32_machine_code(compiled: dict[str, dict[str, Any]]) -> None:
    """Multiply-adds and nothing else: no tensor cores, whose float32 has ten bits of mantissa."""
    kernel = compiled["forward float32 sm_90"]
    assert per_row(kernel, "HMMA") == 0
    assert per_row(kernel, "FFMA") >= 7 * 7 * 4
    assert per_row(kernel, "FFMA") >= 0.5 * per_row(kernel, "total")
