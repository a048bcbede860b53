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
from convmixer_kernels.channel_tables import GradientSums, Moments, Normalisation

_PIXELS = (0, 2, 3)


def forward_normalised(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    normalisation: Tensor,
    activation: str,
    residual: bool,
) -> Tensor:
    """Convolve, add the bias, activate, normalise, add the residual, and round once, at the end."""
    convolved = _convolve(input, weight, bias)
    output = _normalised(_activation(convolved, activation), normalisation)
    return _rounded(output + _precise(input) if residual else output, input)


def forward_moments(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    """Return the convolution with its bias, rounded, and the moments of its activation."""
    value = _rounded(_convolve(input, weight, bias), input)
    return value, moments(value, None, activation)


def moments(value: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    activated = _activation(_biased(value, bias), activation)
    channels, count = value.shape[1], value.numel() // value.shape[1]
    if count == 0:
        return activated.new_zeros((3, channels))
    mean = activated.mean(_PIXELS)
    squares = (activated - _across(mean)).square().sum(_PIXELS)
    return torch.stack(Moments(torch.full_like(mean, count), mean, squares))


def batch_normalisation(
    moments: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """Return the normalisation by moments (parts, 3, C), merged in order; update statistics.

    Parts without elements change nothing; if all are, running statistics stay as they are.
    """
    count, mean, squares = Moments.of(moments[0])
    for part_count, part_mean, part_squares in map(Moments.of, moments[1:]):
        total = count + part_count
        share = torch.where(total > 0, part_count / total, 0)
        difference = part_mean - mean
        mean = mean + difference * share
        squares = squares + part_squares + difference.square() * count * share
        count = total
    var = torch.where(count > 0, squares / count, 0)
    unbiased = squares / (count - 1).clamp_min(1)
    for buffer, statistic in ((running_mean, mean), (running_var, unbiased)):
        if buffer is not None:
            updated = (1 - momentum) * buffer + momentum * statistic
            buffer.copy_(torch.where(count > 0, updated, buffer))
    return _table(mean, var, gamma, beta, eps, count)


def running_normalisation(
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
) -> Tensor:
    count = torch.full_like(running_mean, math.inf)
    return _table(running_mean, running_var, gamma, beta, eps, count)


def normalise(
    value: Tensor,
    bias: Tensor | None,
    normalisation: Tensor,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    output = _normalised(_activation(_biased(value, bias), activation), normalisation)
    return _rounded(output if residual is None else output + _precise(residual), value)


def gradient_sums(
    value: Tensor, bias: Tensor | None, grad: Tensor, normalisation: Tensor, activation: str
) -> Tensor:
    mean = Normalisation.of(normalisation).mean
    deviation = _activation(_biased(value, bias), activation) - _across(mean)
    grad = _precise(grad)
    return torch.stack(GradientSums(grad.sum(_PIXELS), (grad * deviation).sum(_PIXELS)))


def value_gradient(
    value: Tensor,
    bias: Tensor | None,
    grad: Tensor,
    normalisation: Tensor,
    sums: Tensor,
    activation: str,
    with_bias: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the gradient of `value`, and its sum over every channel: the gradient of a bias."""
    grad_value = _value_gradient(value, bias, grad, normalisation, sums, activation)
    return _rounded(grad_value, value), grad_value.sum(_PIXELS) if with_bias else None


def fused_backward(
    input: Tensor | None,
    value: Tensor,
    grad: Tensor,
    weight: Tensor | None,
    normalisation: Tensor,
    sums: Tensor,
    activation: str,
    residual: bool,
    kernel_size: int,
    with_bias: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of input, weight and bias.

    There is none of weight without `input`, and none of input without `weight`.
    """
    grad_value = _value_gradient(value, None, grad, normalisation, sums, activation)
    channels = value.shape[1]
    before, after = (kernel_size - 1) // 2, kernel_size // 2
    grad_input = grad_weight = None
    if weight is not None:
        padded = F.pad(grad_value, (after, before, after, before))
        grad_input = _correlate(padded, _precise(weight).flip(2, 3))
        grad_input = _rounded(grad_input + _precise(grad) if residual else grad_input, value)
    if input is not None:
        padded = F.pad(_precise(input), (before, after, before, after))
        shape = (channels, 1, kernel_size, kernel_size)
        with torch.autocast(value.device.type, enabled=False):
            grad_weight = conv2d_weight(padded, shape, grad_value, groups=channels).contiguous()
    return grad_input, grad_weight, grad_value.sum(_PIXELS) if with_bias else None


def _convolve(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    before, after = (weight.shape[-1] - 1) // 2, weight.shape[-1] // 2
    padded = F.pad(_precise(input), (before, after, before, after))
    return _biased(_correlate(padded, _precise(weight)), bias)


def _correlate(padded: Tensor, weight: Tensor) -> Tensor:
    # Autocast would round the operands.
    with torch.autocast(padded.device.type, enabled=False):
        return F.conv2d(padded, weight, groups=len(weight))


def _value_gradient(
    value: Tensor,
    bias: Tensor | None,
    grad: Tensor,
    normalisation: Tensor,
    sums: Tensor,
    activation: str,
) -> Tensor:
    mean, scale, _, rstd, count = Normalisation.of(normalisation)
    sum_of_grad, sum_of_products = GradientSums.of(sums)
    biased = _biased(value, bias)
    deviation = _activation(biased, activation) - _across(mean)
    of_deviation = -scale * rstd.square() * sum_of_products / count
    constant = -scale * sum_of_grad / count
    grad_activated = (
        _across(scale) * _precise(grad) + _across(of_deviation) * deviation + _across(constant)
    )
    return _derivative(biased, activation) * grad_activated


def _activation(value: Tensor, activation: str) -> Tensor:
    return ACTIVATIONS[activation].function(value)


def _derivative(value: Tensor, activation: str) -> Tensor:
    return ACTIVATIONS[activation].derivative(value)


def _normalised(activated: Tensor, normalisation: Tensor) -> Tensor:
    mean, scale, shift, *_ = map(_across, Normalisation.of(normalisation))
    return (activated - mean) * scale + shift


def _table(
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    count: Tensor,
) -> Tensor:
    rstd = torch.rsqrt(var + eps)
    scale = rstd if gamma is None else gamma * rstd
    shift = torch.zeros_like(mean) if beta is None else beta
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
