"""Convolution, GELU, batch normalisation and residual: the fused operations against PyTorch's."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

import measure
from blocks import Inputs, error_of, exact_results, random_inputs, runner
from peers import Peer
from shapes import Case


@lru_cache(maxsize=1)
def load(case: Case, device: torch.device) -> tuple[Inputs, dict[str, dict[str, Tensor]]]:
    """Contiguous inputs and the float64 results of every operation, whatever that of `case`."""
    inputs = random_inputs(case, device)
    return inputs, exact_results(inputs)


def test_block(block: Case, peer: Peer, device: torch.device, record: Any) -> None:
    if reason := peer.unavailable(device):
        pytest.skip(reason)
    with peer.settings():
        measure_block(block, peer, device, record)


def measure_block(block: Case, peer: Peer, device: torch.device, record: Any) -> None:
    inputs, exact = load(replace(block, operation="training", layout="contiguous"), device)
    run = runner(peer, block.operation)
    error = error_of(run, block, inputs, exact[block.operation], peer.units)
    assert error is None, f"{peer.name}: {error}"

    image_bytes = inputs.input.nbytes + inputs.grad_output.nbytes
    count = measure.buffer_sets(image_bytes, device)
    calls = [partial(run, inputs.copied(block.layout)) for _ in range(count)]
    samples = measure.kernel_samples(calls, device)
    record(
        "block",
        {**block.subject, "peer": peer.name},
        samples,
        block.work,
        is_pytorch=peer.kernels is None,
        kernels=measure.kernels_that_ran(calls[0], device) if peer.kernels is None else [],
        buffer_sets=count,
        peak_memory_bytes=measure.peak_memory(calls[0], device),
    )
