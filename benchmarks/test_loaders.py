"""Images a second of the loaders of training images, against timm's; see loaders.py."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch

from benchmarks import loaders
from benchmarks.lib.measurement import Measurement

_ROUNDS = 5


@pytest.fixture(scope="module")
def measured(device: torch.device) -> dict[str, loaders.Measured]:
    return loaders.measure(device, _ROUNDS)


@pytest.mark.parametrize("loader", loaders.LOADERS)
def test_loaders(loader: str, measured: dict[str, loaders.Measured], record: Any) -> None:
    found = measured[loader]
    ratio = statistics.median(found.ratios)
    record(Measurement("loader", {"loader": loader}, found.seconds, info={"times_timm": ratio}))
