"""Machine code of the Triton kernels, compiled without a GPU; not where Triton interprets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.helpers.python_process import run_python

# Operation, kernel size, dtype and channels_last of a `triton_kernels.Case`; architecture.
KERNELS = {
    "forward 9 sm_80": ("forward", 9, "float16", False, "80"),
    "forward 9 sm_90": ("forward", 9, "float16", False, "90"),
    "forward 13 sm_90": ("forward", 13, "float16", False, "90"),
    "weight gradient 9 sm_90": ("weight_gradient", 9, "float16", False, "90"),
    "weight gradient 11 sm_80": ("weight_gradient", 11, "float16", False, "80"),
    "forward 31 sm_90": ("forward", 31, "bfloat16", False, "90"),
    "weight gradient 31 sm_80": ("weight_gradient", 31, "float16", False, "80"),
    "forward float32 sm_90": ("forward", 7, "float32", False, "90"),
    "normalised 9 sm_90": ("forward_normalised", 9, "float16", False, "90"),
    "moments sm_90": ("moments", 0, "float16", False, "90"),
    "normalise sm_90": ("normalise", 0, "float16", True, "90"),
    "gradient sums sm_90": ("gradient_sums", 0, "bfloat16", True, "90"),
    "value gradient sm_90": ("value_gradient", 0, "float16", False, "90"),
    "to planes float16 sm_90": ("to_planes", 0, "float16", False, "90"),
    "to planes float32 sm_90": ("to_planes", 0, "float32", False, "90"),
    "from planes float16 sm_90": ("from_planes", 0, "float16", False, "90"),
    "from planes float32 sm_90": ("from_planes", 0, "float32", False, "90"),
}


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, Any]]:
    """Registers, spills and the instructions of the main loop, per row of a group of tiles."""
    program = f"""
import json, torch
from benchmarks.kernel_budget import triton_kernels
results = {{}}
for name, (operation, size, dtype, channels_last, architecture) in {KERNELS!r}.items():
    case = triton_kernels.Case(
        operation, size, getattr(torch, dtype), channels_last=channels_last
    )
    kernel = triton_kernels.weigh(case, architecture)
    results[name] = vars(kernel)
    results[name]["complaint"] = triton_kernels.complaint(case, architecture, kernel)
    results[name]["rows"] = case.configuration(architecture).unrolled_rows if size else 1
    if operation in triton_kernels.TRANSPOSITIONS:
        launch = triton_kernels.transposition_launch(case)
        results[name]["ptx"] = triton_kernels.compile_launch(launch, architecture).asm["ptx"]
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
    assert found["complaint"] is None


def per_row(kernel: dict[str, Any], instruction: str) -> float:
    count: float = kernel["mix"].get(instruction, 0) / kernel["rows"]
    return count


@pytest.mark.parametrize("architecture", ["80", "90"])
def test_forward_machine_code(architecture: str, compiled: dict[str, dict[str, Any]]) -> None:
    """32 tiles of 8 columns: two matrix instructions and one store for each row of the filter."""
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


def test_large_forward_machine_code(compiled: dict[str, dict[str, Any]]) -> None:
    """32 tiles of an input row, three times 16 columns, meet six rows of the filter."""
    kernel = compiled["forward 31 sm_90"]
    assert per_row(kernel, "HMMA") == 2 * 6 * 3
    # Of 31 + 5 input rows come six output rows of 256 columns.
    assert 36 * per_row(kernel, "HMMA") / 6 / 2 <= 110
    # Six loads of the window and three of a band; bands stay in registers for six rows.
    assert per_row(kernel, "LDGSTS") == 9 and per_row(kernel, "LDG") == 0
    assert per_row(kernel, "total") <= 140


def test_large_weight_gradient_machine_code(compiled: dict[str, dict[str, Any]]) -> None:
    kernel = compiled["weight gradient 31 sm_80"]
    assert per_row(kernel, "HMMA") == 8 * 3
    assert per_row(kernel, "LDGSTS") == 4 and per_row(kernel, "FFMA") == 0
    assert per_row(kernel, "total") <= 75


def test_float32_machine_code(compiled: dict[str, dict[str, Any]]) -> None:
    """Multiply-adds and nothing else: no tensor cores, whose float32 has ten bits of mantissa."""
    kernel = compiled["forward float32 sm_90"]
    assert per_row(kernel, "HMMA") == 0
    assert per_row(kernel, "FFMA") >= 7 * 7 * 4
    assert per_row(kernel, "FFMA") >= 0.5 * per_row(kernel, "total")


def test_epilogue_machine_code(compiled: dict[str, dict[str, Any]]) -> None:
    """GELU takes ten instructions an output, normalisation and residual three; no second kernel."""
    kernel = compiled["normalised 9 sm_90"]
    outputs = 32 * 8 // 32
    assert per_row(kernel, "HMMA") == 2 * 9
    assert per_row(kernel, "MUFU") == outputs
    assert per_row(kernel, "FFMA") <= 13 * outputs
    # The residual is pipelined like the window.
    assert per_row(kernel, "LDGSTS") == 5 and per_row(kernel, "LDG") == 0


@pytest.mark.parametrize("direction", ["to", "from"])
@pytest.mark.parametrize(("dtype", "vectors"), [("float16", 4), ("float32", 8)])
def test_transpositions_access_memory_by_vectors(
    direction: str, dtype: str, vectors: int, compiled: dict[str, dict[str, Any]]
) -> None:
    """Vectors of 16 bytes on both sides: a thread takes 32 elements of a tile of 64 x 64."""
    ptx = compiled[f"{direction} planes {dtype} sm_90"]["ptx"]
    for access in ("ld.global", "st.global"):
        assert ptx.count(f"{access}.v4.b32") == ptx.count(access) == vectors


def test_elementwise_machine_code(compiled: dict[str, dict[str, Any]]) -> None:
    """Eight elements a thread, in vectors of 16 bytes."""
    for name, loads, stores, multi_function in (
        ("moments sm_90", 1, 0, 9),
        ("normalise sm_90", 2, 1, 8),
        ("gradient sums sm_90", 2, 0, 8),
        ("value gradient sm_90", 2, 1, 16),
    ):
        mix = compiled[name]["mix"]
        assert mix.get("LDG", 0) == loads and mix.get("STG", 0) == stores
        assert mix["MUFU"] == multi_function
        assert mix["total"] <= 300
