"""What becomes of a finished sum of the convolution before it is rounded."""

from __future__ import annotations

import triton
import triton.language as tl

from convmixer_kernels.backends.triton.activations import activate


@triton.jit
def load_normalisation(normalisation_ptr, channel, channels):
    """Mean, scale and shift of channels; nothing of value if there is no normalisation."""
    if normalisation_ptr is not None:
        mean = tl.load(normalisation_ptr + channel)
        scale = tl.load(normalisation_ptr + channels + channel)
        shift = tl.load(normalisation_ptr + 2 * channels + channel)
        return mean, scale, shift
    else:
        return 0.0, 0.0, 0.0


@triton.jit
def load_addend(pointers, mask, addend_ptr):
    """What is added to a row in the end, in its own dtype; nothing of value if nothing is."""
    if addend_ptr is not None:
        return tl.load(pointers, mask=mask, other=0.0)
    else:
        return 0.0


@triton.jit
def finish(
    total,
    mean,
    scale,
    shift,
    addend,
    normalisation_ptr,
    addend_ptr,
    ACTIVATION: tl.constexpr,
    EXACT: tl.constexpr,
):
    """(activation(total) - mean) * scale + shift + addend, without what the pointers leave out."""
    if normalisation_ptr is not None:
        total = (activate(total, ACTIVATION, EXACT) - mean) * scale + shift
    if addend_ptr is not None:
        total += addend.to(tl.float32)
    return total
