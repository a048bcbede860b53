"""AdamW with the recipe's weight decay groups, and the moving average of the weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from convmixer.config import OptimizerConfig


def weight_decay_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Return the parameters in two groups: decayed, and not.

    Biases and other one-dimensional parameters (the scale and shift of normalisation layers) are
    decayed only where `decay_one_dimensional` says so.
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
    """Return AdamW; the schedule sets the learning rate before every step."""
    return torch.optim.AdamW(
        weight_decay_groups(model, config),
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
    )


class ExponentialMovingAverage:
    """A second model that follows the first: `average += (1 - decay) * (model - average)`.

    Early in training the decay is `(1 + step) / (10 + step)` where that is smaller, so that the
    average forgets the initial weights.
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
