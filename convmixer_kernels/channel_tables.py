"""Tables of numbers for each channel, one row a quantity, which operators and kernels exchange.

Each is one contiguous tensor, in the dtype of sums; the classes name its rows in their order.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from torch import Tensor


class Moments(NamedTuple):
    """Statistics of an activation: (3, C)."""

    number: Tensor
    mean: Tensor
    squares: Tensor
    """The sum of squared deviations from the mean."""


class Normalisation(NamedTuple):
    """Batch normalisation of an activation, (activation - mean) * scale + shift: (5, C)."""

    mean: Tensor
    scale: Tensor
    shift: Tensor
    rstd: Tensor
    """1 / sqrt(variance + eps); `scale` is gamma times that."""
    number: Tensor
    """The number of values behind mean and rstd; infinity for running statistics."""


class GradientSums(NamedTuple):
    """Sums over a batch that the gradients of batch normalisation depend on: (2, C)."""

    grad: Tensor
    """Of the gradient of the output."""
    products: Tensor
    """Of that gradient times (activation - mean)."""


Table = TypeVar("Table", Moments, Normalisation, GradientSums)


def rows(table: Tensor, kind: type[Table]) -> Table:
    """Name the rows of a table of a kind."""
    return kind(*table.unbind())


def row(table: Tensor, kind: type[Moments | Normalisation | GradientSums], name: str) -> Tensor:
    """Return a row of a table of a kind; that costs a fraction of naming them all."""
    return table[kind._fields.index(name)]
