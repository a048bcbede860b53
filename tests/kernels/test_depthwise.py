"""The public convolution through op, autograd and kernels, against float64.

Without a GPU "cuda" runs on an emulated one and "triton" interpreted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from convmixer_kernels import depthwise_conv2d, dispatch
from convmixer_kernels.filters import Filter
from tests.helpers import oracle, strided
from tests.helpers.depthwise_cases import (
    DEVICE,
    FP16,
    FP32,
    KERNELS,
    check,
    dtypes_of,
    label,
    random_case,
    run,
)

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]

# (N, C, H, W, k): every kernel size, sizes of 1, primes, planes smaller than the kernel, planes of
# every tile width and its neighbours, several row and column blocks, channels that leave a block
# open.
SHAPES = [
    (1, 1, 1, 1, 3), (1, 1, 1, 1, 15), (2, 3, 1, 1, 8), (3, 2, 2, 2, 9), (2, 5, 1, 17, 7),
    (2, 5, 17, 1, 7), (1, 1, 3, 70, 5), (1, 1, 70, 3, 5), (5, 3, 5, 5, 13), (17, 2, 7, 7, 7),
    (17, 2, 7, 7, 9), (9, 3, 7, 5, 11), (33, 1, 4, 8, 15), (3, 4, 8, 8, 3), (3, 4, 8, 8, 8),
    (2, 6, 9, 9, 9), (5, 2, 13, 11, 11), (5, 3, 14, 14, 5), (5, 3, 14, 14, 7), (4, 2, 14, 14, 15),
    (2, 2, 15, 16, 13), (3, 2, 16, 16, 3), (3, 5, 16, 16, 9), (2, 2, 16, 16, 15),
    (1, 3, 17, 17, 8), (2, 2, 18, 18, 9), (2, 2, 18, 18, 15), (1, 4, 23, 29, 7), (2, 2, 24, 24, 5),
    (1, 2, 28, 28, 7), (1, 2, 28, 28, 13), (2, 1, 31, 33, 3), (2, 3, 31, 31, 11),
    (3, 2, 32, 32, 7), (3, 5, 32, 32, 8), (2, 4, 32, 32, 9), (2, 2, 32, 32, 11),
    (2, 2, 32, 32, 15), (1, 2, 37, 53, 9), (1, 1, 41, 40, 13), (1, 2, 44, 44, 5),
    (1, 2, 44, 44, 9), (1, 1, 56, 56, 7), (1, 1, 56, 56, 15), (1, 1, 65, 64, 9),
    (1, 1, 10, 130, 11),
]  # fmt: skip


# Tests of an implementation that is not available fail: it must not go unnoticed.


def cases() -> Iterator[object]:
    for impl in KERNELS:
        for index, shape in enumerate(SHAPES):
            marks = []
            if impl == "triton" and DEVICE == "cpu":
                if index % 3:
                    continue  # interpreted, the full list of shapes is in test_triton.py
                if math.prod(shape[:4]) > 1000:
                    marks = [pytest.mark.repeats]
            for dtype in dtypes_of(impl):
                name = f"{impl}-{label(shape)}-{str(dtype)[6:]}"
                yield pytest.param(impl, shape, dtype, id=name, marks=marks)


@pytest.mark.parametrize(("impl", "shape", "dtype"), list(cases()))
def test_all_passes_against_float64(
    impl: str, shape: tuple[int, int, int, int, int], dtype: torch.dtype
) -> None:
    check(impl, *random_case(shape, dtype))


LAYOUTS = {
    layout.__name__: layout
    for layout in (
        strided.channels_last,
        strided.channels_outermost,
        strided.slice_of_channels,
        strided.every_other_image,
        strided.slice_of_rows_and_columns,
        strided.off_by_one_element,
        strided.transposed_planes,
        strided.expanded_images,
    )
}
both_layouts = pytest.mark.parametrize("layout", [Tensor.contiguous, strided.channels_last])


def layout_cases() -> Iterator[object]:
    for name, shape in (("even", (3, 5, 12, 16, 9)), ("odd", (2, 3, 7, 9, 11))):
        for impl, layout in itertools.product(KERNELS, LAYOUTS):
            # Interpreted, all layouts of more shapes are in test_triton.py.
            repeats = impl == "triton" and DEVICE == "cpu" and name == "even"
            marks = [pytest.mark.repeats] if repeats else []
            yield pytest.param(impl, layout, shape, id=f"{name}-{impl}-{layout}", marks=marks)


@pytest.mark.parametrize(("impl", "layout", "shape"), list(layout_cases()))
def test_layouts(impl: str, layout: str, shape: tuple[int, int, int, int, int]) -> None:
    input, weight, bias, grad_output = random_case(shape, FP16)
    arranged = LAYOUTS[layout](input)
    actual = check(impl, arranged, weight, bias, LAYOUTS[layout](grad_output))
    if layout == "channels_last":
        assert actual.output.is_contiguous(memory_format=torch.channels_last)
        assert actual.grad_input.is_contiguous(memory_format=torch.channels_last)
    elif layout == "channels_outermost":
        assert actual.output.stride() == arranged.stride()
    else:
        assert actual.output.is_contiguous()


@pytest.mark.parametrize("impl", KERNELS)
def test_gradient_of_a_sum_is_expanded(impl: str) -> None:
    input, weight, bias, _ = random_case((2, 3, 8, 8, 7), FP16)
    one = torch.ones((), dtype=FP16, device=DEVICE)
    check(impl, input, weight, bias, one.expand(input.shape))


@pytest.mark.parametrize("impl", KERNELS)
def test_without_bias(impl: str) -> None:
    input, weight, _, grad_output = random_case((2, 3, 9, 8, 7), FP16)
    check(impl, input, weight, None, grad_output)


@pytest.mark.parametrize("impl", KERNELS)
@pytest.mark.parametrize("dtype", [FP16, FP32, torch.float64])
def test_bias_of_any_float_dtype(impl: str, dtype: torch.dtype) -> None:
    input, weight, bias, grad_output = random_case((2, 3, 9, 8, 5), FP16)
    check(impl, input, weight, bias.to(dtype), grad_output)


@both_layouts
@pytest.mark.parametrize("bias_dtype", [FP16, FP32, torch.float64])
@pytest.mark.parametrize("k", [3, 11])
@pytest.mark.parametrize(("impl", "dtype"), [("cuda", FP16), ("triton", FP16), ("triton", FP32)])
def test_a_bias_is_added_in_float32(
    impl: str,
    dtype: torch.dtype,
    k: int,
    bias_dtype: torch.dtype,
    layout: Callable[[Tensor], Tensor],
) -> None:
    # The convolution cancels most of the bias; what is left would be lost in float16. Interpreted,
    # every channel takes seconds.
    channels = 8 if impl == "cuda" or DEVICE == "cuda" else 2
    input = layout(torch.full((1, channels, 3, 4), -1.0, dtype=dtype, device=DEVICE))
    weight = torch.zeros((channels, 1, k, k), dtype=dtype, device=DEVICE)
    weight[:, :, k // 2, k // 2] = 1
    bias = torch.tensor([1.0003, 0.9998] * (channels // 2), dtype=bias_dtype, device=DEVICE)
    output = depthwise_conv2d(input, weight, bias, impl=impl)
    expected = (bias.double() - 1)[:, None, None].expand(channels, 3, 4)
    assert (output[0].double() - expected).abs().max() <= 2e-7


@pytest.mark.parametrize("impl", KERNELS)
def test_weight_and_bias_may_lie_anywhere(impl: str) -> None:
    input, weight, bias, grad_output = random_case((2, 4, 9, 8, 5), FP16)
    apart = strided.every_other_pixel
    check(impl, input, apart(weight), apart(bias), grad_output)
    check(impl, input, weight.transpose(2, 3), bias, grad_output)
    check(impl, input, weight[:1].expand_as(weight), bias[:1].expand(4), grad_output)


@both_layouts
def test_long_sums_of_one_sign(layout: Callable[[Tensor], Tensor]) -> None:
    """Tensor cores cut off instead of rounding, so these lose more digits than any others."""
    shape = (4096, 1, 8, 8)
    generator = torch.Generator().manual_seed(0)
    input, grad_output = (
        layout(torch.rand(shape, generator=generator).to(FP16).to(DEVICE)) for _ in range(2)
    )
    weight, bias = torch.zeros((1, 1, 3, 3)).to(input), torch.zeros(1, device=DEVICE)
    exact = oracle.convolve(input, weight, bias, grad_output, torch.float64)
    backend = dispatch.backend("cuda")
    grad_weight, grad_bias = backend.weight_gradient(input, grad_output, Filter(3, 3), True)
    for actual, expected in ((grad_weight, exact.grad_weight), (grad_bias, exact.grad_bias)):
        assert ((actual.double() - expected).abs() / expected).max() <= 2e-5


@pytest.mark.parametrize("impl", KERNELS)
def test_empty_batch(impl: str) -> None:
    input, weight, bias, grad_output = random_case((0, 3, 8, 8, 7), FP16)
    actual = run(impl, input, weight, bias, grad_output)
    assert actual.output.shape == actual.grad_input.shape == (0, 3, 8, 8)
    assert actual.grad_bias is not None
    assert torch.equal(actual.grad_weight, torch.zeros_like(weight))
    assert torch.equal(actual.grad_bias, torch.zeros_like(bias))


@pytest.mark.parametrize("impl", KERNELS)
def test_more_planes_than_a_grid_dimension(impl: str) -> None:
    if impl == "triton" and DEVICE == "cpu":
        pytest.skip("the interpreter has no limits of a grid, and takes a millisecond a program")
    # 65,537 channels of one pixel: only the centre of the filter meets it.
    shape = (1, 65_537, 1, 1, 3)
    input, weight, bias, _ = random_case(shape, FP16)
    output = depthwise_conv2d(input, weight, bias, impl=impl)
    exact = (
        input.double() * weight[:, :, 1:2, 1:2].double().view(1, -1, 1, 1)
        + bias.double()[None, :, None, None]
    )
    assert (output.double() - exact).abs().max() <= 2**-10 * exact.abs().max()


@pytest.mark.parametrize("impl", KERNELS)
def test_weight_gradient_is_the_same_every_time(impl: str) -> None:
    if impl == "triton" and DEVICE == "cpu":
        pytest.skip("the interpreter runs one program after another")
    input, weight, bias, grad_output = random_case((9, 2, 14, 14, 9), FP16)
    first = run(impl, input, weight, bias, grad_output)
    for _ in range(3):
        again = run(impl, input, weight, bias, grad_output)
        assert torch.equal(first.grad_weight, again.grad_weight)
        assert torch.equal(first.grad_bias, again.grad_bias)  # type: ignore[arg-type]


@pytest.mark.parametrize("impl", KERNELS)
def test_an_image_does_not_see_its_neighbours(impl: str) -> None:
    """NaN in one image or channel stays there: nothing outside a plane is multiplied by zero."""
    input, weight, bias, _ = random_case((3, 5, 7, 7, 9), FP16)
    alone = depthwise_conv2d(input, weight, bias, impl=impl)
    spoiled = input.clone()
    spoiled[1] = torch.nan
    spoiled[:, 2] = torch.nan
    output = depthwise_conv2d(spoiled, weight, bias, impl=impl)
    clean = torch.isfinite(spoiled).all(dim=(2, 3))
    assert torch.equal(output[clean], alone[clean])
