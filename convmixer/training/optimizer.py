"""AdamW with the recipe's weight decay groups, its schedule, and the moving average of weights."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convmixer.config.settings import Config, OptimizerConfig


def weight_decay_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Return the parameters in a group with weight decay and a group without.

    Biases and other one-dimensional parameters (the scale and shift of normalisation layers) decay
    only with `decay_one_dimensional`.
    """
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for parameter in model.parameters():
        decay = parameter.ndim > 1 or config.decay_one_dimensional
        (decayed if decay else undecayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW; the schedule sets the learning rate before every step.

    On a GPU it is fused: a few launches, and a `GradScaler` need not wait for the GPU to learn
    whether a gradient overflowed.
    """
    return torch.optim.AdamW(
        weight_decay_groups(model, config),
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        fused=next(model.parameters()).is_cuda,
    )


def triangular(position: float, epochs: int, peak: float) -> float:
    """Return the paper's learning rate: piecewise linear, up in two fifths and down in three.

    Args:
        position: epochs done, with fractions, from 0 to `epochs`.
        epochs: epochs E of the whole run.
        peak: largest learning rate.

    Returns:
        the interpolation through epochs 0, 2E//5, 4E//5, E at 0, peak, peak / 20, 0. For one epoch
        or two the quotients are not rounded, because rounded ones would coincide.
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


class ExponentialMovingAverage:
    """A second model that follows the first: `average += (1 - decay) * (model - average)`.

    The decay is at most `(1 + step) / (10 + step)`, so that the average forgets the initial weights
    early in training.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights and running statistics after optimizer step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages: list[Tensor] = []
        currents: list[Tensor] = []
        pairs = zip(self.module.state_dict().values(), model.state_dict().values(), strict=True)
        for average, current in pairs:
            if average.is_floating_point():
                averages.append(average)
                currents.append(current)
            else:
                average.copy_(current)
        torch._foreach_lerp_(averages, currents, 1.0 - decay)
