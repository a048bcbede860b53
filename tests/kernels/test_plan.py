"""The planner of the CUDA kernels, tested in C++, its tables, and the GPUs that it knows."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import cuda_build
import toolchain
from convmixer_kernels import architectures, emulated_gpu
from convmixer_kernels.backends.cuda import device as cuda_device

SOURCE = Path(__file__).with_name("plan_test.cpp")


def test_items_tile_every_plane() -> None:
    program = cuda_build.build_program(toolchain.find_toolkit(), SOURCE)
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "every plane is tiled\n"), result.stderr


def test_python_has_the_tables_of_the_extension() -> None:
    extension = emulated_gpu.extension()
    assert tuple(extension.filter_sizes) == cuda_device.KERNEL_SIZES
    assert tuple(extension.filter_sizes) == tuple(cuda_build.filter_sizes())


def test_every_odd_filter_size_is_compiled_once_for_each_family() -> None:
    sizes: dict[str, list[int]] = {}
    for unit in cuda_build.cuda_units():
        compiled = [int(macro.partition("=")[2]) for macro in unit.macros]
        sizes.setdefault(unit.source.stem, []).extend(compiled)
    odd_sizes = [size for size in cuda_build.filter_sizes() if size % 2]
    assert sizes == {
        **dict.fromkeys(("forward", "weight_gradient", "backward"), odd_sizes),
        **dict.fromkeys(("forward_channels_last", "weight_gradient_channels_last"), odd_sizes),
        **{family: [] for family in ("elementwise", "layouts", "merge_splits")},
        **{f"{family}_large": [] for family in ("forward", "weight_gradient")},
    }


@pytest.mark.parametrize(
    ("capability", "name", "kilobytes"),
    [
        ((8, 0), "sm_80", 163),
        ((8, 6), "sm_86", 99),
        ((8, 9), "sm_89", 99),
        ((9, 0), "sm_90", 227),
        ((10, 0), "sm_100", 227),
        ((12, 0), "sm_120", 99),
        # Not listed: newer ones of a known major version, and two of unknown ones.
        ((8, 7), "sm_86", 99),
        ((10, 3), "sm_100", 227),
        ((12, 1), "sm_120", 99),
        ((11, 0), "sm_110", 99),
        ((13, 0), "sm_130", 99),
    ],
)
def test_every_architecture_has_its_shared_memory(
    capability: tuple[int, int], name: str, kilobytes: int
) -> None:
    found = architectures.find(capability)
    assert (found.name, found.shared_bytes) == (name, kilobytes * 1024)
    assert found.capability <= capability


def test_older_architectures_are_refused() -> None:
    with pytest.raises(ValueError, match=r"capability: got 7\.5, expected 8\.0 or newer"):
        architectures.find((7, 5))
