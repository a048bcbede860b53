"""Moments of an activation over a batch, and the normalisation that follows from them.

Moments have two stages: programs reduce tiles of a channel in a fixed order, and what they leave is
merged in a fixed order. Results are the same to the bit every time. All tables are float32 and have
a column for each channel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from convmixer_kernels.backends.triton import streaming
from convmixer_kernels.backends.triton.activations import activate
from convmixer_kernels.backends.triton.streaming import load_bias, offsets, sum_of_tile, tile

# Parts times channels that a program holds in registers.
_TILE = 4096
_MOST_CHANNELS = 128


@triton.jit(do_not_specialize=streaming.sizes_and_strides("value"))
def moments_kernel(
    value_ptr,
    runs,
    channels,
    positions,
    parts,
    value_run_stride,
    value_channel_stride,
    value_position_stride,
    bias_ptr,
    moments_ptr,
    ACTIVATION: tl.constexpr,
    RUNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """moments[part, :, channel]: count, mean, sum of squared deviations from it.

    Deviations are taken from the mean of the program's first tile. That cancels no more digits than
    a program has tiles, however far from zero the values lie.
    """
    EXACT: tl.constexpr = value_ptr.dtype.element_ty == tl.float32
    groups = tl.cdiv(channels, CHANNELS)
    part = tl.program_id(0) // groups
    first_channel = (tl.program_id(0) % groups) * CHANNELS
    channel = first_channel + tl.arange(0, CHANNELS)
    parameter = tl.minimum(channel, channels - 1)[None, :, None]
    bias = load_bias(bias_ptr, parameter)
    tiles = tl.cdiv(runs, RUNS) * tl.cdiv(positions, POSITIONS)
    total = tl.zeros((RUNS, CHANNELS, POSITIONS), dtype=tl.float32)
    squares = tl.zeros((RUNS, CHANNELS, POSITIONS), dtype=tl.float32)
    pivot = tl.zeros((CHANNELS,), dtype=tl.float32)
    elements = tl.zeros((), dtype=tl.int64)
    for number in range(part, tiles, parts):
        run, lane, position, mask, count = tile(
            number,
            first_channel,
            runs,
            channels,
            positions,
            RUNS,
            CHANNELS,
            POSITIONS,
            ALIGNMENT,
            CHANNELS_LAST,
        )
        place = offsets(
            run,
            lane,
            position,
            value_run_stride,
            value_channel_stride,
            value_position_stride,
            ALIGNMENT,
            CHANNELS_LAST,
        )
        value = tl.load(value_ptr + place, mask=mask, other=0.0).to(tl.float32) + bias
        activated = tl.where(mask, activate(value, ACTIVATION, EXACT), 0.0)
        if number == part:
            pivot = sum_of_tile(activated) / count
        deviation = tl.where(mask, activated - pivot[None, :, None], 0.0)
        total += deviation
        squares += deviation * deviation
        elements += count
    number = elements.to(tl.float32)
    mean = sum_of_tile(total) / number
    exists = channel < channels
    moments_ptr += part * 3 * channels
    tl.store(moments_ptr + channel, number + tl.zeros((CHANNELS,), tl.float32), mask=exists)
    tl.store(moments_ptr + channels + channel, pivot + mean, mask=exists)
    deviations = tl.maximum(sum_of_tile(squares) - mean * mean * number, 0.0)
    tl.store(moments_ptr + 2 * channels + channel, deviations, mask=exists)


@triton.jit
def _store_normalisation(
    normalisation_ptr, channel, channels, mean, var, count, gamma_ptr, beta_ptr, eps, exists
):
    rstd = 1.0 / tl.sqrt(var + eps)
    scale = rstd
    if gamma_ptr is not None:
        scale = rstd * tl.load(gamma_ptr + channel, mask=exists, other=0.0)
    shift = tl.zeros_like(rstd)
    if beta_ptr is not None:
        shift = tl.load(beta_ptr + channel, mask=exists, other=0.0)
    tl.store(normalisation_ptr + channel, mean, mask=exists)
    tl.store(normalisation_ptr + channels + channel, scale, mask=exists)
    tl.store(normalisation_ptr + 2 * channels + channel, shift, mask=exists)
    tl.store(normalisation_ptr + 3 * channels + channel, rstd, mask=exists)
    tl.store(normalisation_ptr + 4 * channels + channel, count, mask=exists)


@triton.jit
def _update(buffer_ptr, channel, statistic, momentum, update):
    if buffer_ptr is not None:
        old = tl.load(buffer_ptr + channel, mask=update, other=0.0)
        new = (1.0 - momentum) * old + momentum * statistic
        tl.store(buffer_ptr + channel, new, mask=update)


@triton.jit(do_not_specialize=("parts", "channels", "momentum", "eps"))
def merge_kernel(
    moments_ptr,
    merged_ptr,
    normalisation_ptr,
    gamma_ptr,
    beta_ptr,
    running_mean_ptr,
    running_var_ptr,
    parts,
    channels,
    momentum,
    eps,
    PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Merges moments[part, :, channel]; stores them, or normalises by them and keeps them.

    A part deviates from the whole by its mean: squares + count * (mean - whole mean)^2. All parts
    are loaded at once, since waiting for one after the other takes longer than everything else.
    """
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    exists = channel < channels
    part = tl.arange(0, PARTS)[:, None]
    mask = (part < parts) & exists[None, :]
    counts_ptr = moments_ptr + (part.to(tl.int64) * 3 * channels + channel[None, :])
    counts = tl.load(counts_ptr, mask=mask, other=0.0)
    filled = counts > 0
    means = tl.load(counts_ptr + channels, mask=mask, other=0.0)
    squares = tl.load(counts_ptr + 2 * channels, mask=mask, other=0.0)
    count = tl.sum(counts, axis=0)
    divisor = tl.maximum(count, 1.0)
    # Means are averaged as distances from one of them, which keeps more of their digits.
    pivot = tl.max(tl.where(filled, means, float("-inf")), axis=0)
    pivot = tl.where(count > 0, pivot, 0.0)
    distances = tl.where(filled, means - pivot[None, :], 0.0)
    distance = tl.sum(counts * distances, axis=0) / divisor
    mean = pivot + distance
    deviations = distances - distance[None, :]
    square = tl.sum(squares + counts * deviations * deviations, axis=0)
    if merged_ptr is not None:
        tl.store(merged_ptr + channel, count, mask=exists)
        tl.store(merged_ptr + channels + channel, mean, mask=exists)
        tl.store(merged_ptr + 2 * channels + channel, square, mask=exists)
    if normalisation_ptr is not None:
        update = exists & (count > 0)
        _update(running_mean_ptr, channel, mean, momentum, update)
        unbiased = square / tl.maximum(count - 1.0, 1.0)
        _update(running_var_ptr, channel, unbiased, momentum, update)
        var = square / divisor
        _store_normalisation(
            normalisation_ptr,
            channel,
            channels,
            mean,
            var,
            count,
            gamma_ptr,
            beta_ptr,
            eps,
            exists,
        )


@triton.jit(do_not_specialize=("channels", "eps"))
def running_kernel(
    mean_ptr,
    var_ptr,
    gamma_ptr,
    beta_ptr,
    normalisation_ptr,
    channels,
    eps,
    CHANNELS: tl.constexpr,
):
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    exists = channel < channels
    mean = tl.load(mean_ptr + channel, mask=exists, other=0.0)
    var = tl.load(var_ptr + channel, mask=exists, other=0.0)
    # Running statistics do not depend on the values, as if there were infinitely many of these.
    count = tl.full((CHANNELS,), float("inf"), dtype=tl.float32)
    _store_normalisation(
        normalisation_ptr, channel, channels, mean, var, count, gamma_ptr, beta_ptr, eps, exists
    )


def moments(value: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """Count, mean and sum of squared deviations of activation(value + bias): float32 (3, C).

    Args:
        value: (N, C, H, W).
        bias: float32 (C,) or None.
    """
    channels = value.shape[1]
    if value.numel() == 0:
        return value.new_zeros((3, channels), dtype=torch.float32)
    walk = streaming.walk((value,), reduces=True)
    parts = value.new_empty((walk.parts, 3, channels), dtype=torch.float32)
    with torch.cuda.device_of(value):
        moments_kernel[walk.grid](
            *walk.arguments, bias, parts, ACTIVATION=activation, **walk.options
        )
    return parts[0] if walk.parts == 1 else _merged(parts)


def _merged(moments: Tensor) -> Tensor:
    """(parts, 3, C) moments as those of all their values: (3, C)."""
    merged = moments.new_empty(moments.shape[1:])
    _merge(moments, merged, None, (None,) * 4, 0.0, 0.0)
    return merged


def batch_normalisation(
    moments: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """The normalisation (5, C) by moments (parts, 3, C); updates running statistics in place.

    Rows: mean, scale, shift, 1 / sqrt(var + eps), count. Running statistics take the unbiased
    variance, and stay as they are where no part has a value.
    """
    normalisation = moments.new_empty((5, moments.shape[2]))
    parameters = (gamma, beta, running_mean, running_var)
    _merge(moments, None, normalisation, parameters, momentum, eps)
    return normalisation


def _merge(
    moments: Tensor,
    merged: Tensor | None,
    normalisation: Tensor | None,
    parameters: tuple[Tensor | None, ...],
    momentum: float,
    eps: float,
) -> None:
    count, _, channels = moments.shape
    padded = triton.next_power_of_2(count)
    block = max(1, min(_MOST_CHANNELS, _TILE // padded))
    with torch.cuda.device_of(moments):
        merge_kernel[(triton.cdiv(channels, block),)](
            moments.contiguous(),
            merged,
            normalisation,
            *parameters,
            count,
            channels,
            momentum,
            eps,
            PARTS=padded,
            CHANNELS=block,
        )


def running_normalisation(
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
) -> Tensor:
    """The normalisation (5, C) by running statistics, with infinity for the count."""
    channels = running_mean.shape[0]
    normalisation = running_mean.new_empty((5, channels))
    with torch.cuda.device_of(running_mean):
        running_kernel[(triton.cdiv(channels, _MOST_CHANNELS),)](
            running_mean,
            running_var,
            gamma,
            beta,
            normalisation,
            channels,
            eps,
            CHANNELS=_MOST_CHANNELS,
        )
    return normalisation
