"""Plain PyTorch: any device, any dtype, any kernel size. The oracle and the baseline."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from convmixer_kernels import direct, layout
from convmixer_kernels.activations import ACTIVATIONS
from convmixer_kernels.backends.reference.batch_norm import (
    batch_normalisation,
    forward_moments,
    forward_normalised,
    fused_backward,
    gradient_sums,
    moments,
    normalise,
    running_normalisation,
    value_gradient,
)
from convmixer_kernels.channel_tables import affine_gradients
from convmixer_kernels.filters import Filter
from convmixer_kernels.layout import arranged
from convmixer_kernels.operands import BatchNorm, PreActivation

__all__ = [
    "activated_batch_norm",
    "affine_gradients",
    "arranged",
    "batch_normalisation",
    "forward",
    "forward_moments",
    "forward_normalised",
    "fused_backward",
    "gradient_sums",
    "moments",
    "normalise",
    "running_normalisation",
    "unavailable",
    "unsupported",
    "value_gradient",
]


def unavailable(device: torch.device) -> str | None:
    return None


def unsupported(
    device: torch.device, dtype: torch.dtype, filter: Filter | None, fused: bool
) -> str | None:
    return None


def forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, dilation: tuple[int, int] = (1, 1)
) -> Tensor:
    """Convolve, with any derivative; `bias` is rounded to the dtype of `input` for `F.conv2d`."""
    # Quantisers look for the parameter itself in exported programs, so no cast is traced in vain.
    if bias is not None and bias.dtype != input.dtype:
        bias = bias.to(input.dtype)
    height, width = weight.shape[2:]
    rows, columns = dilation[0] * (height - 1), dilation[1] * (width - 1)
    # This is what padding="same" does, without its warning. A pair, because `torch.jit.trace` of
    # PyTorch 2.8 makes an empty list of a single number that it traces.
    padding = (rows // 2, columns // 2)
    padded = F.pad(input, (0, columns % 2, 0, rows % 2)) if rows % 2 or columns % 2 else input
    output = F.conv2d(
        padded, weight, bias, padding=padding, dilation=dilation, groups=input.shape[1]
    )
    return _laid_out_like(input, output)


def activated_batch_norm(before: PreActivation, residual: Tensor | None, norm: BatchNorm) -> Tensor:
    """Activate and normalise, with any derivative: one operation of PyTorch for each step."""
    value, bias, activation = before
    if bias is not None:
        value = value + bias.to(value.dtype)[:, None, None]
    activated = ACTIVATIONS[activation].function(value)
    gamma = norm.gamma
    if gamma is None and norm.beta is not None:
        # PyTorch on a GPU allocates the gradient of beta like gamma, and raises if there is none.
        gamma = torch.ones_like(norm.beta)
    if gamma is not None and (direct.in_transform() or direct.in_forward_mode()):
        # There PyTorch normalises in one precision alone.
        activated = activated.to(gamma.dtype)
    output = F.batch_norm(
        activated,
        norm.running_mean,
        norm.running_var,
        gamma,
        norm.beta,
        norm.of_batch,
        norm.momentum,
        norm.eps,
    ).to(value.dtype)
    return _laid_out_like(before.value, output if residual is None else output + residual)


def _laid_out_like(input: Tensor, output: Tensor) -> Tensor:
    """Return `output` with the strides that kernels give it.

    PyTorch makes CNHW contiguous, and on a GPU channels_last in float64 as well.
    """
    if direct.in_transform():
        return output
    if layout.is_channels_last(input):
        return output.contiguous(memory_format=torch.channels_last)
    if not layout.is_channels_outermost(input):
        return output
    # The clone keeps the strides and is no view, so that users may change it in place. Nothing is
    # written in place here, because exported programs are decomposed into these operations.
    return output.transpose(0, 1).contiguous().transpose(0, 1).clone()
