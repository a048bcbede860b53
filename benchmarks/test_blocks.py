"""Convolution, GELU, batch normalisation and residual: the fused operations against PyTorch's."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.lib import blocks
from benchmarks.lib.peers import Peer
from benchmarks.lib.shapes import Case


def test_block(block: Case, peer: Peer, device: torch.device, record: Any) -> None:
    record(blocks.measured(block, peer, device))
