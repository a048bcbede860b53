"""The filters of a depthwise convolution: their size and dilation, and how one embeds another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor


class Filter(NamedTuple):
    """Height x width taps, `dilation` rows and columns apart, with 'same' padding."""

    height: int
    width: int
    row_dilation: int = 1
    column_dilation: int = 1

    @classmethod
    def of(cls, weight: Tensor, dilation: Sequence[int] = (1, 1)) -> Filter:
        """Describe the filters of (C, 1, height, width)."""
        _, _, height, width = weight.shape
        return cls(height, width, *dilation)

    @property
    def size(self) -> int | None:
        """The kernel size of a square filter without dilation; None for any other."""
        square = self.height == self.width and self.dilation == (1, 1)
        return self.height if square else None

    @property
    def shape(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def dilation(self) -> tuple[int, int]:
        return self.row_dilation, self.column_dilation

    @property
    def taps(self) -> int:
        return self.height * self.width

    @property
    def extent(self) -> tuple[int, int]:
        """The rows and columns of the image from the first tap to the last."""
        return (
            (self.height - 1) * self.row_dilation + 1,
            (self.width - 1) * self.column_dilation + 1,
        )

    @property
    def embedding_size(self) -> int:
        """The odd size of the smallest square filter that holds this one around its centre."""
        return max(self.extent) | 1

    def __str__(self) -> str:
        if self.size is not None:
            return str(self.size)
        dilation = "" if self.dilation == (1, 1) else f" with dilation {_text(self.dilation)}"
        return f"{self.height} x {self.width}{dilation}"

    def unserved(self, fused: bool, kernel_sizes: Sequence[int], most_extent: int) -> str | None:
        """Say in a line why kernels do not take this filter, None if they do.

        Args:
            fused: whether activation and normalisation follow in the same call.
            kernel_sizes: the square filters that fused kernels take.
            most_extent: the most rows or columns that others reach over.
        """
        if fused and self.size not in kernel_sizes:
            sizes = ", ".join(map(str, kernel_sizes))
            return f"fused with normalisation it takes kernel sizes {sizes}, not {self}"
        rows, columns = self.extent
        if max(rows, columns) > most_extent:
            return (
                f"it takes filters that reach over up to {most_extent} rows and columns, not "
                f"{rows} x {columns} (kernel size {self})"
            )
        return None

    def embed(self, weight: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """Return larger filters that compute what `weight` does, with zeros around its taps.

        Args:
            weight: (C, 1, height, width).
            shape: rows and columns of the result, each at least those of `extent`; by default both
                are `embedding_size`.

        Returns:
            (C, 1, *shape).
        """
        shape = shape or self._square()
        embedded = weight.new_zeros(*weight.shape[:2], *shape)
        rows, columns = self._places(shape)
        embedded[..., rows, columns] = weight
        return embedded

    def pick(self, grad: Tensor) -> Tensor:
        """Return of the gradient of `embed`'s square result that of its argument, contiguous."""
        rows, columns = self._places(self._square())
        return grad[..., rows, columns].contiguous()

    def _square(self) -> tuple[int, int]:
        return self.embedding_size, self.embedding_size

    def _places(self, shape: tuple[int, int]) -> tuple[slice, slice]:
        """Return the rows and the columns of a filter of this shape where the taps are."""
        triples = zip(shape, self.extent, self.dilation, strict=True)
        rows, columns = (_along_axis(*each) for each in triples)
        return rows, columns


def _along_axis(size: int, extent: int, step: int) -> slice:
    """Return which of `size` lines hold taps; the centre of an even number is the one before."""
    first = (size - 1) // 2 - (extent - 1) // 2
    return slice(first, first + extent, step)


def pair(value: Any) -> tuple[Any, ...]:
    """Return the numbers for rows and columns, of a setting that may be a single one for both."""
    # Dynamo of PyTorch 2.9 and older does not know unions of types.
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _text(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]} x {pair[1]}"
