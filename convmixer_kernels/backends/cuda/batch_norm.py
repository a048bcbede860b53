"""Convolution fused with activation, batch normalisation and residual, on the CUDA kernels.

The steps are those of `reference.batch_norm`, which spells out what each computes and what its
tables hold. For whole planes (8x8, 16x16, 32x32 on 16-byte boundaries) the convolution emits the
moments of its activation, and one kernel is the backward pass; any other input takes the same steps
in passes of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from convmixer_kernels.backends.cuda.device import extension_for
from convmixer_kernels.operands import BatchNorm, Epilogue, FusedBackward, PreActivation


def forward_normalised(
    input: Tensor, weight: Tensor, bias: Tensor | None, epilogue: Epilogue
) -> Tensor:
    """Convolve, activate, normalise and add `input` if asked, in one kernel."""
    normalisation, activation, residual = epilogue
    return extension_for(input).forward_normalised(
        input, weight, bias, normalisation, activation, residual
    )


def forward_moments(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    return extension_for(input).forward_moments(input, weight, bias, activation)


def moments(before: PreActivation) -> Tensor:
    """Return count, mean and squared deviations of an activation: float32 (3, C)."""
    value, bias, activation = before
    return extension_for(value).moments(value, bias, activation)


def batch_normalisation(moments: Tensor, norm: BatchNorm) -> Tensor:
    return _normalisation(moments, moments, norm)


def running_normalisation(norm: BatchNorm) -> Tensor:
    assert norm.running_mean is not None
    return _normalisation(None, norm.running_mean, norm)


def _normalisation(moments: Tensor | None, source: Tensor, norm: BatchNorm) -> Tensor:
    gamma, beta, running_mean, running_var, _, momentum, eps, _ = norm
    return extension_for(source).normalisation(
        moments, gamma, beta, running_mean, running_var, momentum, eps
    )


def normalise(before: PreActivation, normalisation: Tensor, residual: Tensor | None) -> Tensor:
    value, bias, activation = before
    return extension_for(value).normalise(value, bias, activation, normalisation, residual)


def gradient_sums(before: PreActivation, grad: Tensor, normalisation: Tensor) -> Tensor:
    value, bias, activation = before
    return extension_for(value).gradient_sums(value, bias, activation, grad, normalisation)


def affine_gradients(
    sums: Tensor, normalisation: Tensor, needed: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    return extension_for(sums).affine_gradients(sums, normalisation, *needed)


def value_gradient(
    before: PreActivation, grad: Tensor, normalisation: Tensor, sums: Tensor, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    value, bias, activation = before
    return extension_for(value).value_gradient(
        value, bias, activation, grad, normalisation, sums, with_bias
    )


def fused_backward(
    call: FusedBackward,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return extension_for(call.value).fused_backward(*call)
