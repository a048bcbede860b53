"""Channels-last tensors: all passes in place, without a converting copy, against float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from convmixer_kernels import depthwise_conv2d, layout
from convmixer_kernels.backends import cuda
from convmixer_kernels.filters import Filter
from tests.helpers import emulated, strided
from tests.helpers.depthwise_cases import BF16, DEVICE, FP16, check, label, random_case, run
from tests.helpers.strided import channels_last

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]

# (N, C, H, W, k): every kernel size, sizes of 1, primes, every tile width and its neighbours,
# several row and column blocks, low and wide planes, channels that fill no unit, one, or no block.
SHAPES = [
    (1, 3, 1, 2, 3), (2, 8, 2, 1, 15), (1, 1, 2, 3, 8), (3, 12, 2, 2, 9), (2, 16, 1, 17, 7),
    (2, 16, 17, 1, 7), (3, 8, 1, 31, 15), (9, 3, 2, 40, 11), (5, 8, 4, 53, 15), (1, 3, 3, 70, 5),
    (1, 8, 70, 3, 5), (1, 8, 67, 8, 15), (5, 40, 5, 5, 13), (17, 16, 7, 7, 7), (17, 12, 7, 7, 9),
    (9, 24, 7, 5, 11), (33, 8, 4, 8, 15), (19, 3, 3, 7, 13), (3, 16, 8, 8, 3), (9, 40, 8, 8, 8),
    (3, 24, 9, 9, 9), (5, 8, 13, 11, 11), (2, 72, 13, 13, 5), (5, 3, 14, 14, 5),
    (5, 24, 14, 14, 7), (5, 16, 14, 14, 9), (4, 8, 14, 14, 15), (2, 12, 15, 16, 13),
    (3, 16, 16, 16, 3), (3, 40, 16, 16, 9), (2, 16, 16, 16, 15), (1, 3, 17, 17, 8),
    (3, 16, 18, 18, 9), (2, 8, 18, 18, 15), (1, 8, 59, 19, 13), (1, 24, 23, 29, 7),
    (2, 16, 24, 24, 5), (2, 8, 24, 24, 11), (1, 12, 28, 28, 7), (1, 16, 28, 28, 11),
    (1, 16, 28, 28, 13), (2, 1, 31, 33, 3), (2, 8, 31, 31, 11), (3, 16, 32, 32, 7),
    (3, 24, 32, 32, 8), (2, 72, 32, 32, 9), (2, 16, 32, 32, 11), (2, 8, 32, 32, 13),
    (2, 8, 32, 32, 15), (1, 16, 47, 32, 9), (1, 8, 37, 53, 9), (1, 8, 41, 40, 13),
    (1, 8, 44, 44, 5), (1, 16, 44, 44, 9), (1, 3, 56, 56, 7), (2, 8, 56, 56, 9),
    (1, 8, 56, 56, 15), (1, 8, 65, 64, 9), (1, 3, 34, 97, 15), (1, 8, 10, 130, 11),
]  # fmt: skip


class Copies(TorchDispatchMode):
    """Mode that collects operators which copy a tensor of at least `size` elements."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        copies = any(word in str(func) for word in ("copy", "clone", "contiguous"))
        if copies and isinstance(result, Tensor) and result.numel() >= self.size:
            self.seen.append(str(func))
        return result


def run_all_passes(input: Tensor, weight: Tensor, bias: Tensor, grad_output: Tensor) -> None:
    cuda.forward(input, weight, bias)
    cuda.input_gradient(grad_output, weight)
    cuda.weight_gradient(input, grad_output, Filter.of(weight), True)


def cases() -> Iterator[object]:
    for index, shape in enumerate(SHAPES):
        yield pytest.param(shape, BF16 if index % 3 == 2 else FP16, id=label(shape))


@pytest.mark.parametrize(("shape", "dtype"), list(cases()))
def test_all_passes_against_float64(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype
) -> None:
    input, weight, bias, grad_output = random_case(shape, dtype)
    actual = check("cuda", channels_last(input), weight, bias, channels_last(grad_output))
    assert actual.output.is_contiguous(memory_format=torch.channels_last)
    assert actual.grad_input.is_contiguous(memory_format=torch.channels_last)


# Their weight gradient takes jobs of one row where a block has less than 152 KB.
WIDE_SHAPES = [shape for shape in SHAPES if shape[3] > 32 and shape[4] > 9]


@pytest.mark.skipif(DEVICE == "cuda", reason="the GPU is what it is")
@pytest.mark.parametrize("shape", WIDE_SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_less_shared_memory(
    shape: tuple[int, int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    input, weight, bias, grad_output = random_case(shape, FP16)
    case = channels_last(input), weight, bias, channels_last(grad_output)
    emulated.pretend(monkeypatch, (8, 6))
    check("cuda", *case)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "units of wider pixels": lambda tensor: strided.slice_of_pixels(tensor, 8, 16),
    "elements of wider pixels": lambda tensor: strided.slice_of_pixels(tensor, 3, 2),
    "units at an odd address": lambda tensor: strided.slice_of_pixels(tensor, 5, 3),
    "images apart": strided.images_apart,
    "one image for all": lambda tensor: strided.expanded_images(channels_last(tensor)),
    "inner pixels": strided.inner_pixels,
    "columns first": strided.columns_first,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "shape", [(3, 16, 12, 16, 9), (2, 8, 7, 9, 11), (2, 12, 35, 34, 7)], ids=lambda s: f"k{s[4]}"
)
def test_free_strides(layout: str, shape: tuple[int, int, int, int, int]) -> None:
    input, weight, bias, grad_output = random_case(shape, FP16)
    input, grad_output = LAYOUTS[layout](input), LAYOUTS[layout](grad_output)
    assert input.stride(1) == 1
    check("cuda", input, weight, bias, grad_output)
    copies = Copies(input.numel())
    with copies:
        run_all_passes(input, weight, bias, grad_output)
    assert copies.seen == []


@pytest.mark.parametrize("channels", [8, 12])
def test_nothing_is_copied(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    input, weight, bias, grad_output = random_case((3, channels, 9, 10, 9), FP16)
    input, grad_output = channels_last(input), channels_last(grad_output)

    def refuse(tensor: Tensor) -> Tensor:
        raise AssertionError("a channels-last tensor was made planar")

    monkeypatch.setattr(layout, "planar", refuse)
    copies = Copies(input.numel())
    with copies:
        run_all_passes(input, weight, bias, grad_output)
    assert copies.seen == []


@pytest.mark.parametrize("planar", ["input", "grad_output"])
def test_layouts_that_differ(planar: str) -> None:
    input, weight, bias, grad_output = random_case((3, 16, 9, 12, 7), FP16)
    if planar == "input":
        grad_output = channels_last(grad_output)
    else:
        input = channels_last(input)
    check("cuda", input, weight, bias, grad_output)


def test_gradient_of_a_sum_is_expanded() -> None:
    input, weight, bias, _ = random_case((2, 8, 8, 9, 7), FP16)
    one = torch.ones((), dtype=FP16, device=DEVICE)
    check("cuda", channels_last(input), weight, bias, one.expand(input.shape))


@pytest.mark.parametrize("channels", [16, 3])
def test_without_bias(channels: int) -> None:
    input, weight, _, grad_output = random_case((2, channels, 9, 8, 7), FP16)
    check("cuda", channels_last(input), weight, None, channels_last(grad_output))


def test_empty_batch() -> None:
    input, weight, bias, grad_output = random_case((0, 16, 8, 8, 7), FP16)
    actual = run("cuda", channels_last(input), weight, bias, channels_last(grad_output))
    assert actual.output.shape == actual.grad_input.shape == (0, 16, 8, 8)
    assert actual.grad_bias is not None
    assert torch.equal(actual.grad_weight, torch.zeros_like(weight))
    assert torch.equal(actual.grad_bias, torch.zeros_like(bias))


@pytest.mark.parametrize("shape", [(9, 8, 14, 14, 9), (3, 8, 34, 60, 11)])
def test_weight_gradient_is_the_same_every_time(shape: tuple[int, int, int, int, int]) -> None:
    input, weight, bias, grad_output = random_case(shape, FP16)
    case = channels_last(input), weight, bias, channels_last(grad_output)
    first = run("cuda", *case)
    for _ in range(2):
        again = run("cuda", *case)
        assert torch.equal(first.grad_weight, again.grad_weight)
        assert torch.equal(first.grad_bias, again.grad_bias)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [24, 13])
def test_an_image_does_not_see_its_neighbours(channels: int) -> None:
    """NaN in one image or channel stays there: nothing outside a plane is multiplied by zero."""
    input, weight, bias, _ = random_case((5, channels, 7, 7, 9), FP16)
    input = channels_last(input)
    alone = depthwise_conv2d(input, weight, bias, impl="cuda")
    spoiled = input.clone()
    spoiled[1] = torch.nan
    spoiled[:, 2] = torch.nan
    output = depthwise_conv2d(spoiled, weight, bias, impl="cuda")
    clean = torch.isfinite(spoiled).all(dim=3).all(dim=2)
    assert torch.equal(output[clean], alone[clean])
