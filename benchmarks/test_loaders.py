"""Images a second of the loaders of training images, against timm's; see loaders.py."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch

from benchmarks import loaders
from benchmarks.lib.measurement import Measurement

_ROUNDS = 5


@pytest.mark.parametrize("loader", loaders.LOADERS)
def test_loaders(loader: str, device: torch.device, record: Any) -> None:
    found = loaders.measure(loader, device, _ROUNDS)
    ratios = {
        "times_timm": statistics.median(found.on_device.ratios),
        "times_timm_handed_over": statistics.median(found.handed_over.ratios),
    }
    record(Measurement("loader", {"loader": loader}, found.on_device.seconds, info=ratios))
