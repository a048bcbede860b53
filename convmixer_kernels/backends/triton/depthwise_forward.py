"""Launch the forward pass and the input gradient.

The input gradient is the same convolution with the filter turned by half a turn.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convmixer_kernels import layout
from convmixer_kernels.backends.triton import (
    autotuning,
    configurations,
    large_filters,
    launching,
    planes,
)
from convmixer_kernels.backends.triton.configurations import Configuration
from convmixer_kernels.backends.triton.kernels.depthwise_forward_float32 import (
    forward_float32_kernel,
)
from convmixer_kernels.backends.triton.kernels.depthwise_forward_planar import (
    forward_planar_kernel,
)
from convmixer_kernels.backends.triton.launch_context import launch_context
from convmixer_kernels.backends.triton.shape_key import KERNEL_SIZES, ShapeKey
from convmixer_kernels.filters import Filter
from convmixer_kernels.operands import Epilogue


def forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, dilation: tuple[int, int] = (1, 1)
) -> Tensor:
    """Convolve (N, C, H, W) with (C, 1, h, w) and add (C,): float32 sums, output like `input`."""
    filter = Filter.of(weight, dilation)
    if filter.embedding_size > max(KERNEL_SIZES):
        return large_filters.convolve(input, weight, bias, dilation, flipped=False)
    return _convolve(input, _square(weight, filter), bias, None, None, "identity", flipped=False)


def forward_normalised(
    input: Tensor, weight: Tensor, bias: Tensor | None, epilogue: Epilogue
) -> Tensor:
    """Convolve, activate, normalise and add the residual in one kernel, rounded once."""
    normalisation, activation, residual = epilogue
    addend = input if residual else None
    return _convolve(input, weight, bias, normalisation, addend, activation, flipped=False)


def input_gradient(
    grad_output: Tensor,
    weight: Tensor,
    dilation: tuple[int, int] = (1, 1),
    addend: Tensor | None = None,
) -> Tensor:
    """Return the gradient of the input of `forward`, like `grad_output`; plus `addend`."""
    filter = Filter.of(weight, dilation)
    if addend is None and filter.embedding_size > max(KERNEL_SIZES):
        return large_filters.convolve(grad_output, weight, None, dilation, flipped=True)
    weight = _square(weight, filter)
    return _convolve(grad_output, weight, None, None, addend, "identity", flipped=True)


def _square(weight: Tensor, filter: Filter) -> Tensor:
    """Return filters of a size that there are kernels for, which compute the same."""
    return weight if filter.size in KERNEL_SIZES else filter.embed(weight)


def _convolve(
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    normalisation: Tensor | None,
    addend: Tensor | None,
    activation: str,
    flipped: bool,
) -> Tensor:
    if source.numel() == 0:
        return layout.empty_like_input(source)
    input = planes.planar(source)
    if addend is not None:
        addend = input if addend is source else planes.planar(addend)
    output = layout.empty_like_input(input)
    tensors = (input, output) if addend is None else (input, output, addend)
    fused = addend is not None or normalisation is not None
    key = ShapeKey.of(tensors, weight.shape[-1], fused)
    bias = None if bias is None else bias.contiguous()
    arguments = (input, weight.contiguous(), bias, normalisation, addend, output)

    def run(configuration: Configuration) -> None:
        configuration = configurations.for_batch(configuration, key)
        launch(arguments, key, configuration, flipped, activation)

    with torch.cuda.device_of(source):
        rounded = key.of_rounded_batch()
        candidates = configurations.forward_candidates(rounded, launch_context(source.device))
        run(autotuning.choose("forward", rounded, candidates, run, source.device))
    return planes.arranged_like(output, source)


def launch(
    arguments: tuple[Tensor | None, ...],
    key: ShapeKey,
    configuration: Configuration,
    flipped: bool,
    activation: str,
) -> None:
    """Launch a configuration on the current device, given the tensors in the kernels' order."""
    source, *_, addend, output = arguments
    kernel(key)[grid(key, configuration)](
        *arguments,
        *launching.sizes((source, output, addend), key, configuration),
        **constants(key, configuration, flipped, activation),
        **launching.options(configuration),
    )


def grid(key: ShapeKey, configuration: Configuration) -> tuple[int]:
    """Return the grid: channels * splits."""
    return (key.channels * configuration.splits,)


def kernel(key: ShapeKey) -> Any:
    """Return the kernel for a dtype."""
    return forward_planar_kernel if key.tensor_cores else forward_float32_kernel


def constants(
    key: ShapeKey, configuration: Configuration, flipped: bool, activation: str
) -> dict[str, Any]:
    """Return the compile-time parameters of the kernel."""
    size = key.kernel_size
    return {
        **launching.constants(key, configuration),
        # An even filter has one row and column more below and right of its centre; turned by half
        # a turn, above and left.
        "PADDING": size // 2 if flipped else (size - 1) // 2,
        "FLIPPED": flipped,
        "ACTIVATION": activation,
    }
