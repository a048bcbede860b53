"""Batch normalisation of an activation, by kernels that stream over tensors of any size.

What is normalised is a = activation(value + bias), computed again by every kernel and never stored.
Sums have two stages: programs add up tiles of a channel in a fixed order, and what they leave is
added in a fixed order. Results are the same to the bit every time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from convmixer_kernels import layout
from convmixer_kernels.backends.triton import streaming
from convmixer_kernels.backends.triton.activations import activate, activate_with_slope
from convmixer_kernels.backends.triton.epilogue import load_normalisation
from convmixer_kernels.backends.triton.streaming import load_bias, offsets, sum_of_tile, tile


@triton.jit(do_not_specialize=streaming.sizes_and_strides("value", "residual", "output"))
def normalise_kernel(
    value_ptr,
    residual_ptr,
    output_ptr,
    runs,
    channels,
    positions,
    parts,
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
    RUNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """output = (a - mean) * scale + shift + residual."""
    EXACT: tl.constexpr = value_ptr.dtype.element_ty == tl.float32
    groups = tl.cdiv(channels, CHANNELS)
    first_channel = (tl.program_id(0) % groups) * CHANNELS
    parameter = tl.minimum(first_channel + tl.arange(0, CHANNELS), channels - 1)[None, :, None]
    bias = load_bias(bias_ptr, parameter)
    mean, scale, shift = load_normalisation(normalisation_ptr, parameter, channels)
    tiles = tl.cdiv(runs, RUNS) * tl.cdiv(positions, POSITIONS)
    for number in range(tl.program_id(0) // groups, tiles, parts):
        run, lane, position, mask, _elements = tile(
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
        output = (activate(value, ACTIVATION, EXACT) - mean) * scale + shift
        if residual_ptr is not None:
            place = offsets(
                run,
                lane,
                position,
                residual_run_stride,
                residual_channel_stride,
                residual_position_stride,
                ALIGNMENT,
                CHANNELS_LAST,
            )
            output += tl.load(residual_ptr + place, mask=mask, other=0.0).to(tl.float32)
        place = offsets(
            run,
            lane,
            position,
            output_run_stride,
            output_channel_stride,
            output_position_stride,
            ALIGNMENT,
            CHANNELS_LAST,
        )
        tl.store(output_ptr + place, output.to(output_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=streaming.sizes_and_strides("value", "grad", "output"))
def gradient_kernel(
    value_ptr,
    grad_ptr,
    output_ptr,
    runs,
    channels,
    positions,
    parts,
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
    gradient_sums_ptr,
    ACTIVATION: tl.constexpr,
    RUNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """The gradient of `value`, given `sums`; or what `sums` is made of, if there is no output.

    gradient_sums[part, :, channel]: of grad, and of grad * (a - mean).
    output = a' * (scale * grad + of_deviation * (a - mean) + constant), where the last two terms
    are what mean and variance of the batch owe to the value; bias_sums[part, channel]: its sum,
    before rounding.
    """
    EXACT: tl.constexpr = value_ptr.dtype.element_ty == tl.float32
    groups = tl.cdiv(channels, CHANNELS)
    part = tl.program_id(0) // groups
    first_channel = (tl.program_id(0) % groups) * CHANNELS
    channel = first_channel + tl.arange(0, CHANNELS)
    parameter = tl.minimum(channel, channels - 1)[None, :, None]
    bias = load_bias(bias_ptr, parameter)
    mean, scale, _shift = load_normalisation(normalisation_ptr, parameter, channels)
    of_deviation = 0.0
    constant = 0.0
    if output_ptr is not None:
        rstd = tl.load(normalisation_ptr + 3 * channels + parameter)
        count = tl.load(normalisation_ptr + 4 * channels + parameter)
        constant = -scale * tl.load(sums_ptr + parameter) / count
        of_deviation = -scale * rstd * rstd * tl.load(sums_ptr + channels + parameter) / count
    first = tl.zeros((RUNS, CHANNELS, POSITIONS), dtype=tl.float32)
    second = tl.zeros((RUNS, CHANNELS, POSITIONS), dtype=tl.float32)
    tiles = tl.cdiv(runs, RUNS) * tl.cdiv(positions, POSITIONS)
    for number in range(part, tiles, parts):
        run, lane, position, mask, _elements = tile(
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
        place = offsets(
            run,
            lane,
            position,
            grad_run_stride,
            grad_channel_stride,
            grad_position_stride,
            ALIGNMENT,
            CHANNELS_LAST,
        )
        grad = tl.load(grad_ptr + place, mask=mask, other=0.0).to(tl.float32)
        if output_ptr is None:
            # Beyond the mask the gradient is zero.
            first += grad
            second += grad * (activate(value, ACTIVATION, EXACT) - mean)
        else:
            activated, slope = activate_with_slope(value, ACTIVATION, EXACT)
            result = slope * (scale * grad + of_deviation * (activated - mean) + constant)
            if bias_sums_ptr is not None:
                first += tl.where(mask, result, 0.0)
            place = offsets(
                run,
                lane,
                position,
                output_run_stride,
                output_channel_stride,
                output_position_stride,
                ALIGNMENT,
                CHANNELS_LAST,
            )
            tl.store(output_ptr + place, result.to(output_ptr.dtype.element_ty), mask=mask)
    exists = channel < channels
    if gradient_sums_ptr is not None:
        gradient_sums_ptr += part * 2 * channels
        tl.store(gradient_sums_ptr + channel, sum_of_tile(first), mask=exists)
        tl.store(gradient_sums_ptr + channels + channel, sum_of_tile(second), mask=exists)
    if bias_sums_ptr is not None:
        tl.store(bias_sums_ptr + part * channels + channel, sum_of_tile(first), mask=exists)


def normalise(
    value: Tensor,
    bias: Tensor | None,
    normalisation: Tensor,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    """(activation(value + bias) - mean) * scale + shift + residual, laid out like `value`."""
    output = layout.empty_like_input(value)
    if value.numel() == 0:
        return output
    walk = streaming.walk((value, residual, output), reduces=False)
    with torch.cuda.device_of(value):
        normalise_kernel[walk.grid](
            *walk.arguments, bias, normalisation, ACTIVATION=activation, **walk.options
        )
    return output


def gradient_sums(
    value: Tensor, bias: Tensor | None, grad: Tensor, normalisation: Tensor, activation: str
) -> Tensor:
    """Sums of grad and of grad * (activation - mean): float32 (2, C)."""
    channels = value.shape[1]
    if value.numel() == 0:
        return value.new_zeros((2, channels), dtype=torch.float32)
    walk = streaming.walk((value, grad, None), reduces=True)
    parts = value.new_empty((walk.parts, 2, channels), dtype=torch.float32)
    with torch.cuda.device_of(value):
        gradient_kernel[walk.grid](
            *walk.arguments,
            bias,
            normalisation,
            None,
            None,
            parts,
            ACTIVATION=activation,
            **walk.options,
        )
    return parts[0] if walk.parts == 1 else parts.sum(0)


def value_gradient(
    value: Tensor,
    bias: Tensor | None,
    grad: Tensor,
    normalisation: Tensor,
    sums: Tensor,
    activation: str,
    with_bias: bool,
) -> tuple[Tensor, Tensor | None]:
    """The gradient of `value`, laid out like it, and its float32 sum over every channel."""
    output = layout.empty_like_input(value)
    channels = value.shape[1]
    if value.numel() == 0:
        return output, output.new_zeros(channels, dtype=torch.float32) if with_bias else None
    walk = streaming.walk((value, grad, output), reduces=with_bias)
    parts = None
    if with_bias:
        # What a single program leaves is returned as it is, so it must not be a view.
        shares = () if walk.parts == 1 else (walk.parts,)
        parts = value.new_empty((*shares, channels), dtype=torch.float32)
    with torch.cuda.device_of(value):
        gradient_kernel[walk.grid](
            *walk.arguments,
            bias,
            normalisation,
            sums,
            parts,
            None,
            ACTIVATION=activation,
            **walk.options,
        )
    if parts is None:
        return output, None
    return output, parts if walk.parts == 1 else parts.sum(0)
