"""Plain PyTorch: any device, any dtype, any kernel size. The oracle and the baseline."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def unavailable(device: torch.device) -> str | None:
    return None


def unsupported(device: torch.device, dtype: torch.dtype, kernel_size: int | None) -> str | None:
    return None


def forward(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Differentiable; `bias` is rounded to the dtype of `input`, as `F.conv2d` demands."""
    if bias is not None:
        bias = bias.to(input.dtype)
    channels, size = input.shape[1], weight.shape[-1]
    if size % 2 == 0:
        # What padding="same" does, without its warning.
        input = F.pad(input, (size // 2 - 1, size // 2, size // 2 - 1, size // 2))
        return F.conv2d(input, weight, bias, groups=channels)
    return F.conv2d(input, weight, bias, padding=size // 2, groups=channels)
