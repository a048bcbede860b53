"""The tables that batch normalisation keeps for each channel, float32.

Normalisation (5, C): mean, scale, shift, 1 / sqrt(variance + eps), count.
Moments (3, C): count, mean, sum of squared deviations from the mean.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Normalisation(NamedTuple):
    """Parameters of (activation - mean) * scale + shift."""

    mean: Any
    scale: Any
    shift: Any


class Moments(NamedTuple):
    """Moments of a set of values; `squares` are deviations from the mean."""

    count: Any
    mean: Any
    squares: Any


@triton.jit
def load_normalisation(normalisation_ptr, channel, channels):
    """Load the normalisation of channels."""
    mean = tl.load(normalisation_ptr + channel)
    scale = tl.load(normalisation_ptr + channels + channel)
    shift = tl.load(normalisation_ptr + 2 * channels + channel)
    return Normalisation(mean, scale, shift)


@triton.jit
def load_rstd_and_count(normalisation_ptr, channel, channels):
    """Load 1 / sqrt(variance + eps) and the number of values that were normalised by."""
    rstd = tl.load(normalisation_ptr + 3 * channels + channel)
    count = tl.load(normalisation_ptr + 4 * channels + channel)
    return rstd, count


@triton.jit
def store_normalisation(
    normalisation_ptr, channel, channels, mean, variance, count, gamma_ptr, beta_ptr, eps
):
    """Store the normalisation by a mean and a variance; gamma and beta may be left out."""
    exists = channel < channels
    rstd = 1.0 / tl.sqrt(variance + eps)
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
def store_moments(moments_ptr, channel, channels, moments):
    """Store the moments of channels."""
    exists = channel < channels
    tl.store(moments_ptr + channel, moments.count, mask=exists)
    tl.store(moments_ptr + channels + channel, moments.mean, mask=exists)
    tl.store(moments_ptr + 2 * channels + channel, moments.squares, mask=exists)


@triton.jit
def merge_moments(moments_ptr, channel, parts, channels, PARTS: tl.constexpr):
    """Merge the moments (parts, 3, C) of parts of a batch; PARTS is a power of two.

    A part deviates from the whole by its mean: squares + count * (mean - whole mean)^2. All parts
    are loaded at once, since waiting for one after the other takes longer than everything else.
    """
    part = tl.arange(0, PARTS)[:, None]
    mask = (part < parts) & (channel < channels)[None, :]
    counts_ptr = moments_ptr + (part.to(tl.int64) * 3 * channels + channel[None, :])
    counts = tl.load(counts_ptr, mask=mask, other=0.0)
    filled = counts > 0
    means = tl.load(counts_ptr + channels, mask=mask, other=0.0)
    squares = tl.load(counts_ptr + 2 * channels, mask=mask, other=0.0)
    count = tl.sum(counts, axis=0)
    # Means are averaged as distances from one of them, which keeps more of their digits.
    pivot = tl.max(tl.where(filled, means, float("-inf")), axis=0)
    pivot = tl.where(count > 0, pivot, 0.0)
    distances = tl.where(filled, means - pivot[None, :], 0.0)
    distance = tl.sum(counts * distances, axis=0) / tl.maximum(count, 1.0)
    deviations = distances - distance[None, :]
    squares = tl.sum(squares + counts * deviations * deviations, axis=0)
    return Moments(count, pivot + distance, squares)
