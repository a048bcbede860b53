"""Bytes, operations, ceilings, ratios and noise of measurements. This file needs no PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Images, channels, height, width.
Shape = tuple[int, int, int, int]
# Below this, two measurements of one program on one machine differ for no reason worth a look.
LEAST_CHANGE = 0.03
# Tensors that the fused operations read and write, see docs/fused.md: inference reads the input and
# writes the output. With the statistics of the batch the convolution is written and read again in
# between. The backward pass reads the convolution and the gradient for two sums, and then both and
# the input for the gradient of the input.
BLOCK_PASSES = {"inference": 2, "training_forward": 5, "training": 11}
# Passes over the filters, and convolutions: the backward pass has those of its two gradients.
_BLOCK_CONVOLUTIONS = {"inference": 1, "training_forward": 1, "training": 3}


@dataclass(frozen=True)
class Work:
    """The least bytes and operations of an operation.

    Attributes:
        bytes: every input read once and every output written once.
        operations: floating-point, a multiplication and an addition counting as two.
    """

    bytes: int
    operations: int


def depthwise_work(shape: Shape, kernel_size: int, element_bytes: int) -> Work:
    """Count the work of a depthwise convolution with 'same' padding, or of one of its gradients.

    Each of the three passes over two tensors of images and one of filters, and does one
    multiplication and addition for every pair of an output and a filter element that meets the
    image; those that meet the padding cost nothing here, though a kernel may well compute them.
    """
    images, channels, height, width = shape
    planes = images * channels
    elements, filters = planes * height * width, channels * kernel_size**2
    products = planes * _meetings(height, kernel_size) * _meetings(width, kernel_size)
    return Work((2 * elements + filters) * element_bytes, 2 * products)


def block_work(operation: str, shape: Shape, kernel_size: int, element_bytes: int) -> Work:
    """Count the work of BN(GELU(depthwise(x))) + x: an operation of `BLOCK_PASSES`.

    Only the convolutions' operations count, and tensors are taken to be too large for a cache: of a
    small one that stays there between two passes, a fast version moves less.
    """
    convolution = depthwise_work(shape, kernel_size, element_bytes)
    elements, filters = math.prod(shape), shape[1] * kernel_size**2
    convolutions = _BLOCK_CONVOLUTIONS[operation]
    return Work(
        (BLOCK_PASSES[operation] * elements + convolutions * filters) * element_bytes,
        convolutions * convolution.operations,
    )


def _meetings(size: int, kernel_size: int) -> int:
    """Pairs of a position of a line and a filter element above a position of that line."""
    left = (kernel_size - 1) // 2
    return sum(max(0, size - abs(offset)) for offset in range(-left, kernel_size - left))


@dataclass(frozen=True)
class Ceilings:
    """Bandwidth and rate that the machine reached in the same run.

    Attributes:
        bytes_per_second: of the fastest copy, bytes read plus bytes written.
        operations_per_second: of a large dense matrix product.
        dtype: of that product.
    """

    bytes_per_second: float
    operations_per_second: float
    dtype: str

    def floor_seconds(self, work: Work) -> float:
        """The time below which no version goes: the longer of moving and computing."""
        return max(work.bytes / self.bytes_per_second, work.operations / self.operations_per_second)

    def share_of_copy(self, work: Work, seconds: float) -> float:
        """Bandwidth reached as a share of the copy's; 1 is a copy of input to output."""
        return work.bytes / seconds / self.bytes_per_second

    def reached(self, work: Work, seconds: float) -> dict[str, float]:
        """The rates that a time amounts to, under the names of a record."""
        return {
            "gigabytes_per_second": work.bytes / seconds / 1e9,
            "share_of_copy": self.share_of_copy(work, seconds),
            "share_of_floor": self.floor_seconds(work) / seconds,
        }


def speedup(seconds: float, baseline_seconds: float) -> float:
    """Return the ratio of the baseline's time to this one; below 1 is slower."""
    return baseline_seconds / seconds


def noise(median: float, interquartile_range: float) -> float:
    """Spread of the samples of a measurement relative to its median."""
    return interquartile_range / median if median > 0 else 0.0


@dataclass(frozen=True)
class Change:
    """Two measurements of one thing.

    Attributes:
        ratio: time after over time before; below 1 is faster.
        threshold: relative difference that noise explains.
    """

    ratio: float
    threshold: float

    @property
    def beyond_noise(self) -> bool:
        return max(self.ratio, 1 / self.ratio) > 1 + self.threshold


def change(
    before: float, after: float, noises: Sequence[float], least: float = LEAST_CHANGE
) -> Change:
    """Compare two times; noises of both sides add up, and `least` is always granted."""
    return Change(after / before, max(least, sum(noises)))
