"""Tables 1, 2, 3 and 5 of the paper: images a second at inference."""

from __future__ import annotations

from typing import Any

import torch

import inference
from networks import Network
from shapes import Selection
from ways import Way


def test_inference(
    network: Network, way: Way, device: torch.device, selection: Selection, record: Any
) -> None:
    record(inference.measured(network, way, device, selection))
