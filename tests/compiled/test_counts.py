"""The CUDA kernels ask of the machine what counts.csv says."""

from __future__ import annotations

import pytest
import torch

from . import counts
from .steps import Case

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="counts on the emulated GPU")

CASES = list(counts.cases())
# Another version of the compiler makes a few instructions more or less.
MARGIN = 0.02
# A pass reads and writes at least so many tensors of the size of the input.
TENSORS = {
    "forward": (1, 1),
    "weight_gradient": (2, 0),
    "forward_normalised": (1, 1),
    "forward_moments": (1, 1),
    "fused_backward": (3, 1),
    "arranged": (1, 1),
}


def test_the_table_lists_the_cases() -> None:
    assert list(counts.read_table()) == [str(case) for case in CASES]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_counts(case: Case) -> None:
    expected, counted = counts.read_table()[str(case)], counts.count(case)
    off = {
        name: (number, expected[name])
        for name, number in counted.items()
        if abs(number - expected[name]) > MARGIN * expected[name]
    }
    assert not off, f"counted and in the table: {off}; python -m tests.compiled.counts writes it"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sectors_in_the_table_are_those_of_the_tensors(case: Case) -> None:
    """A pass moves every sector at least once, and those of whole planes no more often."""
    row = counts.read_table()[str(case)]
    images, channels, height, width = case.shape
    sectors = images * channels * height * width * 2 // 32
    read, written = (number * sectors for number in TENSORS[case.operation])
    assert row["sectors_read"] >= read
    assert row["sectors_written"] >= written
    if case.operation == "forward" and case.layout == "contiguous" and height == 32:
        filters = 50 * channels  # read two bytes at a time
        assert read < row["sectors_read"] <= read + filters
        assert row["sectors_written"] == written
