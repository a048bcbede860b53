"""The epilogue of a convolution: from a finished accumulator to the output."""

from __future__ import annotations

import triton
import triton.language as tl

from convmixer_kernels.backends.triton.kernels.activations import activate


@triton.jit
def load_addend(pointers, row, mask, WIDTH: tl.constexpr):
    """Load a row of the tensor that is added to the output, 0 if there is none."""
    if pointers is not None:
        return tl.load(pointers + tl.cast(row, tl.int64) * WIDTH, mask=mask, other=0.0)
    else:
        return 0.0


@triton.jit
def store_row(
    pointers,
    row,
    mask,
    WIDTH: tl.constexpr,
    accumulator,
    normalisation,
    addends,
    addend,
    ACTIVATION: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Store (activation(accumulator) - mean) * scale + shift + addend, rounded once.

    Without `normalisation` there is no activation either. `addend` is a row of `addends`, pointers
    or None, from `load_addend`.
    """
    if normalisation is not None:
        activated = activate(accumulator, ACTIVATION, EXACT)
        accumulator = (activated - normalisation.mean) * normalisation.scale + normalisation.shift
    if addends is not None:
        accumulator += addend.to(tl.float32)
    result = accumulator.to(pointers.dtype.element_ty)
    tl.store(pointers + tl.cast(row, tl.int64) * WIDTH, result, mask=mask)
