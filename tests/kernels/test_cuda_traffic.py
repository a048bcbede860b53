"""Bytes that the CUDA kernels move and bank conflicts they meet, as counted by the emulated GPU.

The floor of a pass is one read of each tensor it takes and one write of each it makes.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from convmixer_kernels import emulated_gpu, ops
from tests.helpers import emulated

FP16 = torch.float16
SIZES = [7, 8, 14, 16, 18, 24, 28, 32, 44, 56]

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="counts on the emulated GPU")


@pytest.fixture
def one_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """One warp goes through all images of a channel: it reads their filter once."""
    emulated.set_multiprocessors(monkeypatch, 0)


def gradient_bytes(input: Tensor, k: int) -> int:
    """Bytes of the gradients of filters and biases; of several shares, each is written and read."""
    written: list[int] = []

    def record(tensor: Tensor, is_written: bool) -> None:
        if is_written:
            written.append(tensor.numel() * tensor.element_size())

    with emulated_gpu.kernels_skipped():
        emulated_gpu.extension().watch(record)
        ops.depthwise_conv2d_weight_gradient(input, input, (k, k), True, "cuda")
    gradients, shares = written[:2], written[2:]
    return sum(gradients) + 2 * sum(shares)


@pytest.mark.usefixtures("one_share")
@pytest.mark.parametrize("k", [7, 9, 15])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_bytes_moved(format: torch.memory_format, size: int, k: int) -> None:
    # Enough images that the filter is at most 1.5 % of the floor.
    images, channels = 8192 // size**2, 16 if format == torch.channels_last else 2
    x = torch.randn(images, channels, size, size).to(FP16, memory_format=format)
    weight = torch.randn(channels, 1, k, k).to(FP16)
    tensors = 2 * x.numel() * x.element_size()
    # Planes up to 32x32 fit into an item with all their halo. In channels_last, items of wider ones
    # are 16 rows high, and read a halo of k - 1 rows each.
    gradient_limit = 1.02 if size <= 32 else 1.22
    forward_limit = gradient_limit
    if size > 32 and format == torch.channels_last:
        forward_limit = 1.25 if k <= 9 else 1.45
    for name, operation, arguments, floor, limit in (
        ("forward", ops.depthwise_conv2d, (x, weight, None, "cuda"), tensors, forward_limit),
        (
            "input gradient",
            ops.depthwise_conv2d_input_gradient,
            (x, weight, "cuda"),
            tensors,
            forward_limit,
        ),
        (
            "weight gradient",
            ops.depthwise_conv2d_weight_gradient,
            (x, x, k, True, "cuda"),
            tensors + gradient_bytes(x, k),
            gradient_limit,
        ),
    ):
        ratio = emulated.moved(operation, *arguments) / floor
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
    """Two wide channels_last tensors: row blocks of 32 rows or of 16."""
    emulated.pretend(monkeypatch, capability)
    x = torch.randn(4, 8, 56, 56).to(FP16, memory_format=torch.channels_last)
    floor = 2 * x.numel() * x.element_size()
    bytes = emulated.moved(ops.depthwise_conv2d_weight_gradient, x, x, k, True, "cuda")
    assert least <= (bytes - gradient_bytes(x, k)) / floor <= most


@pytest.mark.parametrize("k", [5, 9, 15])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("layout", "channels", "limit"),
    # A channels_last matrix, whose units change places, takes up to 1.16 passes.
    [(torch.contiguous_format, 1, 1.0), (torch.channels_last, 16, 1.2)],
    ids=str,
)
def test_bank_conflicts_of_matrices(
    layout: torch.memory_format, channels: int, limit: float, size: int, k: int
) -> None:
    x = torch.randn(2, channels, size, size).to(FP16, memory_format=layout)
    weight = torch.randn(channels, 1, k, k).to(FP16)
    for operation, arguments in (
        (ops.depthwise_conv2d, (x, weight, None, "cuda")),
        (ops.depthwise_conv2d_weight_gradient, (x, x, k, False, "cuda")),
    ):
        counters = emulated.count(operation, *arguments)
        assert 0 < counters["matrices_read"] <= counters["matrix_passes"]
        assert counters["matrix_passes"] <= limit * counters["matrices_read"]
