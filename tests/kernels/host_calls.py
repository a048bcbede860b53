"""Calls every function of a CUDA extension, whose file is the argument, on the emulated GPU.

The calls are those of the package first, then others with arguments that it never passes.
Sanitizers in the host code say if it leaves its memory or what C++ defines: see test_host_code.py.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

os.environ["CONVMIXER_KERNELS_EMULATE"] = "1"
from convmixer_kernels import emulated_gpu
from convmixer_kernels.backends import cuda
from convmixer_kernels.backends.cuda import device as cuda_device
from convmixer_kernels.filters import Filter
from convmixer_kernels.operands import BatchNorm, Epilogue, FusedBackward, PreActivation

HUGE = 2**31 - 1
# Images, channels, height, width, kernel size.
SHAPES = [(1, 1, 1, 1, 3), (2, 3, 8, 8, 9), (1, 9, 5, 13, 8), (1, 8, 3, 60, 15)]
# These are not called by the passes of a block, and not with wrong arguments.
SETTINGS = {"set_chip", "use_attributes", "watch"}
Call = tuple[str, tuple[Any, ...]]


def recorded(extension: types.ModuleType, calls: list[Call]) -> types.ModuleType:
    """Wrap an extension so that calls of its functions are listed."""
    wrapped = types.ModuleType("recorded")

    def recording(name: str) -> Any:
        def call(*arguments: Any) -> Any:
            calls.append((name, arguments))
            return getattr(extension, name)(*arguments)

        return call

    for name in functions_of(extension):
        setattr(wrapped, name, recording(name))
    return wrapped


def functions_of(extension: types.ModuleType) -> set[str]:
    return {name for name, value in vars(extension).items() if callable(value)}


def call_as_the_package_does(shape: tuple[int, ...], dtype: torch.dtype, format: Any) -> None:
    """Run every pass of a block on tensors of one shape, with and without what is optional."""
    images, channels, height, width, size = shape

    def image() -> torch.Tensor:
        return torch.randn(images, channels, height, width).to(dtype, memory_format=format)

    input, grad = image(), image()
    weight = torch.randn(channels, 1, size, size).to(dtype)
    bias = torch.randn(channels)
    output = cuda.forward(input, weight, bias)
    cuda.forward(input, weight, None)
    cuda.arranged(input, format == torch.contiguous_format)
    cuda.input_gradient(grad, weight)
    for with_bias in (False, True):
        cuda.weight_gradient(input, grad, Filter(size, size), with_bias)
    other = Filter(17, 3, 1, 2)
    filters = torch.randn(channels, 1, *other.shape).to(dtype)
    cuda.forward(input, filters, bias, other.dilation)
    cuda.input_gradient(grad, filters, other.dilation)
    cuda.weight_gradient(input, grad, other, True)
    for each, dilation in ((weight, (1, 1)), (filters, other.dilation)):
        cuda.gradients(grad, input, each, dilation, True, True)
        cuda.gradients(grad, None, each, dilation, True, False)
    value, moments = cuda.forward_moments(input, weight, bias, "gelu")
    cuda.moments(PreActivation(output, bias, "relu"))
    mean, variance = torch.zeros(channels), torch.ones(channels)
    table = cuda.batch_normalisation(
        moments[None], BatchNorm(bias, bias, mean, variance, True, 0.1, 1e-5)
    )
    cuda.running_normalisation(BatchNorm(None, None, mean, variance, False, 0.0, 1e-5))
    cuda.forward_normalised(input, weight, bias, Epilogue(table, "gelu", True))
    cuda.normalise(PreActivation(value, bias, "gelu"), table, input)
    cuda.normalise(PreActivation(value, None, "identity"), table, None)
    sums = cuda.gradient_sums(PreActivation(value, None, "gelu"), grad, table)
    cuda.affine_gradients(sums, table, (True, False))
    cuda.value_gradient(PreActivation(value, None, "gelu"), grad, table, sums, True)
    for residual in (False, True):
        arguments = (weight, value, grad, table, sums, "gelu", residual, size, True, residual)
        cuda.fused_backward(FusedBackward(input, *arguments))
        cuda.fused_backward(FusedBackward(None, *arguments))


def can_exist(name: str, sizes: tuple[int, ...]) -> bool:
    """No tensor has 2^63 elements; operations that make none are quick with fewer, too.

    Of others, the sanitizer would mark a byte for each eight.
    """
    elements = math.prod(sizes)
    allocates = name not in ("weight_gradient", "moments", "gradient_sums")
    return elements < 2**63 and not (allocates and 2**24 < elements < 2**48)


def is_image(argument: object) -> bool:
    return isinstance(argument, torch.Tensor) and argument.dim() == 4 and argument.shape[1] > 1


def resized(tensor: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    """Return an image of which one pixel stands for all."""
    return tensor.new_empty(sizes[1]).as_strided(sizes, (0, 1, 0, 0))


def variants(name: str, arguments: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Vary the arguments of a call: the sizes of all images, and each argument by itself."""
    huge = itertools.product((1, 7, HUGE), (7,), (1, 7, HUGE), (1, 7, HUGE))
    for sizes in itertools.chain(huge, itertools.product((0, 1), repeat=4)):
        if not can_exist(name, sizes):
            continue
        yield tuple(resized(each, sizes) if is_image(each) else each for each in arguments)
    for place, argument in enumerate(arguments):

        def others(*values: object, place: int = place) -> Iterator[tuple[Any, ...]]:
            for value in values:
                yield (*arguments[:place], value, *arguments[place + 1 :])

        yield from others(None, "text", 2**64, [], -1, 0, HUGE, torch.zeros(3), torch.zeros(()))
        if isinstance(argument, torch.Tensor):
            yield from others(argument.double(), argument.int(), argument[None], argument[:0])
            yield from others(argument.flatten(), argument[..., :1], argument.transpose(0, -1))
            wider = argument.new_empty(argument.numel() + 1)[1:].view(argument.shape)
            yield from others(wider, resized(argument, (2, 3, 5, 7)))
    yield arguments[:-1]
    yield (*arguments, 0)


def main() -> None:
    file = Path(sys.argv[1])
    emulated_gpu._build = lambda: file  # type: ignore[assignment]
    extension = emulated_gpu.extension()
    calls: list[Call] = []
    cuda_device._emulated = lambda: recorded(extension, calls)  # type: ignore[assignment]
    for shape in SHAPES:
        for dtype in (torch.float16, torch.bfloat16):
            for format in (torch.contiguous_format, torch.channels_last):
                call_as_the_package_does(shape, dtype, format)
    calls.append(("refusal", (0,)))
    missing = functions_of(extension) - {name for name, _ in calls} - SETTINGS
    assert not missing, f"never called: {missing}"

    # Without their texts kernels are refused, after everything that the host does.
    emulated_gpu._load("_cuda_runtime").set_files({})
    # Errors quote the arguments, and PyTorch takes a millisecond to write out a tensor.
    torch.Tensor.__repr__ = lambda *_, **__: "tensor"  # type: ignore[method-assign]
    varied = refused = 0
    for name, arguments in calls:
        for variant in variants(name, arguments):
            varied += 1
            try:
                getattr(extension, name)(*variant)
            except (TypeError, ValueError, RuntimeError):
                refused += 1
    for number in (0, 1, HUGE):
        extension.set_chip(-1, number, number, number)
        for name, arguments in calls:
            with contextlib.suppress(RuntimeError):
                getattr(extension, name)(*arguments)
    print(f"{len(calls)} calls, {varied} variants, {refused} refused")


if __name__ == "__main__":
    main()
