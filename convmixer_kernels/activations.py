"""The activations of the fused operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Activation(NamedTuple):
    """An elementwise function and its derivative, in PyTorch."""

    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]


def _derivative_of_gelu(value: Tensor) -> Tensor:
    density = torch.exp(-0.5 * value.square()) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + torch.erf(value / math.sqrt(2))) + value * density


def _unchanged(value: Tensor) -> Tensor:
    return value


ACTIVATIONS = {
    "gelu": Activation(F.gelu, _derivative_of_gelu),
    "relu": Activation(F.relu, lambda value: (value > 0).to(value.dtype)),
    "identity": Activation(_unchanged, torch.ones_like),
}
"""Every activation by its name, in the order of `activations` in csrc/arguments.h."""
