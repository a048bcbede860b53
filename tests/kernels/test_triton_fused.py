"""Batch normalisation and the fused operations of the Triton kernels, against float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convmixer_kernels.backends import triton as backend
from convmixer_kernels.operands import BatchNorm, Epilogue, FusedBackward, PreActivation
from tests.helpers import strided
from tests.helpers.depthwise_cases import DEVICE, FP16, FP32

ACTIVATIONS = ("gelu", "relu", "identity")
PIXELS = (0, 2, 3)
EPS = 1e-5

_REASON = backend.unavailable(torch.device(DEVICE))
needs_kernels = pytest.mark.skipif(_REASON is not None, reason=str(_REASON))
pytestmark = [pytest.mark.gpu, needs_kernels, pytest.mark.usefixtures("poisoned")]

# Sizes of one, primes, several tiles of a run, several runs and channels in a tile.
SHAPES = [
    (1, 2, 1, 3), (2, 3, 1, 1), (3, 5, 7, 9), (2, 8, 5, 6), (1, 24, 4, 4), (5, 2, 33, 40),
    (2, 70, 3, 3),
]  # fmt: skip


def across(channels: Tensor) -> Tensor:
    return channels.double()[:, None, None]


def activation_and_slope(x: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    if activation == "relu":
        return x.clamp_min(0), (x > 0).to(x.dtype)
    if activation == "identity":
        return x, torch.ones_like(x)
    cumulative = torch.special.ndtr(x)
    density = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return x * cumulative, cumulative + x * density


def table(moments: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """The normalisation by moments, in float64."""
    count, mean, squares = moments.double()
    rstd = (squares / count + EPS).rsqrt()
    return torch.stack([mean, gamma.double() * rstd, beta.double(), rstd, count])


@dataclass
class Batch:
    """Tensors of one operation, and what comes of them in float64 by the formulas."""

    value: Tensor
    bias: Tensor | None
    grad: Tensor
    residual: Tensor
    gamma: Tensor
    beta: Tensor
    activation: str

    @property
    def biased(self) -> Tensor:
        value = self.value.double()
        return value if self.bias is None else value + across(self.bias)

    @property
    def activated(self) -> Tensor:
        return activation_and_slope(self.biased, self.activation)[0]

    @property
    def moments(self) -> Tensor:
        activated = self.activated
        mean = activated.mean(PIXELS)
        squares = (activated - across(mean)).square().sum(PIXELS)
        count = activated.numel() / activated.shape[1]
        return torch.stack([torch.full_like(mean, count), mean, squares])

    @property
    def normalisation(self) -> Tensor:
        """The table in float32, in which the kernels are given it."""
        return table(self.moments, self.gamma, self.beta).float()

    def normalised(self, residual: bool) -> Tensor:
        mean, scale, shift, _, _ = self.normalisation
        output = (self.activated - across(mean)) * across(scale) + across(shift)
        return output + self.residual.double() if residual else output

    @property
    def sums(self) -> Tensor:
        grad = self.grad.double()
        deviation = self.activated - across(self.normalisation[0])
        return torch.stack([grad.sum(PIXELS), (grad * deviation).sum(PIXELS)])

    @property
    def grad_value(self) -> Tensor:
        mean, scale, _, rstd, count = self.normalisation.double()
        of_value = -scale * rstd.square() * self.sums[1] / count
        constant = -scale * self.sums[0] / count
        activated, slope = activation_and_slope(self.biased, self.activation)
        grad = across(scale) * self.grad.double()
        return slope * (grad + across(of_value) * (activated - across(mean)) + across(constant))


def random_batch(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    activation: str = "gelu",
    with_bias: bool = True,
    arrange: Callable[[Tensor], Tensor] = Tensor.contiguous,
) -> Batch:
    generator = torch.Generator().manual_seed(sum(shape))

    def tensor(scale: float = 1.0) -> Tensor:
        values = scale * torch.randn(shape, generator=generator)
        return arrange(values.to(DEVICE, dtype))

    def parameter() -> Tensor:
        return torch.randn(shape[1], generator=generator).to(DEVICE)

    return Batch(
        value=tensor(2.0),
        bias=parameter() if with_bias else None,
        grad=tensor(),
        residual=tensor(),
        gamma=parameter(),
        beta=parameter(),
        activation=activation,
    )


def assert_close(
    name: str, actual: Tensor, exact: Tensor, roundings: float = 2.0, largest: float = 0.0
) -> None:
    """Within so many roundings to its dtype of the largest value, and 2e-6 of it in float32.

    Values of up to `largest` may have cancelled.
    """
    assert actual.shape == exact.shape, name
    assert torch.isfinite(actual).all(), f"{name}: not all elements were written"
    largest = max(largest, exact.abs().max().item())
    unit = torch.finfo(actual.dtype).eps / 2
    allowed = max(roundings * unit, 2e-6) * max(largest, 1e-3)
    error = (actual.double() - exact).abs().max().item()
    assert error <= allowed, f"{name}: error {error:.3e}, allowed {allowed:.3e}"


def check(batch: Batch) -> None:
    """Every elementwise pass over a batch."""
    value = batch.value
    before = PreActivation(value, batch.bias, batch.activation)
    moments = backend.moments(before)
    exact = batch.moments
    assert torch.equal(moments[0].double(), exact[0])
    assert_close("mean", moments[1], exact[1])
    assert_close("squares", moments[2], exact[2], roundings=20)
    normalisation = batch.normalisation
    for residual in (True, False):
        output = backend.normalise(before, normalisation, batch.residual if residual else None)
        assert output.dtype == value.dtype
        assert_close("output", output, batch.normalised(residual))
    sums = backend.gradient_sums(before, batch.grad, normalisation)
    terms = value.numel() / value.shape[1]
    assert_close("sums", sums, batch.sums, roundings=20 + terms)
    for with_bias in (True, False):
        grad_value, grad_bias = backend.value_gradient(
            before, batch.grad, normalisation, batch.sums.float(), with_bias
        )
        assert grad_value.dtype == value.dtype
        terms_of_gradient = (across(normalisation[1]) * batch.grad.double()).abs().max().item()
        assert_close("gradient", grad_value, batch.grad_value, largest=terms_of_gradient)
        assert (grad_bias is not None) == with_bias
        if grad_bias is not None:
            error = (grad_bias.double() - batch.grad_value.sum(PIXELS)).abs().max()
            assert error <= 2e-6 * terms**0.5 * (1 + terms_of_gradient)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_normalisation_of_float16(shape: tuple[int, ...], activation: str) -> None:
    check(random_batch(shape, FP16, activation))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_batch_normalisation_of_float32(activation: str) -> None:
    check(random_batch((3, 5, 7, 9), FP32, activation))


def test_without_bias() -> None:
    check(random_batch((3, 5, 7, 9), FP16, with_bias=False))


LAYOUTS = (*strided.LAYOUTS, strided.images_apart)


@pytest.mark.parametrize("arrange", LAYOUTS)
def test_layouts(arrange: Callable[[Tensor], Tensor]) -> None:
    check(random_batch((3, 5, 7, 6), FP16, arrange=arrange))


@pytest.mark.parametrize("size", [(5, 7), (5, 1)], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 8, 72])
def test_channels_last(channels: int, size: tuple[int, int]) -> None:
    for arrange in (strided.channels_last, strided.images_apart):
        check(random_batch((2, channels, *size), FP16, arrange=arrange))


def test_layouts_may_differ() -> None:
    batch = random_batch((3, 5, 7, 6), FP16)
    batch.grad = strided.channels_last(batch.grad)
    batch.residual = strided.channels_outermost(batch.residual)
    check(batch)
    batch = random_batch((3, 5, 7, 6), FP16, arrange=strided.channels_last)
    batch.grad = batch.grad.contiguous()
    batch.residual = strided.expanded_everywhere(batch.residual)
    check(batch)
    batch = random_batch((3, 5, 7, 6), FP16)
    batch.grad = strided.expanded_everywhere(batch.grad)
    check(batch)


@pytest.mark.parametrize(
    "arrange", [Tensor.contiguous, strided.channels_last, strided.channels_outermost]
)
def test_outputs_keep_the_layout(arrange: Callable[[Tensor], Tensor]) -> None:
    batch = random_batch((2, 3, 4, 5), FP16, arrange=arrange)
    value, table = batch.value, batch.normalisation
    before = PreActivation(value, None, "gelu")
    output = backend.normalise(before, table, None)
    grad, _ = backend.value_gradient(before, batch.grad, table, table[:2], False)
    assert output.stride() == grad.stride() == value.stride()


@pytest.mark.parametrize("arrange", [Tensor.contiguous, strided.channels_last])
def test_nothing_is_written_beyond_the_output(
    arrange: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from convmixer_kernels import layout

    batch = random_batch((2, 3, 5, 7), FP16, arrange=arrange)
    buffers = []

    def guarded(tensor: Tensor) -> Tensor:
        buffer = torch.full((tensor.numel() + 4096,), 7.0, dtype=tensor.dtype, device=DEVICE)
        buffers.append(buffer)
        return buffer[2048:-2048].as_strided(tensor.shape, tensor.stride(), 2048)

    monkeypatch.setattr(layout, "empty_like_input", guarded)
    check(batch)
    assert len(buffers) == 4
    for buffer in buffers:
        assert (buffer[:2048] == 7).all() and (buffer[-2048:] == 7).all()


def test_results_are_the_same_to_the_bit() -> None:
    batch = random_batch((5, 2, 33, 40), FP16)
    first = backend.moments(PreActivation(batch.value, None, "gelu"))
    assert torch.equal(first, backend.moments(PreActivation(batch.value.clone(), None, "gelu")))


def test_empty_batch() -> None:
    batch = random_batch((2, 3, 4, 5), FP16)
    value, table = batch.value[:0], batch.normalisation
    zeros = torch.zeros((3, 3), device=DEVICE)
    before = PreActivation(value, None, "gelu")
    assert torch.equal(backend.moments(before), zeros)
    assert backend.normalise(before, table, value).shape == value.shape
    assert torch.equal(backend.gradient_sums(before, value, table), zeros[:2])
    grad, grad_bias = backend.value_gradient(before, value, table, zeros[:2], True)
    assert grad.shape == value.shape
    assert grad_bias is not None and torch.equal(grad_bias, zeros[0])


# Statistics.


@pytest.mark.parametrize("arrange", [Tensor.contiguous, strided.channels_last])
@pytest.mark.parametrize("offset", [0.0, 300.0, -1000.0])
def test_variance_far_from_zero(arrange: Callable[[Tensor], Tensor], offset: float) -> None:
    """E[x^2] - E[x]^2 has no digit left there."""
    generator = torch.Generator().manual_seed(1)
    value = offset + 0.01 * torch.randn((6, 3, 24, 24), generator=generator)
    value = arrange(value.to(DEVICE))
    exact = value.double()
    mean, squares = backend.moments(PreActivation(value, None, "identity"))[1:].double()
    assert (mean - exact.mean(PIXELS)).abs().max() <= 1e-7 * max(1, abs(offset))
    expected = (exact - across(exact.mean(PIXELS))).square().sum(PIXELS)
    assert ((squares - expected).abs() / expected).max() <= 1e-4


def test_variance_of_images_far_from_one_another() -> None:
    generator = torch.Generator().manual_seed(1)
    value = torch.randn((6, 2, 40, 40), generator=generator).to(DEVICE)
    value[0] *= 1e-3
    value[0] += 1000
    squares = backend.moments(PreActivation(value, None, "identity"))[2].double()
    exact = value.double()
    expected = (exact - across(exact.mean(PIXELS))).square().sum(PIXELS)
    assert ((squares - expected).abs() / expected).max() <= 1e-5


def test_a_constant_has_no_variance() -> None:
    value = torch.full((3, 2, 9, 40), 2.7, dtype=FP16, device=DEVICE)
    count, mean, squares = backend.moments(PreActivation(value, None, "identity"))
    assert (count == 3 * 9 * 40).all()
    assert (mean - value[0, 0, 0, 0].float()).abs().max() <= 1e-6
    assert squares.max() <= 1e-9


def random_moments(parts: int, channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(parts)
    counts = torch.randint(1, 1000, (parts, 1), generator=generator).float().expand(-1, channels)
    means = 100 + torch.randn((parts, channels), generator=generator)
    squares = counts * torch.rand((parts, channels), generator=generator)
    return torch.stack([counts, means, squares], dim=1).to(DEVICE)


def random_parameters(channels: int) -> tuple[Tensor, ...]:
    """gamma, beta, running mean and variance."""
    generator = torch.Generator().manual_seed(channels)
    gamma, beta, mean, var = torch.randn((4, channels), generator=generator).to(DEVICE)
    return gamma, beta, mean, var.square() + 0.5  # of one sign, so that nothing cancels


def merged(moments: Tensor) -> Tensor:
    counts, means, squares = moments.double().unbind(1)
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count
    return torch.stack([count, mean, (squares + counts * (means - mean).square()).sum(0)])


@pytest.mark.parametrize("parts", [1, 2, 5, 130])
@pytest.mark.parametrize("channels", [1, 7, 130])
def test_normalisation_by_moments(parts: int, channels: int) -> None:
    moments = random_moments(parts, channels)
    gamma, beta, mean, var = random_parameters(channels)
    running_mean, running_var = mean.clone(), var.clone()
    actual = backend.batch_normalisation(
        moments, BatchNorm(gamma, beta, running_mean, running_var, True, 0.3, EPS)
    )
    exact = merged(moments)
    for row, expected in zip(actual, table(exact, gamma, beta), strict=True):
        assert_close("row", row, expected)
    unbiased = exact[2] / (exact[0] - 1)
    assert_close("running mean", running_mean, 0.7 * mean.double() + 0.3 * exact[1])
    assert_close("running variance", running_var, 0.7 * var.double() + 0.3 * unbiased)


def test_normalisation_without_parameters_or_running_statistics() -> None:
    moments = random_moments(3, 5)
    ones, zeros = torch.ones(5, device=DEVICE), torch.zeros(5, device=DEVICE)
    actual = backend.batch_normalisation(moments, BatchNorm(None, None, None, None, True, 0.1, EPS))
    expected = backend.batch_normalisation(
        moments, BatchNorm(ones, zeros, None, None, True, 0.1, EPS)
    )
    assert torch.equal(actual, expected)


def test_parts_without_values_change_nothing() -> None:
    moments = random_moments(3, 5)
    empty = torch.zeros((1, 3, 5), device=DEVICE)
    mixed = torch.cat([empty, moments[:1], empty, moments[1:]])
    norm = BatchNorm(None, None, None, None, True, 0.1, EPS)
    expected = backend.batch_normalisation(moments, norm)
    actual = backend.batch_normalisation(mixed, norm)
    assert_close("normalisation", actual, expected.double())
    mean, var = random_parameters(5)[2:]
    kept = mean.clone(), var.clone()
    actual = backend.batch_normalisation(empty, BatchNorm(None, None, mean, var, True, 0.1, EPS))
    assert torch.isfinite(actual).all()
    assert torch.equal(mean, kept[0]) and torch.equal(var, kept[1])


def test_normalisation_by_running_statistics() -> None:
    gamma, beta, mean, var = random_parameters(130)
    actual = backend.running_normalisation(BatchNorm(gamma, beta, mean, var, False, 0.0, EPS))
    ones = torch.ones_like(mean)
    expected = table(torch.stack([ones, mean, var]), gamma, beta)
    for row in range(4):
        assert_close(f"row {row}", actual[row], expected[row])
    assert (actual[4] == math.inf).all()
    plain = backend.running_normalisation(BatchNorm(None, None, mean, var, False, 0.0, EPS))
    assert torch.equal(plain[1], plain[3]) and (plain[2] == 0).all()


def test_running_statistics_leave_the_gradient_alone() -> None:
    batch = random_batch((2, 3, 4, 5), FP32)
    table = backend.running_normalisation(
        BatchNorm(None, None, batch.beta, batch.gamma.square(), False, 0.0, EPS)
    )
    sums = batch.sums.float()
    grad, _ = backend.value_gradient(
        PreActivation(batch.value, batch.bias, "gelu"), batch.grad, table, sums, False
    )
    slope = activation_and_slope(batch.biased, "gelu")[1]
    assert_close("gradient", grad, slope * across(table[1]) * batch.grad.double())


# The activation.


def units_in_the_last_place(exact: Tensor) -> Tensor:
    """Return the unit in the last place of float16 at these values."""
    exponent = torch.floor(torch.log2(exact.abs().clamp_min(2.0**-14)))
    return torch.exp2(exponent - 10)


def test_gelu_of_every_float16() -> None:
    """Rounded to float16: half a unit in the last place from exact GELU, and a little."""
    value = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(FP16)
    value = value[torch.isfinite(value)].to(DEVICE)
    value = value[value.abs() < 1000].reshape(1, 1, 1, -1)
    identity = torch.tensor([0.0, 1, 0, 1, math.inf], device=DEVICE)[:, None]
    output = backend.normalise(PreActivation(value, None, "gelu"), identity, None)
    exact, slope = activation_and_slope(value.double(), "gelu")
    error = (output.double() - exact).abs() / units_in_the_last_place(exact)
    assert error.max() <= 0.52
    ones, zeros = torch.ones_like(value), torch.zeros((2, 1), device=DEVICE)
    grad, _ = backend.value_gradient(
        PreActivation(value, None, "gelu"), ones, identity, zeros, False
    )
    # Near its zero the slope is a difference of two numbers.
    assert ((grad.double() - slope).abs() <= 0.51 * units_in_the_last_place(slope) + 2e-6).all()


def test_gelu_of_float32() -> None:
    value = torch.linspace(-12, 12, 20001, device=DEVICE).reshape(1, 1, 1, -1)
    identity = torch.tensor([0.0, 1, 0, 1, math.inf], device=DEVICE)[:, None]
    output = backend.normalise(PreActivation(value, None, "gelu"), identity, None)
    exact = activation_and_slope(value.double(), "gelu")[0]
    pytorch = (F.gelu(value).double() - exact).abs().max()
    assert (output.double() - exact).abs().max() <= 2 * pytorch


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_that_are_not_finite(activation: str) -> None:
    value = torch.tensor([math.nan, math.inf, 1.0], dtype=FP16, device=DEVICE).reshape(1, 1, 1, 3)
    identity = torch.tensor([0.0, 1, 0, 1, math.inf], device=DEVICE)[:, None]
    output = backend.normalise(PreActivation(value, None, activation), identity, None).flatten()
    assert torch.isnan(output[0]) and output[1] == math.inf and torch.isfinite(output[2])


# With the convolution.


def convolve(input: Tensor, weight: Tensor) -> Tensor:
    size = weight.shape[-1]
    before, after = (size - 1) // 2, size // 2
    return F.conv2d(F.pad(input, (before, after, before, after)), weight, groups=len(weight))


@dataclass
class Block:
    input: Tensor
    weight: Tensor
    bias: Tensor
    batch: Batch

    @property
    def convolved(self) -> Tensor:
        return convolve(self.input.double(), self.weight.double()) + across(self.bias)


def random_block(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    activation: str,
    arrange: Callable[[Tensor], Tensor] = Tensor.contiguous,
) -> Block:
    *size, kernel_size = shape
    batch = random_batch(tuple(size), dtype, activation, with_bias=False, arrange=arrange)
    generator = torch.Generator().manual_seed(sum(shape))
    weight = torch.randn((size[1], 1, kernel_size, kernel_size), generator=generator) / kernel_size
    bias = torch.randn(size[1], generator=generator)
    input = arrange(torch.randn(size, generator=generator).to(DEVICE, dtype))
    return Block(input, weight.to(DEVICE, dtype), bias.to(DEVICE), batch)


def check_block(block: Block) -> None:
    batch, weight, activation = block.batch, block.weight, block.batch.activation
    kernel_size = weight.shape[-1]
    table = batch.normalisation
    activated = activation_and_slope(block.convolved, activation)[0]
    exact = (activated - across(table[0])) * across(table[1]) + across(table[2])
    for residual in (True, False):
        output = backend.forward_normalised(
            block.input, weight, block.bias, Epilogue(table, activation, residual)
        )
        expected = exact + block.input.double() if residual else exact
        assert output.dtype == block.input.dtype
        assert_close("inference", output, expected)

    value, moments = backend.forward_moments(block.input, weight, block.bias, activation)
    assert_close("value", value, block.convolved)
    batch_of_value = Batch(value, None, batch.grad, value, batch.gamma, batch.beta, activation)
    assert_close("moments", moments, batch_of_value.moments, roundings=20)

    grad_value = batch.grad_value
    input = block.input.double().requires_grad_()
    exact_weight = weight.double().requires_grad_()
    convolve(input, exact_weight).backward(grad_value)
    assert input.grad is not None and exact_weight.grad is not None
    terms = value.numel() / value.shape[1]
    for residual, with_bias, needs_input, needs_weight in (
        (True, True, True, True),
        (False, False, True, True),
        (True, False, True, False),
        (False, True, False, True),
    ):
        grad_input, grad_weight, grad_bias = backend.fused_backward(
            FusedBackward(
                block.input if needs_weight else None,
                weight if needs_input else None,
                batch.value,
                batch.grad,
                table,
                batch.sums.float(),
                activation,
                residual,
                kernel_size,
                with_bias,
            )
        )
        assert (grad_input is not None) == needs_input
        assert (grad_weight is not None) == needs_weight
        assert (grad_bias is not None) == with_bias
        # The gradient of the value is rounded once on the way: as many times as there are taps.
        scaled = across(table[1]) * batch.grad.double()
        unit = torch.finfo(value.dtype).eps / 2 * grad_value.abs().max() + 2e-6 * scaled.abs().max()
        if grad_input is not None:
            expected = input.grad + batch.grad.double() if residual else input.grad
            allowed = unit + torch.finfo(value.dtype).eps * expected.abs().max() + 2e-6
            assert (grad_input.double() - expected).abs().max() <= allowed
        if grad_weight is not None:
            assert grad_weight.dtype == torch.float32
            allowed = unit * terms**0.5 + 1e-5 * exact_weight.grad.abs().max()
            assert (grad_weight.double() - exact_weight.grad).abs().max() <= allowed
        if grad_bias is not None:
            error = (grad_bias.double() - grad_value.sum(PIXELS)).abs().max()
            assert error <= 2e-6 * terms**0.5 * (1 + scaled.abs().max())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "shape", [(1, 2, 1, 3, 9), (2, 3, 9, 7, 5), (1, 2, 10, 17, 8), (2, 2, 6, 5, 11)], ids=str
)
def test_block_of_float16(shape: tuple[int, ...], activation: str) -> None:
    check_block(random_block(shape, FP16, activation))


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_block_of_float32(activation: str) -> None:
    check_block(random_block((2, 2, 5, 9, 3), FP32, activation))


@pytest.mark.parametrize("arrange", LAYOUTS)
def test_layouts_of_a_block(arrange: Callable[[Tensor], Tensor]) -> None:
    check_block(random_block((2, 3, 5, 9, 7), FP16, "gelu", arrange))


@pytest.mark.parametrize("shape", [(2, 8, 9, 10, 9), (1, 24, 5, 7, 11)], ids=str)
def test_channels_last_block(shape: tuple[int, ...]) -> None:
    check_block(random_block(shape, FP16, "gelu", strided.channels_last))


def test_residual_of_another_layout() -> None:
    block = random_block((2, 8, 5, 9, 7), FP16, "gelu", strided.channels_last)
    block.batch.grad = block.batch.grad.contiguous()
    check_block(block)
    block = random_block((2, 8, 5, 9, 7), FP16, "gelu")
    block.batch.grad = strided.transposed_planes(block.batch.grad)
    check_block(block)
