"""Launch batch normalisation of an activation, in elementwise passes over tensors of any size.

The normalised quantity is a = activation(value + bias), computed again by every kernel and never
stored. Sums have two stages: programs add up chunks of a channel in a fixed order, and their
partial sums are added in a fixed order. Results are the same to the bit every time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convmixer_kernels import layout
from convmixer_kernels.backends.triton import elementwise
from convmixer_kernels.backends.triton.kernels.batch_norm import (
    gradient_sums_kernel,
    normalise_kernel,
    value_gradient_kernel,
)
from convmixer_kernels.channel_tables import affine_gradients as affine_gradients
from convmixer_kernels.operands import PreActivation


def normalise(before: PreActivation, normalisation: Tensor, residual: Tensor | None) -> Tensor:
    """Return (a - mean) * scale + shift + residual, laid out like the value."""
    value, bias, activation = before
    output = layout.empty_like_input(value)
    if value.numel() == 0:
        return output
    launch = elementwise.plan((value, residual, output), reduces=False)
    with torch.cuda.device_of(value):
        normalise_kernel[launch.grid](
            *launch.arguments, bias, normalisation, ACTIVATION=activation, **launch.options
        )
    return output


def gradient_sums(before: PreActivation, grad: Tensor, normalisation: Tensor) -> Tensor:
    """Return the sums of grad and of grad * (a - mean): float32 (2, C)."""
    value, bias, activation = before
    channels = value.shape[1]
    if value.numel() == 0:
        return value.new_zeros((2, channels), dtype=torch.float32)
    launch = elementwise.plan((value, grad), reduces=True)
    sums = value.new_empty((launch.splits, 2, channels), dtype=torch.float32)
    with torch.cuda.device_of(value):
        gradient_sums_kernel[launch.grid](
            *launch.arguments, bias, normalisation, sums, ACTIVATION=activation, **launch.options
        )
    return sums[0] if launch.splits == 1 else sums.sum(0)


def value_gradient(
    before: PreActivation, grad: Tensor, normalisation: Tensor, sums: Tensor, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the gradient of the value, laid out like it, and its float32 sum over a channel."""
    value, bias, activation = before
    output = layout.empty_like_input(value)
    channels = value.shape[1]
    if value.numel() == 0:
        return output, output.new_zeros(channels, dtype=torch.float32) if with_bias else None
    launch = elementwise.plan((value, grad, output), reduces=with_bias)
    bias_sums = None
    if with_bias:
        # The sums of a single split are returned as they are, so they must not be a view.
        leading = () if launch.splits == 1 else (launch.splits,)
        bias_sums = value.new_empty((*leading, channels), dtype=torch.float32)
    with torch.cuda.device_of(value):
        value_gradient_kernel[launch.grid](
            *launch.arguments,
            bias,
            normalisation,
            sums,
            bias_sums,
            ACTIVATION=activation,
            **launch.options,
        )
    if bias_sums is None:
        return output, None
    return output, bias_sums if launch.splits == 1 else bias_sums.sum(0)
