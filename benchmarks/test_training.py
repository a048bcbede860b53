"""Training steps of the ConvMixers of the tables: images a second and peak memory."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.lib import training
from benchmarks.lib.networks import Network
from benchmarks.lib.shapes import Selection
from benchmarks.lib.ways import Way


def test_training(
    network: Network, way: Way, device: torch.device, selection: Selection, record: Any
) -> None:
    record(training.measured(network, way, device, selection))
