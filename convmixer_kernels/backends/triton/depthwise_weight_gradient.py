"""Launch the weight gradient and the bias gradient.

Programs that share a channel leave partial sums, which are then added in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convmixer_kernels.backends.triton import (
    autotuning,
    configurations,
    large_filters,
    launching,
    planes,
)
from convmixer_kernels.backends.triton.configurations import Configuration
from convmixer_kernels.backends.triton.kernels.depthwise_weight_gradient_float32 import (
    weight_gradient_float32_kernel,
)
from convmixer_kernels.backends.triton.kernels.depthwise_weight_gradient_planar import (
    weight_gradient_planar_kernel,
)
from convmixer_kernels.backends.triton.launch_context import launch_context
from convmixer_kernels.backends.triton.shape_key import KERNEL_SIZES, ShapeKey
from convmixer_kernels.filters import Filter


def weight_gradient(
    input: Tensor, grad_output: Tensor, filter: Filter, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of `depthwise_forward.forward` with respect to its weight and bias.

    Args:
        input: (N, C, H, W).
        grad_output: (N, C, H, W), any strides.

    Returns:
        (C, 1, h, w) and, if `with_bias`, (C,): both float32, the same bits for the same tensors.
    """
    if filter.size in KERNEL_SIZES:
        return square_weight_gradient(input, grad_output, filter.size, with_bias)
    size = filter.embedding_size
    if size > max(KERNEL_SIZES):
        return large_filters.weight_gradient(input, grad_output, filter, with_bias)
    weight_sums, bias_sums = square_weight_gradient(input, grad_output, size, with_bias)
    return filter.pick(weight_sums), bias_sums


def square_weight_gradient(
    input: Tensor, grad_output: Tensor, kernel_size: int, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """Do what `weight_gradient` does for a square filter of `KERNEL_SIZES`."""
    channels = input.shape[1]
    shape = (channels, 1, kernel_size, kernel_size)
    if input.numel() == 0:
        weight_sums = torch.zeros(shape, dtype=torch.float32, device=input.device)
        return weight_sums, weight_sums.new_zeros(channels) if with_bias else None
    input, grad_output = planes.planar(input), planes.planar(grad_output)
    key = ShapeKey.of((input, grad_output), kernel_size)

    def run(configuration: Configuration) -> tuple[Tensor, Tensor | None]:
        configuration = configurations.for_batch(configuration, key)
        # The sums of a single split are returned as they are, so they must not be a view.
        leading = () if configuration.splits == 1 else (configuration.splits,)
        weight_sums = torch.empty((*leading, *shape), dtype=torch.float32, device=input.device)
        bias_sums = weight_sums.new_empty((*leading, channels)) if with_bias else None
        launch((input, grad_output, weight_sums, bias_sums), key, configuration)
        if configuration.splits == 1:
            return weight_sums, bias_sums
        return weight_sums.sum(0), bias_sums.sum(0) if bias_sums is not None else None

    with torch.cuda.device_of(input):
        rounded, context = key.of_rounded_batch(), launch_context(input.device)
        candidates = configurations.weight_gradient_candidates(rounded, context)
        return run(autotuning.choose("weight_gradient", rounded, candidates, run, input.device))


def launch(
    arguments: tuple[Tensor | None, ...], key: ShapeKey, configuration: Configuration
) -> None:
    """Launch a configuration on the current device, given the tensors in the kernels' order."""
    kernel(key)[grid(key, configuration)](
        *arguments,
        *launching.sizes(arguments[:2], key, configuration),
        **constants(key, configuration),
        **launching.options(configuration),
    )


def grid(key: ShapeKey, configuration: Configuration) -> tuple[int, int]:
    """Return the grid: channels * splits, groups of filter rows."""
    filter_row_groups = 1
    if not key.tensor_cores:
        filter_row_groups = -(-key.kernel_size // configuration.filter_rows)
    return key.channels * configuration.splits, filter_row_groups


def kernel(key: ShapeKey) -> Any:
    """Return the kernel for a dtype."""
    return weight_gradient_planar_kernel if key.tensor_cores else weight_gradient_float32_kernel


def constants(key: ShapeKey, configuration: Configuration) -> dict[str, Any]:
    """Return the compile-time parameters of the kernel."""
    values = launching.constants(key, configuration)
    values["PADDING"] = (key.kernel_size - 1) // 2
    if not key.tensor_cores:
        values["FILTER_ROWS"] = configuration.filter_rows
    return values
