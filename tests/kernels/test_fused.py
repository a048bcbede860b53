"""The fused operations of every implementation against float64.

"steps" is the autograd of the kernels around their specification in plain PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convmixer_kernels import dispatch, gelu_batch_norm
from convmixer_kernels.backends import reference
from convmixer_kernels.operands import BatchNorm, PreActivation
from tests.helpers import fused_cases, strided
from tests.helpers.depthwise_cases import KERNELS, label
from tests.helpers.fused_cases import (
    BF16,
    DEVICE,
    FP16,
    FP64,
    IMPLEMENTATIONS,
    Use,
    all_but_pytorch,
    arranged,
    both_functions,
    dtypes_of,
    every_implementation,
    random_arguments,
)

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]

# (N, C, H, W), and with the size of the filter behind it.
Size = tuple[int, int, int, int]
Shape = tuple[int, int, int, int, int]
LAYOUTS = {
    "contiguous": Tensor.contiguous,
    "channels_outermost": strided.channels_outermost,
    "channels_last": strided.channels_last,
    "slice_of_channels": strided.slice_of_channels,
}
# (N, C, H, W, k): sizes of 1, planes smaller than the filter, whole and odd planes, several tiles,
# even sizes, channels and images that leave a block of theirs open.
SHAPES = [
    (2, 3, 1, 1, 3), (1, 2, 1, 5, 5), (5, 9, 2, 3, 7), (17, 2, 7, 7, 9), (3, 4, 9, 13, 8),
    (1, 3, 17, 18, 11), (2, 2, 16, 16, 9), (3, 2, 16, 16, 13), (2, 3, 32, 32, 7),
    (2, 2, 32, 32, 15), (1, 2, 37, 41, 9),
]  # fmt: skip


@pytest.mark.parametrize("training", [True, False], ids=["training", "frozen"])
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "plain"])
@pytest.mark.parametrize("activation", ["gelu", "relu", "identity"])
@pytest.mark.parametrize("layout", LAYOUTS)
@both_functions
@every_implementation
def test_every_option(
    name: str, k: int | None, layout: str, activation: str, residual: bool, training: bool, use: Use
) -> None:
    options = {"activation": activation, "residual": residual, "training": training}
    shape = (2, 2, 5, 6) if name == "triton" and DEVICE == "cpu" else (3, 5, 7, 6)
    arguments = random_arguments(shape, k, dtypes_of(name)[0], **options)
    arguments = arranged(arguments, LAYOUTS[layout])
    actual = fused_cases.check(arguments, use(name))
    if layout == "channels_last":
        # The gradients of PyTorch's own operations are as it lays them out, on a GPU contiguous.
        for result in ("output",) if name == "torch" else ("output", "input"):
            assert actual[result].is_contiguous(memory_format=torch.channels_last), result
    elif layout == "channels_outermost" and name in ("cuda", "triton"):
        for result in ("output", "input"):
            assert actual[result].stride() == arguments.input.stride(), result
    fused_cases.check_without_gradients(arguments, use(name))


def shapes_and_dtypes() -> Iterator[object]:
    for name in IMPLEMENTATIONS:
        for index, shape in enumerate(SHAPES):
            dtypes = dtypes_of(name)
            dtype = dtypes[index % len(dtypes)]
            marks = []
            if name == "triton" and DEVICE == "cpu":
                # Larger planes take seconds to interpret; more of them are in test_triton.py.
                if math.prod(shape) > 12000:
                    continue
                if math.prod(shape) > 2000:
                    dtype = FP16
                if math.prod(shape) > 10000:
                    marks = [pytest.mark.repeats]
            identifier = f"{name}-{label(shape)}-{str(dtype)[6:]}"
            yield pytest.param(name, shape, dtype, id=identifier, marks=marks)


@pytest.mark.parametrize(("name", "shape", "dtype"), list(shapes_and_dtypes()))
def test_shapes(name: str, shape: Shape, dtype: torch.dtype, use: Use) -> None:
    for k in (shape[4], None):
        arguments = random_arguments(shape[:4], k, dtype)
        fused_cases.check(arguments, use(name))
        arguments = replace(arguments, training=False)
        fused_cases.check(arguments, use(name))
        fused_cases.check_without_gradients(arguments, use(name))


@pytest.mark.parametrize("activation", ["relu", "identity"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(7, 6), (16, 16)])
@all_but_pytorch
def test_evaluation_rounds_once(
    name: str, size: tuple[int, int], layout: str, activation: str, use: Use
) -> None:
    """The convolution is not rounded: it stays in float32 until it is normalised."""
    arguments = random_arguments((2, 3, *size), 3, FP16, training=False, activation=activation)
    arguments = arranged(replace(arguments, residual=False), LAYOUTS[layout])
    exact = fused_cases.compose(arguments, FP64)["output"]
    with torch.no_grad():
        output = fused_cases.call(arguments, use(name))
    allowed = torch.finfo(FP16).eps / 2 * exact.abs() + 1e-5
    assert ((output.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(7, 6), (16, 16)])
@all_but_pytorch
def test_a_large_mean_costs_evaluation_no_digits(
    name: str, size: tuple[int, int], layout: str, use: Use
) -> None:
    """A mean that nearly cancels the bias leaves what a float32 sum of such terms would leave."""
    options = {"activation": "identity", "training": False, "residual": False}
    arguments = random_arguments((2, 3, *size), 3, FP16, **options)
    assert arguments.bias is not None and arguments.running_mean is not None
    bias, mean = arguments.bias + 1000, arguments.running_mean + 1000
    arguments = arranged(replace(arguments, bias=bias, running_mean=mean), LAYOUTS[layout])
    exact = fused_cases.compose(arguments, FP64)["output"]
    assert arguments.gamma is not None and arguments.running_var is not None
    scale = arguments.gamma.abs() * (arguments.running_var + arguments.eps).rsqrt()
    allowed = torch.finfo(FP16).eps / 2 * exact.abs() + 2**-19 * 1000 * scale[:, None, None]
    rounded_sums = fused_cases.compose(arguments, FP16)["output"]
    assert ((rounded_sums.double() - exact).abs() > allowed).any()
    with torch.no_grad():
        output = fused_cases.call(arguments, use(name))
    assert ((output.double() - exact).abs() <= allowed).all()


# ---- sums that nearly cancel ---------------------------------------------------------------------

# (N, C, H, W, k): every tile shape and column blocks, pieces of 8, 4, 2 and 1 columns, several
# row blocks, channels and images that leave a block of theirs open.
CANCELLING = [
    (17, 2, 7, 8, 9), (3, 9, 9, 13, 5), (2, 24, 14, 14, 7), (2, 3, 16, 16, 3), (1, 5, 18, 20, 8),
    (1, 9, 32, 32, 11), (1, 3, 35, 44, 13), (1, 9, 6, 50, 15), (1, 2, 36, 70, 9),
]  # fmt: skip


class Cancelling(NamedTuple):
    name: str
    shape: tuple[int, int, int, int, int]
    layout: str
    dtype: torch.dtype


def cancelling_cases() -> Iterator[object]:
    for name in IMPLEMENTATIONS[1:]:
        for index, shape in enumerate(CANCELLING[:2] if name == "steps" else CANCELLING):
            for layout in ("contiguous", "channels_last", "slice_of_channels"):
                if name == "triton" and DEVICE == "cpu" and math.prod(shape) > 20000:
                    continue
                dtypes = [dtype for dtype in dtypes_of(name) if dtype in (FP16, BF16)]
                dtype = dtypes[(index + (layout == "channels_last")) % len(dtypes)]
                case = Cancelling(name, shape, layout, dtype)
                identifier = f"{name}-{label(shape)}-{layout}-{str(dtype)[6:]}"
                # Interpreted, this layout differs from a contiguous one in strides alone.
                repeats = name == "triton" and DEVICE == "cpu" and layout == "slice_of_channels"
                marks = [pytest.mark.repeats] if repeats else []
                yield pytest.param(case, id=identifier, marks=marks)


every_cancelling_case = pytest.mark.parametrize("case", list(cancelling_cases()))


def nearly_minus_one(weight: Tensor) -> Tensor:
    """A filter of -1 and small numbers around it: what it gives nearly cancels the residual."""
    middle = (weight.shape[-1] - 1) // 2
    small = weight / 64
    small[:, :, middle, middle] = -1
    return small


def cancelling_arguments(case: Cancelling) -> tuple[fused_cases.Arguments, Tensor]:
    """Return arguments and their filters.

    The running statistics change nothing, so that nothing else is rounded on the way.
    """
    *size, k = case.shape
    arguments = random_arguments(tuple(size), k, case.dtype, activation="identity", training=False)
    assert arguments.weight is not None
    eps, ones = 2.0**-10, torch.ones(case.shape[1], device=DEVICE)
    statistics = {"running_mean": 0 * ones, "running_var": ones - eps, "eps": eps}
    weight = nearly_minus_one(arguments.weight)
    arguments = replace(arguments, weight=weight, bias=None, gamma=None, beta=None, **statistics)
    return arranged(arguments, LAYOUTS[case.layout]), weight


def convolved(images: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The convolution in float64, and the sums of the magnitudes of its terms."""
    k = weight.shape[-1]
    before, after = (k - 1) // 2, k // 2
    padded, weight = F.pad(images.double(), (before, after, before, after)), weight.double()
    both = ((padded, weight), (padded.abs(), weight.abs()))
    exact, terms = (F.conv2d(*each, groups=len(weight)) for each in both)
    return exact, terms


def with_addend(exact: Tensor, terms: Tensor, addend: Tensor) -> tuple[Tensor, Tensor]:
    """Add a tensor, which nearly cancels the sums, to these and to the sums of absolute terms."""
    exact, terms = exact + addend.double(), terms + addend.double().abs()
    assert exact.abs().median() < terms.median() / 16
    return exact, terms


def assert_rounded_once(actual: Tensor, exact: Tensor, terms: Tensor) -> None:
    """Within half a unit in the last place, and what float32 loses in a sum of such terms."""
    unit = torch.finfo(actual.dtype).eps * torch.exp2(exact.abs().log2().floor())
    error = (actual.double() - exact).abs() / (unit / 2 + 2**-20 * terms)
    assert error.max() <= 1, f"{error.max():.2f} times what one rounding may be off by"


@pytest.mark.parametrize("backward", [False, True])
@every_cancelling_case
def test_an_addend_that_nearly_cancels_is_added_before_the_sum_is_rounded(
    case: Cancelling, backward: bool, use: Use
) -> None:
    """A residual is added to the convolution, and its gradient to that of the input."""
    arguments, weight = cancelling_arguments(case)
    if backward:
        turned, terms = convolved(arguments.grad.flip(2, 3), weight)
        exact, terms = with_addend(turned.flip(2, 3), terms.flip(2, 3), arguments.grad)
        actual = fused_cases.run(arguments, use(case.name))["input"]
    else:
        exact, terms = with_addend(*convolved(arguments.input, weight), arguments.input)
        with torch.no_grad():
            actual = fused_cases.call(arguments, use(case.name))
    assert_rounded_once(actual, exact, terms)


@every_cancelling_case
def test_in_training_the_convolution_is_rounded_and_then_the_output(
    case: Cancelling, use: Use
) -> None:
    """The residual is added to the normalised convolution before that is rounded."""
    arguments, weight = cancelling_arguments(case)
    steps = dispatch.backend(use(case.name))
    value, moments = steps.forward_moments(arguments.input, weight, None, arguments.activation)
    table = steps.batch_normalisation(
        moments[None], BatchNorm(None, None, None, None, True, 0.1, 1e-5)
    )
    mean, scale = (row.double()[:, None, None] for row in table[:2])
    normalised = (value.double() - mean) * scale
    residual = LAYOUTS[case.layout]((arguments.grad / 64 - normalised).to(case.dtype))
    actual = steps.normalise(PreActivation(value, None, arguments.activation), table, residual)
    terms = value.double().abs() * scale + residual.double().abs() + (mean * scale).abs()
    assert_rounded_once(actual, normalised + residual.double(), terms)


# ---- statistics ----------------------------------------------------------------------------------

PLANES = [(5, 2, 16, 16), (9, 3, 7, 5), (2, 9, 11, 19)]


def every_case_of_statistics(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test with all kernels, shapes, layouts and activations."""
    test = pytest.mark.parametrize("shape", PLANES)(all_but_pytorch(test))
    test = pytest.mark.parametrize("layout", LAYOUTS)(test)
    return pytest.mark.parametrize("activation", ["gelu", "relu", "identity"])(test)


def assert_moments(moments: Tensor, values: Tensor) -> None:
    """Count, mean and sum of squared deviations of `values`, within 1e-4."""
    values = values.double()
    count = values.numel() // values.shape[1]
    mean = values.mean((0, 2, 3))
    squares = (values - mean[:, None, None]).square().sum((0, 2, 3))
    assert torch.equal(moments[0].double(), torch.full_like(mean, count))
    torch.testing.assert_close(moments[1].double(), mean, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(moments[2].double(), squares, atol=0, rtol=1e-4)


def far_from_zero(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Tensor:
    """Values about 1000 with deviations that float32 loses in the mean of squares.

    Images differ in their means, so that merging their statistics counts.
    """
    generator = torch.Generator().manual_seed(0)
    deviations = torch.randn(shape, generator=generator)
    deviations += torch.randn((shape[0], 1, 1, 1), generator=generator)
    return (1000 + deviations).to(DEVICE, dtype)


@every_case_of_statistics
def test_statistics_of_large_mean_and_tiny_variance(
    name: str, shape: Size, layout: str, activation: str, use: Use
) -> None:
    value = far_from_zero(shape, dtypes_of(name)[-1])
    precise = value.double()
    naive = value.float().square().mean((0, 2, 3)) - value.float().mean((0, 2, 3)).square()
    exact = precise.var((0, 2, 3), unbiased=False)
    assert ((naive - exact) / exact).abs().max() > 1e-3
    value = LAYOUTS[layout](value)
    impl = use(name)
    assert_moments(dispatch.backend(impl).moments(PreActivation(value, None, activation)), value)
    mean, var = torch.zeros(2, shape[1], device=DEVICE)
    gelu_batch_norm(
        *(value, None, None, mean, var),
        training=True,
        momentum=1.0,
        activation=activation,
        impl=impl,
    )
    torch.testing.assert_close(mean.double(), precise.mean((0, 2, 3)), atol=0, rtol=1e-6)
    torch.testing.assert_close(var.double(), precise.var((0, 2, 3)), atol=0, rtol=1e-4)


@every_case_of_statistics
def test_statistics_are_those_of_the_rounded_convolution(
    name: str, shape: Size, layout: str, activation: str, use: Use
) -> None:
    arguments = random_arguments(shape, 3, dtypes_of(name)[0])
    assert arguments.weight is not None
    bias = torch.full((shape[1],), 300.0, device=DEVICE)
    input = LAYOUTS[layout](arguments.input)
    steps = dispatch.backend(use(name))
    value, moments = steps.forward_moments(input, arguments.weight, bias, activation)
    assert_moments(moments, value)


@pytest.mark.parametrize("images", [[3], [2, 0], [0, 0, 2], [2, 0, 3, 1, 0, 0, 4]])
@all_but_pytorch
def test_moments_of_parts_are_merged(name: str, images: list[int], use: Use) -> None:
    """Parts without elements, as of a process without images, are merged too."""
    generator = torch.Generator().manual_seed(0)
    pieces = [
        1000 + torch.randn((n, 3, 5, 4), generator=generator, dtype=FP64) + index
        for index, n in enumerate(images)
    ]
    whole = torch.cat(pieces)
    exact_mean, exact_var = whole.mean((0, 2, 3)), whole.var((0, 2, 3))
    rstd = (whole.var((0, 2, 3), unbiased=False) + 1e-3).rsqrt()
    gamma, beta, mean, var = torch.randn((4, 3), generator=generator)
    running_mean = 0.75 * mean + 0.25 * exact_mean
    running_var = 0.75 * var + 0.25 * exact_var

    moments = torch.stack(
        [reference.moments(PreActivation(piece, None, "identity")) for piece in pieces]
    )
    tensors = [tensor.to(DEVICE) for tensor in (moments.float(), gamma, beta, mean, var)]
    norm = BatchNorm(*tensors[1:], True, 0.25, 1e-3)
    table = dispatch.backend(use(name)).batch_normalisation(tensors[0], norm).double().cpu()
    torch.testing.assert_close(table[0], exact_mean, atol=0, rtol=1e-6)
    torch.testing.assert_close(table[1], gamma * rstd, atol=0, rtol=1e-4)
    assert torch.equal(table[2], beta.double())
    torch.testing.assert_close(table[3], rstd, atol=0, rtol=1e-4)
    assert torch.equal(table[4], torch.full_like(rstd, len(whole) * 20))
    torch.testing.assert_close(tensors[3].double().cpu(), running_mean, atol=0, rtol=1e-6)
    torch.testing.assert_close(tensors[4].double().cpu(), running_var, atol=0, rtol=1e-4)


@pytest.mark.parametrize("shape", [(9, 2, 7, 10), (3, 2, 16, 16)])
@both_functions
@all_but_pytorch
def test_results_are_the_same_every_time(
    name: str, k: int | None, shape: tuple[int, int, int, int], use: Use
) -> None:
    if name == "triton" and DEVICE == "cpu":
        pytest.skip("the interpreter runs one program after another")
    arguments = random_arguments(shape, k, dtypes_of(name)[0])
    first = fused_cases.run(arguments, use(name))
    again = fused_cases.run(arguments, use(name))
    for result, tensor in first.items():
        assert torch.equal(again[result], tensor), result


# ---- large tensors -------------------------------------------------------------------------------


@pytest.mark.memory
@pytest.mark.parametrize("name", KERNELS)
def test_strides_beyond_32_bits(name: str) -> None:
    # Images 2^30 elements apart; only the pages that hold them are ever touched.
    torch.use_deterministic_algorithms(False)
    arguments = random_arguments((3, 2, 5, 6), None, FP16)
    expected = fused_cases.run(arguments, name)
    apart = torch.empty(2**31 + 256, dtype=FP16, device=DEVICE)
    input, grad = (
        apart.as_strided(near.shape, (2**30, 30, 6, 1), start).copy_(near)
        for near, start in ((arguments.input, 0), (arguments.grad, 128))
    )
    actual = fused_cases.run(replace(arguments, input=input, grad=grad), name)
    for result, tensor in expected.items():
        torch.testing.assert_close(actual[result], tensor)
