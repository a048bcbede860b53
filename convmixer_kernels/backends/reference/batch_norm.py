"""The steps of the fused operations in plain PyTorch, as the kernels compute them.

An activation value is act(value), or act(value + bias) where a bias is given. Statistics are those
of the values as stored, so of the rounded convolution. Everything is computed in float32, or in
float64 for tensors of that dtype. None of these functions is differentiable.

The tables per channel (moments, normalisation, sums) are those of `channel_tables`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from convmixer_kernels import layout
from convmixer_kernels.activations import ACTIVATIONS
from convmixer_kernels.channel_tables import GradientSums, Moments, Normalisation, rows
from convmixer_kernels.operands import BatchNorm, Epilogue, FusedBackward, PreActivation

_PIXELS = (0, 2, 3)


def forward_normalised(
    input: Tensor, weight: Tensor, bias: Tensor | None, epilogue: Epilogue
) -> Tensor:
    """Convolve, add the bias, activate, normalise, add the residual, and round once, at the end."""
    activated = _activation(_convolve(input, weight, bias), epilogue.activation)
    output = _normalised(activated, epilogue.normalisation)
    return _rounded(output + _precise(input) if epilogue.residual else output, input)


def forward_moments(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    """Return the convolution with its bias, rounded, and the moments of its activation."""
    value = _rounded(_convolve(input, weight, bias), input)
    return value, moments(PreActivation(value, None, activation))


def moments(before: PreActivation) -> Tensor:
    activated = _activated(before)
    channels = activated.shape[1]
    count = activated.numel() // channels
    if count == 0:
        return activated.new_zeros((3, channels))
    mean = activated.mean(_PIXELS)
    squares = (activated - _across(mean)).square().sum(_PIXELS)
    return torch.stack(Moments(torch.full_like(mean, count), mean, squares))


def batch_normalisation(moments: Tensor, norm: BatchNorm) -> Tensor:
    """Return the normalisation by moments, merged in order; update statistics.

    Moments are (3, C), or (parts, 3, C) of several parts.

    Parts without elements change nothing; if all are, running statistics stay as they are.
    """
    first, *others = moments.reshape(-1, *moments.shape[-2:])
    count, mean, squares = rows(first, Moments)
    for part_count, part_mean, part_squares in (rows(part, Moments) for part in others):
        total = count + part_count
        share = torch.where(total > 0, part_count / total, 0)
        difference = part_mean - mean
        mean = mean + difference * share
        squares = squares + part_squares + difference.square() * count * share
        count = total
    var = torch.where(count > 0, squares / count, 0)
    unbiased = squares / (count - 1).clamp_min(1)
    for buffer, statistic in ((norm.running_mean, mean), (norm.running_var, unbiased)):
        if buffer is not None:
            updated = (1 - norm.momentum) * buffer + norm.momentum * statistic
            buffer.copy_(torch.where(count > 0, updated, buffer))
    return _table(mean, var, count, norm)


def running_normalisation(norm: BatchNorm) -> Tensor:
    assert norm.running_mean is not None and norm.running_var is not None
    count = torch.full_like(norm.running_mean, math.inf)
    return _table(norm.running_mean, norm.running_var, count, norm)


def normalise(before: PreActivation, normalisation: Tensor, residual: Tensor | None) -> Tensor:
    output = _normalised(_activated(before), normalisation)
    return _rounded(output if residual is None else output + _precise(residual), before.value)


def gradient_sums(before: PreActivation, grad: Tensor, normalisation: Tensor) -> Tensor:
    deviation = _activated(before) - _across(rows(normalisation, Normalisation).mean)
    grad = _precise(grad)
    return torch.stack(GradientSums(grad.sum(_PIXELS), (grad * deviation).sum(_PIXELS)))


def value_gradient(
    before: PreActivation, grad: Tensor, normalisation: Tensor, sums: Tensor, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the gradient of `value`, and its sum over every channel: the gradient of a bias."""
    grad_value = _value_gradient(before, grad, normalisation, sums)
    return _rounded(grad_value, before.value), grad_value.sum(_PIXELS) if with_bias else None


def fused_backward(
    call: FusedBackward,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    grad_value = _value_gradient(call.before, call.grad, call.normalisation, call.sums)
    channels, size = call.value.shape[1], call.kernel_size
    before, after = (size - 1) // 2, size // 2
    grad_input = grad_weight = None
    if call.weight is not None:
        padded = F.pad(grad_value, (after, before, after, before))
        grad_input = _correlate(padded, _precise(call.weight).flip(2, 3))
        if call.residual:
            grad_input = grad_input + _precise(call.grad)
        grad_input = _rounded(grad_input, call.value)
    if call.input is not None:
        padded = F.pad(_precise(call.input), (before, after, before, after))
        shape = (channels, 1, size, size)
        with torch.autocast(padded.device.type, enabled=False):
            grad_weight = conv2d_weight(padded, shape, grad_value, groups=channels).contiguous()
    return grad_input, grad_weight, grad_value.sum(_PIXELS) if call.with_bias else None


def _convolve(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    before, after = (weight.shape[-1] - 1) // 2, weight.shape[-1] // 2
    padded = F.pad(_precise(input), (before, after, before, after))
    return _biased(_correlate(padded, _precise(weight)), bias)


def _correlate(padded: Tensor, weight: Tensor) -> Tensor:
    # Autocast would round the operands.
    with torch.autocast(padded.device.type, enabled=False):
        return F.conv2d(padded, weight, groups=len(weight))


def _value_gradient(
    before: PreActivation, grad: Tensor, normalisation: Tensor, sums: Tensor
) -> Tensor:
    mean, scale, _, rstd, count = rows(normalisation, Normalisation)
    sum_of_grad, sum_of_products = rows(sums, GradientSums)
    biased = _biased(before.value, before.bias)
    deviation = _activation(biased, before.activation) - _across(mean)
    of_deviation = -scale * rstd.square() * sum_of_products / count
    constant = -scale * sum_of_grad / count
    grad_activated = (
        _across(scale) * _precise(grad) + _across(of_deviation) * deviation + _across(constant)
    )
    return _derivative(biased, before.activation) * grad_activated


def _activated(before: PreActivation) -> Tensor:
    return _activation(_biased(before.value, before.bias), before.activation)


def _activation(value: Tensor, activation: str) -> Tensor:
    return ACTIVATIONS[activation].function(value)


def _derivative(value: Tensor, activation: str) -> Tensor:
    return ACTIVATIONS[activation].derivative(value)


def _normalised(activated: Tensor, normalisation: Tensor) -> Tensor:
    mean, scale, shift, *_ = map(_across, rows(normalisation, Normalisation))
    return (activated - mean) * scale + shift


def _table(mean: Tensor, var: Tensor, count: Tensor, norm: BatchNorm) -> Tensor:
    rstd = torch.rsqrt(var + norm.eps)
    scale = rstd if norm.gamma is None else norm.gamma * rstd
    shift = torch.zeros_like(mean) if norm.beta is None else norm.beta
    return torch.stack(Normalisation(mean, scale, shift, rstd, count))


def _across(per_channel: Tensor) -> Tensor:
    return per_channel[:, None, None]


def _biased(value: Tensor, bias: Tensor | None) -> Tensor:
    value = _precise(value)
    return value if bias is None else value + _across(bias.to(value.dtype))


def _precise(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _rounded(result: Tensor, like: Tensor) -> Tensor:
    return layout.empty_like_input(like).copy_(result)
