"""The two ceilings that every other measurement of the run is held against."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.lib.arithmetic import Ceilings
from benchmarks.lib.measure import CeilingSamples
from benchmarks.lib.measurement import Measurement


@pytest.mark.parametrize("what", ["copy", "matmul"])
def test_ceiling(
    what: str, ceiling_samples: CeilingSamples, ceilings: Ceilings, record: Any
) -> None:
    copy = ceiling_samples.fastest_copy
    samples = {"copy": copy.samples, "matmul": ceiling_samples.product}
    reached: dict[str, dict[str, Any]] = {
        "copy": {"gigabytes_per_second": ceilings.bytes_per_second / 1e9, "way": copy.way},
        "matmul": {
            "teraflops": ceilings.operations_per_second / 1e12,
            "dtype": ceilings.dtype,
        },
    }
    record(Measurement("ceiling", {"what": what}, samples[what], info=reached[what]))
