"""The cost of a call on the host, measured without a GPU; see host.py."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch

from benchmarks import host
from benchmarks.lib.measurement import Measurement, NotMeasured

_ROUNDS = 15


@pytest.mark.parametrize("call", host.CALLS)
def test_host(call: str, device: torch.device, record: Any) -> None:
    if device.type != "cpu":
        raise NotMeasured("what a call costs the host is measured where there is no GPU")
    found = host.measure(call, _ROUNDS)
    ratio = statistics.median(found.ratios)
    record(Measurement("host", {"call": call}, found.seconds, info={"times_conv2d": ratio}))
