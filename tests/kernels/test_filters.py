"""Filters that are large, not square, dilated or of an even size, against float64.

Without a GPU "cuda" runs on an emulated one and "triton" interpreted.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from convmixer_kernels import DepthwiseConv2d, depthwise_conv2d, explain
from convmixer_kernels.backends.cuda import device as cuda_device
from convmixer_kernels.filters import Filter
from tests.helpers import strided
from tests.helpers.depthwise_cases import BF16, DEVICE, FP16, KERNELS, check, dtypes_of, run

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]


class Case(NamedTuple):
    """Images (N, C, H, W) and a filter."""

    shape: tuple[int, int, int, int]
    filter: Filter

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))}-{self.filter}".replace(" ", "")


def tensors(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return random input, filters, float32 bias and gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    channels = case.shape[1]
    input, grad_output = torch.randn((2, *case.shape), generator=generator).to(dtype)
    weight = torch.randn((channels, 1, *case.filter.shape), generator=generator)
    weight = (weight / case.filter.taps**0.5).to(dtype)
    bias = torch.randn(channels, generator=generator)
    return input.to(DEVICE), weight.to(DEVICE), bias.to(DEVICE), grad_output.to(DEVICE)


# Planes of every tile width and its neighbours, several row blocks and column blocks, planes
# smaller than the filter, several images to an item and an item with images that do not exist.
LARGE = [
    Case((1, 1, 1, 1), Filter(31, 31)),
    Case((2, 1, 7, 7), Filter(31, 29)),
    Case((5, 3, 8, 8), Filter(20, 18)),
    Case((3, 2, 9, 16), Filter(17, 17)),
    Case((2, 3, 14, 14), Filter(19, 19)),
    Case((5, 2, 13, 11), Filter(23, 23)),
    Case((2, 2, 32, 32), Filter(31, 31)),
    Case((1, 2, 31, 33), Filter(21, 21)),
    Case((1, 1, 64, 64), Filter(31, 31)),
    Case((1, 2, 37, 53), Filter(29, 29)),
    Case((1, 1, 70, 3), Filter(27, 27)),
    Case((1, 1, 3, 70), Filter(27, 27)),
    Case((1, 1, 5, 130), Filter(31, 31)),
    Case((1, 1, 40, 100), Filter(16, 22)),
]
# Of SLaK, InceptionNeXt, VAN and MogaNet, and others: one row or column of taps, even sizes,
# dilation of either dimension, a single tap.
OTHERS = [
    Case((2, 3, 14, 14), Filter(1, 1)),
    Case((2, 3, 14, 14), Filter(1, 11)),
    Case((2, 3, 14, 14), Filter(11, 1)),
    Case((1, 2, 28, 28), Filter(5, 31)),
    Case((1, 2, 28, 28), Filter(31, 5)),
    Case((2, 3, 9, 8), Filter(3, 7)),
    Case((2, 2, 16, 16), Filter(2, 2)),
    Case((2, 2, 15, 16), Filter(4, 6)),
    Case((1, 3, 28, 28), Filter(7, 7, 3, 3)),
    Case((2, 3, 14, 14), Filter(5, 5, 2, 2)),
    Case((2, 2, 14, 15), Filter(3, 3, 5, 5)),
    Case((1, 1, 33, 61), Filter(8, 5, 2, 5)),
    Case((1, 2, 20, 20), Filter(3, 9, 1, 2)),
]


# Every size for Triton's interpreter: more output rows than a program has and fewer, heights on
# each side of an iteration of the main loops, widths of every alignment, several groups of tiles,
# dilated filters with more phases than the image has rows and with fewer.
INTERPRETED = [
    Case((1, 1, 1, 1), Filter(31, 31)),
    Case((2, 1, 7, 7), Filter(31, 29)),
    Case((5, 2, 8, 8), Filter(18, 20)),
    Case((3, 2, 5, 16), Filter(17, 17)),
    Case((1, 1, 3, 70), Filter(25, 25)),
    Case((1, 1, 6, 29), Filter(29, 29)),
    Case((1, 1, 3, 520), Filter(16, 22)),
    Case((1, 2, 12, 20), Filter(5, 31)),
    Case((2, 2, 17, 2), Filter(17, 1, 1, 5)),
    Case((2, 1, 9, 13), Filter(7, 7, 4, 4)),
    Case((1, 1, 22, 9), Filter(9, 16, 3, 2)),
]
REPEATING = [
    Case((1, 2, 13, 14), Filter(19, 19)),
    Case((1, 1, 20, 12), Filter(21, 21)),
    Case((2, 1, 11, 13), Filter(23, 23)),
    Case((1, 1, 37, 3), Filter(27, 27)),
    Case((1, 1, 19, 24), Filter(30, 30)),
    Case((1, 2, 20, 12), Filter(31, 5)),
    Case((2, 2, 3, 17), Filter(1, 17)),
    Case((1, 1, 2, 5), Filter(5, 4, 7, 5)),
]


def cases(impl: str) -> Iterator[object]:
    """Yield the cases of an implementation; Triton's interpreter takes seconds for each."""
    chosen = LARGE + OTHERS
    if impl == "triton" and DEVICE == "cpu":
        embedded = [case for case in OTHERS if max(case.filter.extent) <= 15]
        chosen = INTERPRETED + REPEATING + embedded
    for case, dtype in itertools.product(chosen, dtypes_of(impl)):
        marks = [pytest.mark.repeats] if case in REPEATING else []
        yield pytest.param(impl, case, dtype, id=f"{impl}-{case}-{str(dtype)[6:]}", marks=marks)


@pytest.mark.parametrize(("impl", "case", "dtype"), [*cases("cuda"), *cases("triton")])
def test_all_passes_against_float64(impl: str, case: Case, dtype: torch.dtype) -> None:
    check(impl, *tensors(case, dtype), case.filter.dilation)


@pytest.mark.parametrize(
    "case",
    [
        Case((2, 1, 2, 3), Filter(17, 17)),
        Case((1, 2, 8, 3), Filter(18, 5)),
        Case((1, 3, 3, 9), Filter(2, 31)),
        Case((2, 2, 9, 5), Filter(3, 10, 8, 3)),
    ],
    ids=str,
)
def test_float32(case: Case) -> None:
    check("triton", *tensors(case, torch.float32), case.filter.dilation)


LAYOUTS = [
    strided.channels_last,
    strided.channels_outermost,
    strided.slice_of_channels,
    strided.slice_of_rows_and_columns,
    strided.off_by_one_element,
    strided.expanded_images,
]


@pytest.mark.parametrize(
    ("impl", "case"),
    [
        *(("cuda", case) for case in (LARGE[4], OTHERS[1], OTHERS[9], OTHERS[7])),
        ("triton", Case((2, 3, 6, 8), Filter(17, 18))),
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_layouts(layout: Callable[[Tensor], Tensor], impl: str, case: Case) -> None:
    input, weight, bias, grad_output = tensors(case, FP16)
    actual = check(impl, layout(input), weight, bias, layout(grad_output), case.filter.dilation)
    if layout is strided.channels_last:
        assert actual.output.is_contiguous(memory_format=torch.channels_last)
        assert actual.grad_input.is_contiguous(memory_format=torch.channels_last)


def test_random_filters() -> None:
    numbers = random.Random(0)
    for dtype in 6 * (FP16, BF16):
        shape = tuple(numbers.randint(1, most) for most in (4, 4, 40, 80))
        rows, columns = numbers.randint(1, 5), numbers.randint(1, 5)
        height, width = (numbers.randint(1, 1 + 30 // step) for step in (rows, columns))
        case = Case(shape, Filter(height, width, rows, columns))  # type: ignore[arg-type]
        check("cuda", *tensors(case, dtype), case.filter.dilation)


@pytest.mark.parametrize("impl", KERNELS)
@pytest.mark.parametrize("filter", [Filter(2, 4), Filter(3, 1, 2, 1), Filter(17, 19)], ids=str)
def test_empty_batch(impl: str, filter: Filter) -> None:
    input, weight, bias, grad_output = tensors(Case((0, 3, 8, 8), filter), FP16)
    actual = run(impl, input, weight, bias, grad_output, filter.dilation)
    assert actual.output.shape == actual.grad_input.shape == (0, 3, 8, 8)
    assert torch.equal(actual.grad_weight, torch.zeros_like(weight))


@pytest.mark.parametrize(
    ("impl", "shape"), [("cuda", (9, 2, 14, 14)), ("triton", (17, 1, 3, 14))], ids=str
)
def test_weight_gradient_is_the_same_every_time(
    impl: str, shape: tuple[int, int, int, int]
) -> None:
    input, weight, bias, grad_output = tensors(Case(shape, Filter(17, 19)), FP16)
    first = run(impl, input, weight, bias, grad_output)
    again = run(impl, input, weight, bias, grad_output)
    assert torch.equal(first.grad_weight, again.grad_weight)
    assert torch.equal(first.grad_bias, again.grad_bias)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("impl", "filter", "message"),
    [
        ("cuda", Filter(32, 3), r"up to 31 rows and columns, not 32 x 3 \(kernel size 32 x 3\)"),
        (
            "cuda",
            Filter(7, 7, 1, 6),
            r"not 7 x 37 \(kernel size 7 x 7 with dilation 1 x 6\); use impl='torch'",
        ),
        ("triton", Filter(33, 5), r"up to 31 rows and columns, not 33 x 5 \(kernel size 33 x 5\)"),
    ],
)
def test_filters_that_reach_too_far_are_refused(impl: str, filter: Filter, message: str) -> None:
    input, weight, bias, _ = tensors(Case((1, 2, 8, 8), filter), FP16)
    with pytest.raises(ValueError, match=f"impl='{impl}' cannot serve this input: .*{message}"):
        depthwise_conv2d(input, weight, bias, dilation=filter.dilation, impl=impl)
    assert depthwise_conv2d(input, weight, bias, dilation=filter.dilation).shape == input.shape


@pytest.mark.parametrize("dilation", [0, (1, 0), (1, 1, 1), 1.5, "same"])
def test_bad_dilation_is_named(dilation: object) -> None:
    input, weight, bias, _ = tensors(Case((1, 2, 8, 8), Filter(3, 3)), FP16)
    with pytest.raises(ValueError, match=r"dilation: got .*, expected an integer of at least 1"):
        depthwise_conv2d(input, weight, bias, dilation=dilation)  # type: ignore[arg-type]


@pytest.mark.parametrize("filter", [case.filter for case in OTHERS], ids=str)
def test_embedded_filters_compute_the_same(filter: Filter) -> None:
    input, weight, bias, _ = tensors(Case((1, 2, 12, 13), filter), torch.float64)
    expected = depthwise_conv2d(input, weight, bias, dilation=filter.dilation, impl="torch")
    embedded = filter.embed(weight)
    assert embedded.shape[2:] == (filter.embedding_size,) * 2 and embedded.shape[-1] % 2
    actual = depthwise_conv2d(input, embedded, bias, impl="torch")
    assert (actual - expected).abs().max() <= 1e-12
    assert torch.equal(filter.pick(embedded), weight)


@pytest.mark.parametrize("filter", [case.filter for case in OTHERS] + [Filter(9, 9)], ids=str)
def test_filters_are_embedded_in_channels_last_alone(filter: Filter) -> None:
    """There a square kernel reads images as they are, and that of any filter copies them."""
    input, weight, bias, grad_output = tensors(Case((2, 8, 9, 12), filter), FP16)
    extension = cuda_device.extension_for(input)
    sizes = cuda_device.KERNEL_SIZES
    for arrange, embedded in (
        (torch.Tensor.contiguous, False),
        (strided.channels_last, filter.size not in sizes and filter.embedding_size in sizes),
    ):
        x, grad = arrange(input), arrange(grad_output)
        answers = (
            extension.forward(x, weight, bias, *filter.dilation, False),
            extension.weight_gradient(x, grad, *filter, True),
            extension.gradients(grad, x, weight, *filter.dilation, True, True),
            extension.gradients(grad, None, weight, *filter.dilation, True, False),
        )
        assert [answer is None for answer in answers] == [embedded] * 4


@pytest.mark.parametrize(
    ("kernel_size", "dilation"), [((1, 11), 1), (7, 3), (4, 1), ((5, 3), (2, 1))]
)
def test_module(kernel_size: int | tuple[int, int], dilation: int | tuple[int, int]) -> None:
    layer = DepthwiseConv2d(3, kernel_size, dilation=dilation, impl="cuda").half().to(DEVICE)
    input = torch.randn(2, 3, 9, 10).half().to(DEVICE)
    expected = torch.nn.Conv2d(3, 3, kernel_size, padding="same", dilation=dilation, groups=3).to(
        layer.weight
    )
    expected.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(input), expected(input), rtol=2e-3, atol=2e-3)


def test_explain_names_the_filter() -> None:
    input, weight, _, _ = tensors(Case((1, 2, 8, 8), Filter(3, 3, 2, 2)), FP16)
    text = explain(input, weight, "cuda", dilation=2)
    assert text.startswith("cuda: runs 1x2x8x8 float16 on ")
    assert "kernel size 3 x 3 with dilation 2 (asked for by name)" in text
