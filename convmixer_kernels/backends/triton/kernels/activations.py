"""Activations in float32 registers, and their slopes.

GELU is exact GELU, x Phi(x), without its erf: 10 instructions, one of them of the special function
unit, in place of 27 to 32. The logarithm of the lower tail, log2 Phi(-t), is nearly a parabola; a
polynomial of degree 6, fitted on [0, 5.8] for the least error in units in the last place of
float16, leaves 1e-2 of such a unit and 1e-6 absolute. The tail is subtracted from max(x, 0), which
takes no division and cancels no digits.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _lower_tail(t):
    """Return Phi(-t) for 0 <= t <= 8."""
    exponent = 3.2997431844705716e-05 * t - 0.0007552449242211878
    exponent = exponent * t + 0.007973842322826385
    exponent = exponent * t - 0.05311998352408409
    exponent = exponent * t - 0.4591006636619568
    exponent = exponent * t - 1.151066541671753
    exponent = exponent * t - 1.0000053644180298
    return tl.exp2(exponent)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr, EXACT: tl.constexpr):
    """Return the activation of float32 `x`; GELU takes erf if EXACT (for float32 tensors)."""
    if ACTIVATION == "gelu":
        if EXACT:
            return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
        else:
            # The tail is zero beyond 8; without a limit, infinity times 0 would be NaN.
            t = tl.minimum(tl.abs(x), 8.0)
            return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) - t * _lower_tail(t)
    elif ACTIVATION == "relu":
        return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    else:
        tl.static_assert(ACTIVATION == "identity")
        return x


@triton.jit
def activate_with_slope(x, ACTIVATION: tl.constexpr, EXACT: tl.constexpr):
    """Return the activation of float32 `x` and its derivative; that of relu at 0 is 0."""
    if ACTIVATION == "gelu":
        density = tl.exp2(x * x * -0.7213475204444817 - 1.3257480647361593)
        if EXACT:
            cumulative = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
            return x * cumulative, x * density + cumulative
        else:
            t = tl.minimum(tl.abs(x), 8.0)
            tail = _lower_tail(t)
            value = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) - t * tail
            return value, x * density + tl.where(x > 0, 1.0 - tail, tail)
    elif ACTIVATION == "relu":
        return (
            tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL),
            tl.where(x > 0, 1.0, 0.0),
        )
    else:
        tl.static_assert(ACTIVATION == "identity")
        return x, tl.full(x.shape, 1.0, tl.float32)
