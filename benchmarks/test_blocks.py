"""Convolution, GELU, batch normalisation and residual: the fused operations against PyTorch's."""

from __future__ import annotations

from typing import Any

import torch

import blocks
from peers import Peer
from shapes import Case


def test_block(block: Case, peer: Peer, device: torch.device, record: Any) -> None:
    record(blocks.measured(block, peer, device))
