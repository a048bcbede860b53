"""Tables of numbers for each channel, one row a quantity, which operators and kernels exchange.

Each is one contiguous tensor, in the dtype of sums; the classes name its rows in their order.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def affine_gradients(
    sums: Tensor, normalisation: Tensor, needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of gamma and beta that are needed, tensors of their own."""
    needs_gamma, needs_beta = needed
    grad_gamma = grad_beta = None
    if needs_gamma:
        rstd = row(normalisation, Normalisation, "rstd")
        grad_gamma = row(sums, GradientSums, "products") * rstd
    if needs_beta:
        grad_beta = row(sums, GradientSums, "grad").clone()
    return grad_gamma, grad_beta
