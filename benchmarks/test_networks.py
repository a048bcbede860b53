"""Tables 1, 2, 3 and 5 of the paper: images a second at inference."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.lib import inference
from benchmarks.lib.networks import Network
from benchmarks.lib.shapes import Selection
from benchmarks.lib.ways import Way


def test_inference(
    network: Network, way: Way, device: torch.device, selection: Selection, record: Any
) -> None:
    record(inference.measured(network, way, device, selection))
