"""Depthwise convolution, input gradient and weight gradient: the kernels against PyTorch.

``-k "PyTorch or compile"`` measures PyTorch alone.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.lib import convolutions
from benchmarks.lib.peers import Peer
from benchmarks.lib.shapes import Case


def test_depthwise(case: Case, peer: Peer, device: torch.device, record: Any) -> None:
    record(convolutions.measured(case, peer, device))
