"""Bytes that the CUDA kernels move and bank conflicts they meet, as counted by the emulation.

The floor of a pass is one read of each tensor it takes and one write of each it makes.
"""

from __future__ import annotations

import pytest
import torch

from convmixer_kernels import emulation_build, ops

from .test_channels_last import emulate

FP16 = torch.float16
SIZES = [7, 8, 14, 16, 18, 24, 28, 32, 44, 56]

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="counts in the emulation")


def count(operation: object, *arguments: object) -> dict[str, int]:
    module = emulation_build.import_emulated()
    module.take_counters()
    operation(*arguments)  # type: ignore[operator]
    counters: dict[str, int] = module.take_counters()
    return counters


def moved(counters: dict[str, int]) -> int:
    return counters["global_bytes_read"] + counters["global_bytes_written"]


@pytest.mark.parametrize("k", [7, 9, 15])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_bytes_moved(layout: torch.memory_format, size: int, k: int) -> None:
    # Enough channels that one warp does all images of each, and enough images that the filter is at
    # most 1.4 % of what is read.
    images = 8192 // size**2
    x = torch.randn(images, 16, size, size).to(FP16, memory_format=layout)
    weight = torch.randn(16, 1, k, k).to(FP16)
    floor = 2 * x.numel() * x.element_size()
    # Planes up to 32x32 fit into an item with all their halo.
    limit = 1.05 if size <= 32 else 1.35
    for name, operation, arguments in (
        ("forward", ops.depthwise_conv2d, (x, weight, None, "cuda")),
        ("input gradient", ops.depthwise_conv2d_input_gradient, (x, weight, "cuda")),
        ("weight gradient", ops.depthwise_conv2d_weight_gradient, (x, x, k, True, "cuda")),
    ):
        ratio = moved(count(operation, *arguments)) / floor
        assert 0.99 <= ratio <= limit, f"{name}: {ratio:.3f} times the floor, allowed {limit}"


@pytest.mark.parametrize(
    ("capability", "k", "least", "most"),
    [
        ((9, 0), 15, 1.12, 1.13),
        ((8, 0), 15, 1.12, 1.13),
        ((8, 6), 15, 1.37, 1.38),
        ((9, 0), 9, 1.21, 1.22),
    ],
)
def test_shared_memory_decides_how_often_halos_are_read(
    capability: tuple[int, int], k: int, least: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two wide channels_last tensors: strips of 32 rows or of 16."""
    emulate(capability, monkeypatch)
    x = torch.randn(4, 8, 56, 56).to(FP16, memory_format=torch.channels_last)
    floor = 2 * x.numel() * x.element_size()
    counters = count(ops.depthwise_conv2d_weight_gradient, x, x, k, True, "cuda")
    assert least <= moved(counters) / floor <= most


@pytest.mark.parametrize("k", [5, 9, 15])
@pytest.mark.parametrize("size", SIZES)
def test_matrices_are_read_without_bank_conflicts(size: int, k: int) -> None:
    x = torch.randn(2, 1, size, size).to(FP16)
    weight = torch.randn(1, 1, k, k).to(FP16)
    for operation, arguments in (
        (ops.depthwise_conv2d, (x, weight, None, "cuda")),
        (ops.depthwise_conv2d_weight_gradient, (x, x, k, False, "cuda")),
    ):
        counters = count(operation, *arguments)
        assert counters["matrices_read"] > 0
        assert counters["matrix_passes"] == counters["matrices_read"]
