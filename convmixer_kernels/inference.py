"""The fused operations in inference, for callers that have asked `direct` and `dispatch`.

Nothing here is recorded for a derivative or seen by a dispatcher.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from convmixer_kernels import arguments, direct, dispatch, inference_tables
from convmixer_kernels.inference_tables import Sources, Tables
from convmixer_kernels.operands import BatchNorm, Epilogue, PreActivation


class Norm(NamedTuple):
    """Batch normalisation by running statistics, as the public functions take it."""

    running_mean: Tensor | None
    running_var: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    eps: float


def convolved(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: Norm,
    activation: str,
    residual: bool,
    name: str,
) -> Tensor | None:
    """Return what `depthwise_conv2d_gelu_batch_norm` does, or None where `norm` does not fit.

    Args:
        name: the implementation that `dispatch.convolution_at_once` chose.
    """
    tables = _tables(input, bias, norm, name)
    if tables is None:
        return None
    epilogue = Epilogue(tables.normalisation, activation, residual)
    return dispatch.backend(name).forward_normalised(input, weight, tables.bias, epilogue)


def normalised(
    input: Tensor,
    bias: Tensor | None,
    norm: Norm,
    activation: str,
    residual: Tensor | None,
    name: str,
) -> Tensor | None:
    """Return what `gelu_batch_norm` does, or None where `norm` does not fit.

    Args:
        name: the implementation that `dispatch.image_at_once` chose.
    """
    tables = _tables(input, bias, norm, name)
    if tables is None:
        return None
    before = PreActivation(input, tables.bias, activation)
    return dispatch.backend(name).normalise(before, tables.normalisation, residual)


def _tables(input: Tensor, bias: Tensor | None, norm: Norm, name: str) -> Tables | None:
    running_mean, running_var, gamma, beta, eps = norm
    if running_mean is None or running_var is None:
        return None
    sources = Sources(running_mean, running_var, gamma, beta, bias)
    settings, device = (eps, name), input.get_device()
    tables: Tables | None = inference_tables.kept(sources, settings, device)
    if tables is None:
        for each in sources:
            if each is not None and not (
                direct.is_plain(each) and dispatch.fits_channels(each, input.shape[1], input.device)
            ):
                return None
        tables = inference_tables.keep(
            sources, settings, device, lambda: _compute(input, sources, eps, name)
        )
    return tables if tables.normalisation.shape[1] == input.shape[1] else None


def _compute(input: Tensor, sources: Sources, eps: float, name: str) -> Tables:
    running_mean, running_var, gamma, beta, bias = (
        arguments.precise(each, input) for each in sources
    )
    norm = BatchNorm(gamma, beta, running_mean, running_var, False, 0.0, eps)
    return Tables(dispatch.backend(name).running_normalisation(norm), bias)
