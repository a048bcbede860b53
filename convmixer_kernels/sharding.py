"""Distributed tensors: how the depthwise convolution and its gradients divide images and channels.

Every process convolves the images or the channels that it has, without a message. A tensor that is
divided along H or W is gathered first, as for any operator that needs it whole.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch import Tensor

_operators = torch.ops.convmixer_kernels


def prepare(input: Tensor) -> None:
    """Tell PyTorch's distributed tensors of the operators, before the first of them meets one."""
    distributed = sys.modules.get("torch.distributed.tensor")
    if distributed is not None and isinstance(input, distributed.DTensor):
        _register()


@functools.cache
def _register() -> None:
    from torch.distributed.tensor import Partial, Replicate, Shard
    from torch.distributed.tensor.experimental import register_sharding

    # For an image of all, some of the images, some of the channels: its placement, that of filters
    # and biases, and that of their gradients. PyTorch takes None for what is no tensor.
    ways: list[tuple[Any, Any, Any]] = [
        (Replicate(), Replicate(), Replicate()),
        (Shard(0), Replicate(), Partial()),
        (Shard(1), Shard(0), Shard(0)),
    ]

    @register_sharding(_operators.depthwise_conv2d.default)
    def forward(input: Any, weight: Any, bias: Any, *settings: Any) -> Any:
        rest = [None] * len(settings)
        return [
            ([image], [image, parameter, None if bias is None else parameter, *rest])
            for image, parameter, _ in ways
        ]

    @register_sharding(_operators.depthwise_conv2d_input_gradient.default)
    def input_gradient(grad_output: Any, weight: Any, *settings: Any) -> Any:
        rest = [None] * len(settings)
        return [([image], [image, parameter, *rest]) for image, parameter, _ in ways]

    @register_sharding(_operators.depthwise_conv2d_weight_gradient.default)
    def weight_gradient(
        input: Any, grad_output: Any, kernel_size: Any, with_bias: bool, *settings: Any
    ) -> Any:
        rest = [None] * len(settings)
        return [
            ([grad, grad if with_bias else Replicate()], [image, image, None, None, *rest])
            for image, _, grad in ways
        ]
