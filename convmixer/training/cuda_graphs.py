"""CUDA graphs of the passes of training, which the host replays instead of launching kernels."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn


def replayed(model: nn.Module, sample: Tensor) -> nn.Module:
    """Return a module that replays the training passes of `model` as CUDA graphs.

    Parameters, buffers and random state stay as they are. `model` itself is not changed, so its
    evaluation and copies do without graphs. Outputs, and gradients that autograd gives to
    parameters without any, are the memory of the graphs, which the next forward pass overwrites.

    Args:
        model: in training mode, on a GPU; it trains all its parameters, draws nothing at random and
            has no autocast cache.
        sample: images of the shape, dtype and memory format of those to come.
    """
    # A module and its graphs refer to each other, so those of an earlier run may still have memory.
    gc.collect()
    with _buffers_kept(model), warnings.catch_warnings(), torch.cuda.device_of(sample):
        # PyTorch warms up and captures on different streams, and warns of that.
        warnings.filterwarnings("ignore", "The AccumulateGrad node's stream does not match")
        graphed = torch.cuda.make_graphed_callables(nn.Sequential(model), (sample,))
    return cast(nn.Module, graphed)


@contextlib.contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Give the buffers of `model` their values back at the end of the block."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)
