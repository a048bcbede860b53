"""Training steps of the ConvMixers of the tables: images a second and peak memory."""

from __future__ import annotations

from typing import Any

import torch

import training
from networks import Network
from shapes import Selection
from ways import Way


def test_training(
    network: Network, way: Way, device: torch.device, selection: Selection, record: Any
) -> None:
    record(training.measured(network, way, device, selection))
