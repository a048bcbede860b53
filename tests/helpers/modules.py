"""Comparison of two modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def assert_same_results(module: nn.Module, expected: nn.Module, image: Tensor) -> None:
    """Compare the outputs of two modules and the gradients of their parameters."""
    output, wanted = module(image), expected(image)
    torch.testing.assert_close(output, wanted)
    gradient = torch.randn_like(output)
    output.backward(gradient)
    wanted.backward(gradient)
    for ours, theirs in zip(module.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
