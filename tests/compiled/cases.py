"""The cases of `make compiled`."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import torch

from convmixer_kernels.backends.cuda.device import KERNEL_SIZES

from .steps import OPERATIONS, Case

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32
# Planes of every tile width, whole ones and others, several row and column blocks, a row too many.
PLANES = [
    (2, 3, 32, 32), (3, 2, 16, 16), (17, 2, 8, 8), (5, 3, 7, 7), (3, 5, 14, 14), (2, 1, 18, 20),
    (1, 2, 18, 21), (1, 1, 44, 44), (1, 1, 56, 56), (1, 1, 20, 70),
]  # fmt: skip
PIXELS = [
    (2, 16, 32, 32), (3, 16, 16, 16), (5, 16, 8, 8), (3, 24, 7, 7), (2, 8, 14, 14),
    (1, 11, 18, 20), (1, 8, 44, 44), (1, 8, 20, 70),
]  # fmt: skip
CONVOLUTIONS = [name for name in OPERATIONS if name not in ("statistics", "arranged")]
MAIN = [
    *("forward", "input_gradient", "weight_gradient"),
    *("forward_normalised", "forward_moments", "fused_backward"),
]
ACTIVATIONS = ("gelu", "relu", "identity")


def cuda_cases() -> Iterator[Case]:
    # Every size, in both layouts.
    for k, dtype in itertools.product(KERNEL_SIZES, (FP16, BF16)):
        for shape, operation in itertools.product(PLANES, MAIN):
            yield Case(operation, shape, k, dtype)
        for shape, operation in itertools.product(PIXELS, MAIN):
            yield Case(operation, shape, k, dtype, "channels_last")
    # Sizes that one kernel serves, which channels_last tensors are copied for.
    for k, dtype, operation in itertools.product((4, 17, 24, 31), (FP16, BF16), MAIN[:3]):
        for shape in PLANES:
            yield Case(operation, shape, k, dtype)
        for layout in ("channels_outermost", "slice_of_channels", "off_by_one_element"):
            yield Case(operation, PLANES[-1], k, dtype, layout, multiprocessors=132)
        yield Case(operation, PIXELS[0], k, dtype, "channels_last")
    # Gradients that are copied to the other layout.
    for layout in ("contiguous", "channels_outermost", "slice_of_channels", "off_by_one_element"):
        for shape in PLANES + PIXELS:
            yield Case("arranged", shape, 9, FP16, layout)
    for layout in ("channels_last", "slice_of_channels_last", "units_of_wider_pixels"):
        for shape in PLANES + PIXELS:
            yield Case("arranged", shape, 9, FP16, layout)
    # Optional results, other activations, layouts and GPUs.
    for k, dtype in itertools.product((9, 15), (FP16, BF16)):
        for layout, shape in _shapes(3):
            for operation in CONVOLUTIONS:
                if operation not in MAIN:
                    yield Case(operation, shape, k, dtype, layout)
            for activation in ("relu", "identity"):
                for operation in ("forward_normalised", "forward_moments", "fused_backward"):
                    yield Case(operation, shape, k, dtype, layout, activation)
        for layout in ("channels_outermost", "slice_of_channels", "off_by_one_element"):
            for shape, operation in itertools.product(PLANES[:4:2] + PLANES[6:7], MAIN):
                yield Case(operation, shape, k, dtype, layout)
        for layout in ("slice_of_channels_last", "units_of_wider_pixels"):
            for shape, operation in itertools.product(PIXELS[:1] + PIXELS[4:6], MAIN):
                yield Case(operation, shape, k, dtype, layout)
        for layout, shape in _shapes(2):
            for operation in MAIN:
                yield Case(operation, shape, k, dtype, layout, multiprocessors=132)
                yield Case(operation, shape, k, dtype, layout, capability=(8, 6))
    for dtype, activation in itertools.product((FP16, BF16), ACTIVATIONS):
        for layout, shape in _shapes(8):
            yield Case("statistics", shape, 9, dtype, layout, activation)
            yield Case("statistics", shape, 9, dtype, layout, activation, multiprocessors=132)


def _shapes(count: int) -> Iterator[tuple[str, tuple[int, int, int, int]]]:
    for shape in PLANES[:count]:
        yield "contiguous", shape
    for shape in PIXELS[:count]:
        yield "channels_last", shape


# Triton compiles for the width of a plane; height and batch are free.
TRITON_PLANES = [(2, 3, 32, 32), (1, 2, 9, 32), (3, 1, 33, 32), (5, 3, 7, 7), (2, 2, 1, 7)]
TRITON_PIXELS = [(2, 16, 9, 32), (5, 24, 7, 7), (1, 67, 2, 7)]


def triton_cases() -> Iterator[Case]:
    for capability, dtype in itertools.product(((8, 0), (9, 0)), (BF16, FP16)):
        made = functools.partial(Case, dtype=dtype, backend="triton", capability=capability)
        for k, operation in itertools.product((9, 15) if dtype == BF16 else (8,), MAIN):
            for shape in TRITON_PLANES:
                yield made(operation, shape, k)
            for shape in TRITON_PIXELS:
                yield made(operation, shape, k, layout="channels_last")
        for shape in TRITON_PLANES:
            yield made("statistics", shape, 9)
        for shape in TRITON_PIXELS:
            yield made("statistics", shape, 9, layout="channels_last")
    for operation, shape in itertools.product(("forward", "weight_gradient"), TRITON_PLANES):
        yield Case(operation, shape, 7, FP32, backend="triton")
    # Filters of any size.
    for k, capability, dtype in ((17, (8, 0), BF16), (24, (9, 0), FP16), (31, (8, 0), BF16)):
        made = functools.partial(
            Case, kernel_size=k, dtype=dtype, backend="triton", capability=capability
        )
        for operation in MAIN[:3]:
            for shape in (*TRITON_PLANES, (40, 1, 3, 14)):
                yield made(operation, shape)
            for layout in ("channels_outermost", "off_by_one_element", "channels_last"):
                yield made(operation, (2, 3, 13, 16), layout=layout)
    for operation, shape in itertools.product(MAIN[:3], TRITON_PLANES[3:]):
        yield Case(operation, shape, 17, FP32, backend="triton")
