"""Bytes that the CUDA kernels move and bank conflicts they meet, as counted by the emulation.

The floor of a pass is one read of each tensor it takes and one write of each it makes.
"""

from __future__ import annotations

import pytest
import torch

from convmixer_kernels import emulation_build, ops

FP16 = torch.float16
WHOLE_PLANES = [8, 16, 32]
OTHER_PLANES = [7, 14, 18, 24, 28, 44, 56]

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
@pytest.mark.parametrize("size", WHOLE_PLANES + OTHER_PLANES)
def test_bytes_moved(size: int, k: int) -> None:
    # Enough channels that one warp does all images of each, and enough images that reading the
    # filter and writing its gradient do not count.
    images = 128 if size <= 8 else 32 if size <= 16 else 16
    x = torch.randn(images, 16, size, size).to(FP16)
    weight = torch.randn(16, 1, k, k).to(FP16)
    floor = 2 * x.numel() * x.element_size()
    limit = 1.05 if size in WHOLE_PLANES else 1.35
    for name, operation, arguments in (
        ("forward", ops.depthwise_conv2d, (x, weight, None, "cuda")),
        ("input gradient", ops.depthwise_conv2d_input_gradient, (x, weight, "cuda")),
        ("weight gradient", ops.depthwise_conv2d_weight_gradient, (x, x, k, True, "cuda")),
    ):
        ratio = moved(count(operation, *arguments)) / floor
        assert 0.99 <= ratio <= limit, f"{name}: {ratio:.3f} times the floor, allowed {limit}"


@pytest.mark.parametrize("k", [5, 9, 15])
@pytest.mark.parametrize("size", WHOLE_PLANES + OTHER_PLANES)
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
