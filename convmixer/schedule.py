"""Learning rate as a function of the position in training, evaluated at every optimizer step."""

from __future__ import annotations

import math

import numpy as np

from convmixer.config import Config


def triangular(position: float, epochs: int, peak: float) -> float:
    """Return the paper's learning rate: piecewise linear, up in two fifths and down in three.

    Args:
        position: epochs done, with fractions, from 0 to `epochs`.
        epochs: epochs E of the whole run.
        peak: largest learning rate.

    Returns:
        the interpolation through epochs 0, 2E//5, 4E//5, E at 0, peak, peak / 20, 0. With one
        epoch or two, where rounded quotients would coincide, they are not rounded.
    """
    middle = [2 * epochs / 5, 4 * epochs / 5]
    knots = [0, *(map(math.floor, middle) if epochs > 2 else middle), epochs]
    return float(np.interp(position, knots, [0.0, peak, peak / 20.0, 0.0]))


def cosine(position: float, epochs: int, peak: float, warmup_epochs: float = 0.0) -> float:
    """Return a half cosine from `peak` to 0, after a linear warm-up of `warmup_epochs`."""
    if position < warmup_epochs:
        return peak * position / warmup_epochs
    progress = (position - warmup_epochs) / max(epochs - warmup_epochs, 1e-12)
    return 0.5 * peak * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def learning_rate(config: Config, epoch: int, step: int, steps: int) -> float:
    """Return the learning rate of optimizer step `step` (from 0) of `steps` in `epoch` (from 0)."""
    position = epoch + (step + 1) / steps
    optimizer = config.optimizer
    if optimizer.schedule == "triangular":
        return triangular(position, config.epochs, optimizer.lr)
    return cosine(position, config.epochs, optimizer.lr, optimizer.warmup_epochs)
