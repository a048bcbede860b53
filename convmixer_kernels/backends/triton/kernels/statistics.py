"""Kernels for the moments of an activation, and for the normalisation that follows from them."""

from __future__ import annotations

import triton
import triton.language as tl

from convmixer_kernels.backends.triton.kernels.activations import activate
from convmixer_kernels.backends.triton.kernels.elementwise import (
    Runs,
    count_chunks,
    load_bias,
    load_chunk,
    locate_chunk,
    locate_program,
    run_time_sizes,
    sum_by_channel,
)
from convmixer_kernels.backends.triton.kernels.normalisation import (
    Moments,
    merge_moments,
    store_moments,
    store_normalisation,
)


@triton.jit(do_not_specialize=run_time_sizes("value"))
def moments_kernel(
    value_ptr,
    runs,
    channels,
    positions,
    splits,
    value_run_stride,
    value_channel_stride,
    value_position_stride,
    bias_ptr,
    moments_ptr,
    ACTIVATION: tl.constexpr,
    SHAPE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Store moments[split, :, channel] of activation(value + bias).

    Deviations are taken from the mean of the program's first chunk. That cancels no more digits
    than a program has chunks, however far from zero the values lie.
    """
    EXACT: tl.constexpr = value_ptr.dtype.element_ty == tl.float32
    CHANNELS: tl.constexpr = SHAPE[1]
    value_runs = Runs(value_ptr, value_run_stride, value_channel_stride, value_position_stride)
    split, first_channel = locate_program(channels, CHANNELS)
    channel = first_channel + tl.arange(0, CHANNELS)
    bias = load_bias(bias_ptr, tl.minimum(channel, channels - 1)[None, :, None])
    total = tl.zeros(SHAPE, dtype=tl.float32)
    squares = tl.zeros(SHAPE, dtype=tl.float32)
    pivot = tl.zeros((CHANNELS,), dtype=tl.float32)
    elements = tl.zeros((), dtype=tl.int64)
    for number in range(split, count_chunks(runs, positions, SHAPE), splits):
        chunk = locate_chunk(
            number, first_channel, runs, channels, positions, SHAPE, ALIGNMENT, CHANNELS_LAST
        )
        value = load_chunk(value_runs, chunk, ALIGNMENT, CHANNELS_LAST) + bias
        activated = tl.where(chunk.mask, activate(value, ACTIVATION, EXACT), 0.0)
        if number == split:
            pivot = sum_by_channel(activated) / chunk.count
        deviation = tl.where(chunk.mask, activated - pivot[None, :, None], 0.0)
        total += deviation
        squares += deviation * deviation
        elements += chunk.count
    count = elements.to(tl.float32)
    mean = sum_by_channel(total) / count
    squares_from_mean = tl.maximum(sum_by_channel(squares) - mean * mean * count, 0.0)
    store_moments(
        moments_ptr + split * 3 * channels,
        channel,
        channels,
        Moments(count + tl.zeros((CHANNELS,), tl.float32), pivot + mean, squares_from_mean),
    )


@triton.jit
def _update_running(buffer_ptr, channel, statistic, momentum, mask):
    """Move a running statistic towards that of the batch, if the buffer is there."""
    if buffer_ptr is not None:
        old = tl.load(buffer_ptr + channel, mask=mask, other=0.0)
        new = (1.0 - momentum) * old + momentum * statistic
        tl.store(buffer_ptr + channel, new, mask=mask)


@triton.jit(do_not_specialize=("parts", "channels"))
def merge_kernel(
    moments_ptr, merged_ptr, parts, channels, PARTS: tl.constexpr, CHANNELS: tl.constexpr
):
    """Store the moments of all parts of moments[part, :, channel]."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    store_moments(
        merged_ptr, channel, channels, merge_moments(moments_ptr, channel, parts, channels, PARTS)
    )


@triton.jit(do_not_specialize=("parts", "channels", "momentum", "eps"))
def batch_normalisation_kernel(
    moments_ptr,
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
    """Store the normalisation by moments[part, :, channel] and update the running statistics."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    count, mean, squares = merge_moments(moments_ptr, channel, parts, channels, PARTS)
    update = (channel < channels) & (count > 0)
    _update_running(running_mean_ptr, channel, mean, momentum, update)
    unbiased = squares / tl.maximum(count - 1.0, 1.0)
    _update_running(running_var_ptr, channel, unbiased, momentum, update)
    variance = squares / tl.maximum(count, 1.0)
    store_normalisation(
        normalisation_ptr, channel, channels, mean, variance, count, gamma_ptr, beta_ptr, eps
    )


@triton.jit(do_not_specialize=("channels", "eps"))
def running_normalisation_kernel(
    mean_ptr,
    var_ptr,
    gamma_ptr,
    beta_ptr,
    normalisation_ptr,
    channels,
    eps,
    CHANNELS: tl.constexpr,
):
    """Store the normalisation by running statistics."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    exists = channel < channels
    mean = tl.load(mean_ptr + channel, mask=exists, other=0.0)
    variance = tl.load(var_ptr + channel, mask=exists, other=0.0)
    # Running statistics do not depend on the values, as if there were infinitely many of these.
    count = tl.full((CHANNELS,), float("inf"), dtype=tl.float32)
    store_normalisation(
        normalisation_ptr, channel, channels, mean, variance, count, gamma_ptr, beta_ptr, eps
    )
