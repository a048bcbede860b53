"""Launch the moments of an activation over a batch, and the normalisation by them.

Moments have two stages: programs reduce chunks of a channel in a fixed order, and their partial
moments are merged in a fixed order. Results are the same to the bit every time. All tables are
float32 and have a column for each channel; `kernels.normalisation` names their rows.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from convmixer_kernels.backends.triton import elementwise
from convmixer_kernels.backends.triton.kernels.statistics import (
    batch_normalisation_kernel,
    merge_kernel,
    moments_kernel,
    running_normalisation_kernel,
)
from convmixer_kernels.operands import BatchNorm, PreActivation

# Parts times channels that a program holds in registers.
_MOST_MOMENTS = 4096
_MOST_CHANNELS = 128


def moments(before: PreActivation) -> Tensor:
    """Return the moments of activation(value + bias): float32 (3, C)."""
    value, bias, activation = before
    channels = value.shape[1]
    if value.numel() == 0:
        return value.new_zeros((3, channels), dtype=torch.float32)
    launch = elementwise.plan((value,), reduces=True)
    parts = value.new_empty((launch.splits, 3, channels), dtype=torch.float32)
    with torch.cuda.device_of(value):
        moments_kernel[launch.grid](
            *launch.arguments, bias, parts, ACTIVATION=activation, **launch.options
        )
    return parts[0] if launch.splits == 1 else _merge(parts)


def _merge(moments: Tensor) -> Tensor:
    """Merge the moments (parts, 3, C) of parts of a batch: (3, C)."""
    parts, _, channels = moments.shape
    merged = moments.new_empty((3, channels))
    constants = _merge_constants(parts)
    with torch.cuda.device_of(moments):
        merge_kernel[(triton.cdiv(channels, constants["CHANNELS"]),)](
            moments, merged, parts, channels, **constants
        )
    return merged


def _merge_constants(parts: int) -> dict[str, int]:
    padded = triton.next_power_of_2(parts)
    return {"PARTS": padded, "CHANNELS": max(1, min(_MOST_CHANNELS, _MOST_MOMENTS // padded))}


def batch_normalisation(moments: Tensor, norm: BatchNorm) -> Tensor:
    """Return the normalisation (5, C) by moments; update running statistics in place.

    Moments are (3, C), or (parts, 3, C) of several parts.

    Running statistics take the unbiased variance, and stay as they are where no part has a value.
    """
    *several, _, channels = moments.shape
    (parts,) = several or (1,)
    normalisation = moments.new_empty((5, channels))
    constants = _merge_constants(parts)
    with torch.cuda.device_of(moments):
        batch_normalisation_kernel[(triton.cdiv(channels, constants["CHANNELS"]),)](
            moments.contiguous(),
            normalisation,
            norm.gamma,
            norm.beta,
            norm.running_mean,
            norm.running_var,
            parts,
            channels,
            norm.momentum,
            norm.eps,
            **constants,
        )
    return normalisation


def running_normalisation(norm: BatchNorm) -> Tensor:
    """Return the normalisation (5, C) by running statistics, with infinity for the count."""
    running_mean = norm.running_mean
    assert running_mean is not None
    channels = running_mean.shape[0]
    normalisation = running_mean.new_empty((5, channels))
    with torch.cuda.device_of(running_mean):
        running_normalisation_kernel[(triton.cdiv(channels, _MOST_CHANNELS),)](
            running_mean,
            norm.running_var,
            norm.gamma,
            norm.beta,
            normalisation,
            channels,
            norm.eps,
            CHANNELS=_MOST_CHANNELS,
        )
    return normalisation
