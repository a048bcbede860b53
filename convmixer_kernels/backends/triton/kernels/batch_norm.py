"""Kernels for batch normalisation of an activation: elementwise passes over tensors of any size.

The normalised quantity is a = activation(value + bias), computed again by every kernel and never
stored.
"""

from __future__ import annotations

import triton
import triton.language as tl

from convmixer_kernels.backends.triton.kernels.activations import activate, activate_with_slope
from convmixer_kernels.backends.triton.kernels.elementwise import (
    Runs,
    count_chunks,
    load_bias,
    load_chunk,
    locate_chunk,
    locate_program,
    run_time_sizes,
    store_chunk,
    sum_by_channel,
)
from convmixer_kernels.backends.triton.kernels.normalisation import (
    load_normalisation,
    load_rstd_and_count,
)


@triton.jit(do_not_specialize=run_time_sizes("value", "residual", "output"))
def normalise_kernel(
    value_ptr,
    residual_ptr,
    output_ptr,
    runs,
    channels,
    positions,
    splits,
    value_run_stride,
    value_channel_stride,
    value_position_stride,
    residual_run_stride,
    residual_channel_stride,
    residual_position_stride,
    output_run_stride,
    output_channel_stride,
    output_position_stride,
    bias_ptr,
    normalisation_ptr,
    ACTIVATION: tl.constexpr,
    SHAPE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Store output = (a - mean) * scale + shift + residual."""
    EXACT: tl.constexpr = value_ptr.dtype.element_ty == tl.float32
    value_runs = Runs(value_ptr, value_run_stride, value_channel_stride, value_position_stride)
    residual_runs = Runs(
        residual_ptr, residual_run_stride, residual_channel_stride, residual_position_stride
    )
    output_runs = Runs(output_ptr, output_run_stride, output_channel_stride, output_position_stride)
    split, first_channel = locate_program(channels, SHAPE[1])
    channel = first_channel + tl.arange(0, SHAPE[1])
    parameter = tl.minimum(channel, channels - 1)[None, :, None]
    bias = load_bias(bias_ptr, parameter)
    mean, scale, shift = load_normalisation(normalisation_ptr, parameter, channels)
    for number in range(split, count_chunks(runs, positions, SHAPE), splits):
        chunk = locate_chunk(
            number, first_channel, runs, channels, positions, SHAPE, ALIGNMENT, CHANNELS_LAST
        )
        value = load_chunk(value_runs, chunk, ALIGNMENT, CHANNELS_LAST) + bias
        output = (activate(value, ACTIVATION, EXACT) - mean) * scale + shift
        if residual_ptr is not None:
            output += load_chunk(residual_runs, chunk, ALIGNMENT, CHANNELS_LAST)
        store_chunk(output_runs, chunk, output, ALIGNMENT, CHANNELS_LAST)


@triton.jit(do_not_specialize=run_time_sizes("value", "grad"))
def gradient_sums_kernel(
    value_ptr,
    grad_ptr,
    runs,
    channels,
    positions,
    splits,
    value_run_stride,
    value_channel_stride,
    value_position_stride,
    grad_run_stride,
    grad_channel_stride,
    grad_position_stride,
    bias_ptr,
    normalisation_ptr,
    sums_ptr,
    ACTIVATION: tl.constexpr,
    SHAPE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Store sums[split, :, channel] of grad and of grad * (a - mean)."""
    EXACT: tl.constexpr = value_ptr.dtype.element_ty == tl.float32
    value_runs = Runs(value_ptr, value_run_stride, value_channel_stride, value_position_stride)
    grad_runs = Runs(grad_ptr, grad_run_stride, grad_channel_stride, grad_position_stride)
    split, first_channel = locate_program(channels, SHAPE[1])
    channel = first_channel + tl.arange(0, SHAPE[1])
    parameter = tl.minimum(channel, channels - 1)[None, :, None]
    bias = load_bias(bias_ptr, parameter)
    mean, _scale, _shift = load_normalisation(normalisation_ptr, parameter, channels)
    grad_sum = tl.zeros(SHAPE, dtype=tl.float32)
    deviation_sum = tl.zeros(SHAPE, dtype=tl.float32)
    for number in range(split, count_chunks(runs, positions, SHAPE), splits):
        chunk = locate_chunk(
            number, first_channel, runs, channels, positions, SHAPE, ALIGNMENT, CHANNELS_LAST
        )
        value = load_chunk(value_runs, chunk, ALIGNMENT, CHANNELS_LAST) + bias
        # Beyond the mask the gradient is zero.
        grad = load_chunk(grad_runs, chunk, ALIGNMENT, CHANNELS_LAST)
        grad_sum += grad
        deviation_sum += grad * (activate(value, ACTIVATION, EXACT) - mean)
    exists = channel < channels
    sums_ptr += split * 2 * channels
    tl.store(sums_ptr + channel, sum_by_channel(grad_sum), mask=exists)
    tl.store(sums_ptr + channels + channel, sum_by_channel(deviation_sum), mask=exists)


@triton.jit(do_not_specialize=run_time_sizes("value", "grad", "output"))
def value_gradient_kernel(
    value_ptr,
    grad_ptr,
    output_ptr,
    runs,
    channels,
    positions,
    splits,
    value_run_stride,
    value_channel_stride,
    value_position_stride,
    grad_run_stride,
    grad_channel_stride,
    grad_position_stride,
    output_run_stride,
    output_channel_stride,
    output_position_stride,
    bias_ptr,
    normalisation_ptr,
    sums_ptr,
    bias_sums_ptr,
    ACTIVATION: tl.constexpr,
    SHAPE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Store output = a' * (scale * grad + of_deviation * (a - mean) + constant).

    The last two terms are the gradient through the variance and the mean of the batch, from `sums`
    (2, C) of `gradient_sums_kernel`. bias_sums[split, channel] is the sum of the output before it
    is rounded.
    """
    EXACT: tl.constexpr = value_ptr.dtype.element_ty == tl.float32
    value_runs = Runs(value_ptr, value_run_stride, value_channel_stride, value_position_stride)
    grad_runs = Runs(grad_ptr, grad_run_stride, grad_channel_stride, grad_position_stride)
    output_runs = Runs(output_ptr, output_run_stride, output_channel_stride, output_position_stride)
    split, first_channel = locate_program(channels, SHAPE[1])
    channel = first_channel + tl.arange(0, SHAPE[1])
    parameter = tl.minimum(channel, channels - 1)[None, :, None]
    bias = load_bias(bias_ptr, parameter)
    mean, scale, _shift = load_normalisation(normalisation_ptr, parameter, channels)
    rstd, count = load_rstd_and_count(normalisation_ptr, parameter, channels)
    constant = -scale * tl.load(sums_ptr + parameter) / count
    of_deviation = -scale * rstd * rstd * tl.load(sums_ptr + channels + parameter) / count
    bias_sum = tl.zeros(SHAPE, dtype=tl.float32)
    for number in range(split, count_chunks(runs, positions, SHAPE), splits):
        chunk = locate_chunk(
            number, first_channel, runs, channels, positions, SHAPE, ALIGNMENT, CHANNELS_LAST
        )
        value = load_chunk(value_runs, chunk, ALIGNMENT, CHANNELS_LAST) + bias
        grad = load_chunk(grad_runs, chunk, ALIGNMENT, CHANNELS_LAST)
        activated, slope = activate_with_slope(value, ACTIVATION, EXACT)
        output = slope * (scale * grad + of_deviation * (activated - mean) + constant)
        if bias_sums_ptr is not None:
            bias_sum += tl.where(chunk.mask, output, 0.0)
        store_chunk(output_runs, chunk, output, ALIGNMENT, CHANNELS_LAST)
    if bias_sums_ptr is not None:
        bias_sums_ptr += split * channels
        tl.store(bias_sums_ptr + channel, sum_by_channel(bias_sum), mask=channel < channels)
