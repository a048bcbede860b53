"""Every step of a backend with random operands, against float64 and bounds for each element.

A 16-bit result may be off by half a unit in its last place, and by a small part of the sum of the
absolute values that it is a sum of.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from convmixer_kernels import layout
from convmixer_kernels.backends.reference import batch_norm as reference
from convmixer_kernels.filters import Filter
from convmixer_kernels.operands import BatchNorm, Epilogue, FusedBackward, PreActivation
from tests.helpers import strided

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "channels_outermost": strided.channels_outermost,
    "slice_of_channels": strided.slice_of_channels,
    "off_by_one_element": strided.off_by_one_element,
    "channels_last": strided.channels_last,
    "slice_of_channels_last": strided.slice_of_channels_last,
    "units_of_wider_pixels": lambda tensor: strided.slice_of_pixels(tensor, 8, 16),
}
_PIXELS = (0, 2, 3)


@dataclass(frozen=True)
class Case:
    """A step with all that chooses its kernels: GPU, shape (N, C, H, W), layout and types."""

    operation: str
    shape: tuple[int, int, int, int]
    kernel_size: int
    dtype: torch.dtype
    layout: str = "contiguous"
    activation: str = "gelu"
    backend: str = "cuda"
    capability: tuple[int, int] = (8, 0)
    multiprocessors: int = 1
    offset: float = 0.0  # of the bias: values far from 0 against their deviation
    zeros: str = (
        ""  # "input" or "grad", which is 0: so is the result, but for what is read beside it
    )

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        gpu = f"{self.backend} sm_{self.capability[0]}{self.capability[1]}"
        sizes = f"{shape} k={self.kernel_size} {str(self.dtype)[6:]} {self.layout}"
        values = f" +{self.offset:g}" if self.offset else ""
        values += f" {self.zeros}=0" if self.zeros else ""
        return f"{gpu} {self.operation} {sizes} {self.activation} {self.multiprocessors} SM{values}"


class Bound(NamedTuple):
    """A result in float64, and the error that is allowed on top of half a unit."""

    exact: Tensor
    slack: Tensor | float


Results = Mapping[str, Tensor | None]


@dataclass
class Operands:
    """Random tensors of a case."""

    case: Case
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(sum(map(ord, str(self.case))))
        case = self.case
        channels, k = case.shape[1], case.kernel_size
        self.input, self.value, self.grad = (
            LAYOUTS[case.layout](self.normal(*case.shape).to(case.dtype)) for _ in range(3)
        )
        self.weight = (self.normal(channels, 1, k, k) / k).to(case.dtype)
        self.bias, self.gamma, self.beta = (self.normal(channels) for _ in range(3))
        self.bias += case.offset
        if case.zeros:
            getattr(self, case.zeros).zero_()
        self.running_mean, self.running_var = self.normal(channels), self.uniform(channels)
        mean, shift, rstd = (
            0.3 * self.normal(channels),
            self.normal(channels),
            self.uniform(channels),
        )
        count = torch.full_like(mean, self.input[:, 0].numel())
        self.table = torch.stack([mean, self.uniform(channels), shift, rstd, count])
        self.sums = self.normal(2, channels) * math.sqrt(count[0])

    def normal(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self.generator)

    def uniform(self, *size: int) -> Tensor:
        """Positive numbers."""
        return torch.rand(size, generator=self.generator) + 0.5


# The run of an operation, and what its results should be.
Step = tuple[Callable[[Any], Results], Callable[[Results], dict[str, Bound]]]


def largest_error(result: Tensor, bound: Bound) -> float:
    """Return the error in units of what is allowed; infinite where a result is not finite."""
    exact = bound.exact.double()
    if result.shape != exact.shape or not torch.isfinite(result).all():
        return math.inf
    allowed = _half_unit(exact, result.dtype) + bound.slack
    errors = (result.double() - exact).abs() / allowed
    return errors.max().item() if errors.numel() else 0.0


@functools.lru_cache(maxsize=16)
def prepare(case: Case) -> Step:
    """The step of a case, with its operands made."""
    return OPERATIONS[case.operation](Operands(case))


def _forward(o: Operands) -> Step:
    exact, size = _convolved(o.input, o.weight, o.bias)
    return (
        lambda backend: {"output": backend.forward(o.input, o.weight, o.bias)},
        lambda results: {"output": Bound(exact, size * 2**-20)},
    )


def _forward_without_bias(o: Operands) -> Step:
    exact, size = _convolved(o.input, o.weight, None)
    return (
        lambda backend: {"output": backend.forward(o.input, o.weight, None)},
        lambda results: {"output": Bound(exact, size * 2**-20)},
    )


def _input_gradient(o: Operands) -> Step:
    exact, size = _of_input(o.grad, o.weight), _of_input(o.grad.abs(), o.weight.abs())
    return (
        lambda backend: {"input gradient": backend.input_gradient(o.grad, o.weight)},
        lambda results: {"input gradient": Bound(exact, size * 2**-20)},
    )


def _weight_gradient(o: Operands) -> Step:
    k = o.case.kernel_size
    exact, size = _of_weight(o.input, o.grad, k), _of_weight(o.input.abs(), o.grad.abs(), k)
    grad = o.grad.double()
    bounds = {
        "weight gradient": Bound(exact, size * 2**-18),
        "bias gradient": Bound(grad.sum(_PIXELS), grad.abs().sum(_PIXELS) * 2**-18),
    }

    def run(backend: Any) -> Results:
        weight, bias = backend.weight_gradient(o.input, o.grad, Filter(k, k), True)
        return {"weight gradient": weight, "bias gradient": bias}

    return run, lambda results: bounds


def _forward_normalised(o: Operands) -> Step:
    name, table = o.case.activation, o.table.double()
    convolved, size = _convolved(o.input, o.weight, o.bias)
    activated = reference._activation(convolved, name)
    exact = reference._normalised(activated, table) + o.input.double()
    _, scale, shift, _, _ = map(_across, table)
    size = 1.2 * size * scale + o.input.double().abs() + shift.abs() + 1
    return (
        lambda backend: {
            "output": backend.forward_normalised(
                o.input, o.weight, o.bias, Epilogue(o.table, name, True)
            )
        },
        lambda results: {"output": Bound(exact, size * 2**-18)},
    )


def _forward_moments(o: Operands) -> Step:
    name = o.case.activation
    exact, size = _convolved(o.input, o.weight, o.bias)

    def run(backend: Any) -> Results:
        value, moments = backend.forward_moments(o.input, o.weight, o.bias, name)
        return {"output": value, **_named("moments", moments)}

    def bounds(results: Results) -> dict[str, Bound]:
        value = results["output"]
        assert value is not None
        return {"output": Bound(exact, size * 2**-20), **_moments(value, None, name)}

    return run, bounds


def _statistics(o: Operands) -> Step:
    """All passes of batch normalisation, of a value with a bias and of one without."""
    name, momentum, eps = o.case.activation, 0.1, 1e-5
    value = o.value.double()
    biased = value + _across(o.bias.double())

    def run(backend: Any) -> Results:
        mean, var = o.running_mean.clone(), o.running_var.clone()
        before = PreActivation(o.value, o.bias, name)
        moments = backend.moments(before)
        table = backend.batch_normalisation(
            moments[None], BatchNorm(o.gamma, o.beta, mean, var, True, momentum, eps)
        )
        # Three sets stand for three processes, each with moments of its own.
        sets = torch.stack([moments.roll(process, 1) for process in range(3)])
        means, variances = o.running_mean.clone(), o.running_var.clone()
        of_sets = backend.batch_normalisation(
            sets, BatchNorm(o.gamma, o.beta, means, variances, True, momentum, eps)
        )
        running = backend.running_normalisation(
            BatchNorm(o.gamma, o.beta, o.running_mean, o.running_var, False, 0.0, eps)
        )
        sums = backend.gradient_sums(before, o.grad, table)
        gradient, grad_bias = backend.value_gradient(before, o.grad, table, sums, True)
        assert running[4].isinf().all()
        return {
            **_named("moments", moments),
            "table": table,
            "table of several sets": of_sets,
            "running mean": mean,
            "running variance": var,
            "running table": running[:4],
            "normalised": backend.normalise(before, table, o.grad),
            "by running statistics": backend.normalise(
                PreActivation(o.value, None, name), running, None
            ),
            "sums": sums,
            "value gradient": gradient,
            "bias gradient": grad_bias,
        }

    def bounds(results: Results) -> dict[str, Bound]:
        # Each step is checked with what the steps before it gave.
        given = {key: result.double() for key, result in results.items() if result is not None}
        table, sums, count = given["table"], given["sums"], value[:, 0].numel()
        moments = torch.stack([given[f"moments {row}"] for row in range(3)])
        mean, var = o.running_mean.double(), o.running_var.double()
        affine = (o.gamma.double(), o.beta.double())
        exact = reference.batch_normalisation(
            moments[None], BatchNorm(*affine, mean, var, True, momentum, eps)
        )
        sets = torch.stack([moments.roll(process, 1) for process in range(3)])
        buffers = (o.running_mean.double(), o.running_var.double())
        of_sets = reference.batch_normalisation(
            sets, BatchNorm(*affine, *(each.clone() for each in buffers), True, momentum, eps)
        )
        running = reference.running_normalisation(BatchNorm(*affine, *buffers, False, 0.0, eps))
        grad = o.grad.double()
        activated = reference._activation(biased, name)
        deviation = activated - _across(table[0])
        of_sums = torch.stack([grad.sum(_PIXELS), (grad * deviation).sum(_PIXELS)])
        size_of_sums = torch.stack(
            [grad.abs().sum(_PIXELS), ((deviation.abs() + 0.1) * grad.abs()).sum(_PIXELS)]
        )
        gradient, size = _of_value(biased, grad, table, sums, count, name)
        return {
            **_moments(o.value, o.bias, name),
            "table": Bound(exact, 2**-20 * (exact.abs() + 1e-3)),
            # Means of size 1 may cancel.
            "table of several sets": Bound(of_sets, 2**-20 * (of_sets.abs() + 1)),
            "running mean": Bound(mean, 2**-20),
            "running variance": Bound(var, 2**-19 * (1 + moments[2] / count)),
            "running table": Bound(running[:4], 2**-20 * (running[:4].abs() + 1e-3)),
            "normalised": _normalised(activated, table, grad),
            "by running statistics": _normalised(
                reference._activation(value, name), given["running table"], None
            ),
            "sums": Bound(of_sums, size_of_sums * 2**-18),
            "value gradient": Bound(gradient, size * 2**-17),
            "bias gradient": Bound(gradient.sum(_PIXELS), size.sum(_PIXELS) * 2**-17),
        }

    return run, bounds


def _fused_backward(o: Operands, of_input: bool = True, of_weight: bool = True) -> Step:
    name, k, dtype = o.case.activation, o.case.kernel_size, o.case.dtype
    count = o.value[:, 0].numel()
    gradient, size = _of_value(
        o.value.double(), o.grad.double(), o.table.double(), o.sums.double(), count, name
    )
    # Kernels round the gradient of the value to 16 bit. Where it lies between two such numbers, an
    # approximation may fall either way.
    rounded = gradient.to(dtype).double()
    either = [(gradient + sign * size * 2**-17).to(dtype).double() for sign in (-1, 1)]
    apart = torch.maximum(*((each - rounded).abs() for each in either))
    residual = of_input and of_weight
    exact = _of_input(rounded, o.weight) + (o.grad.double() if residual else 0)

    def run(backend: Any) -> Results:
        gradients = backend.fused_backward(
            FusedBackward(
                o.input if of_weight else None,
                o.weight if of_input else None,
                *(o.value, o.grad, o.table, o.sums, name, residual, k, of_input),
            )
        )
        names = ("input gradient", "weight gradient", "bias gradient")
        return dict(zip(names, gradients, strict=True))

    bounds = {}
    if of_input:
        of_input_slack = _of_input(apart + rounded.abs() * 2**-20, o.weight.abs())
        bounds["input gradient"] = Bound(exact, of_input_slack + o.grad.double().abs() * 2**-20)
        bounds["bias gradient"] = Bound(gradient.sum(_PIXELS), size.sum(_PIXELS) * 2**-16)
    if of_weight:
        of_weight_slack = _of_weight(o.input.abs(), apart + rounded.abs() * 2**-18, k)
        bounds["weight gradient"] = Bound(_of_weight(o.input, rounded, k), of_weight_slack)
    return run, lambda results: bounds


def _arranged(o: Operands) -> Step:
    """Bring a gradient to the other layout."""
    channels_last = layout.is_planar(o.grad)
    return (
        lambda backend: {"gradient": backend.arranged(o.grad, channels_last)},
        lambda results: {"gradient": Bound(o.grad.double(), 0.0)},
    )


OPERATIONS: dict[str, Callable[[Operands], Step]] = {
    "forward": _forward,
    "forward_without_bias": _forward_without_bias,
    "input_gradient": _input_gradient,
    "weight_gradient": _weight_gradient,
    "forward_normalised": _forward_normalised,
    "forward_moments": _forward_moments,
    "statistics": _statistics,
    "fused_backward": _fused_backward,
    "fused_backward_of_input": lambda operands: _fused_backward(operands, of_weight=False),
    "fused_backward_of_weight": lambda operands: _fused_backward(operands, of_input=False),
    "arranged": _arranged,
}


def _across(per_channel: Tensor) -> Tensor:
    return per_channel[:, None, None]


def _padded(tensor: Tensor, before: int, after: int) -> Tensor:
    return F.pad(tensor.double(), (before, after, before, after))


def _convolved(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The convolution and the sums of the absolute values of its terms."""

    def convolve(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        k = weight.shape[-1]
        bias = None if bias is None else bias.double()
        padded = _padded(input, (k - 1) // 2, k // 2)
        return F.conv2d(padded, weight.double(), bias, groups=len(weight))

    sizes = convolve(input.abs(), weight.abs(), None if bias is None else bias.abs())
    return convolve(input, weight, bias), sizes


def _of_input(grad: Tensor, weight: Tensor) -> Tensor:
    k = weight.shape[-1]
    padded = _padded(grad, k // 2, (k - 1) // 2)
    return F.conv2d(padded, weight.double().flip(2, 3), groups=len(weight))


def _of_weight(input: Tensor, grad: Tensor, k: int) -> Tensor:
    """(C, 1, k, k), offset by offset: conv2d_weight takes images and channels one by one."""
    padded, grad = _padded(input, (k - 1) // 2, k // 2), grad.double()
    windows = padded.unfold(2, grad.shape[2], 1).unfold(3, grad.shape[3], 1)
    return torch.einsum("ncijhw,nchw->cij", windows, grad)[:, None]


def _of_value(
    biased: Tensor, grad: Tensor, table: Tensor, sums: Tensor, count: int, activation: str
) -> tuple[Tensor, Tensor]:
    """The gradient before the activation, and the sum of the absolute values of its terms."""
    mean, scale, _, rstd, _ = map(_across, table)
    deviation = reference._activation(biased, activation) - mean
    terms = (
        scale * grad,
        -scale * rstd**2 * _across(sums[1]) / count * deviation,
        -scale * _across(sums[0]) / count,
    )
    slope = reference._derivative(biased, activation)
    absolute = terms[0].abs() + terms[1].abs() + terms[2].abs()
    # GELU's slope is up to 1.13, and where it is small it comes from numbers of size 1.
    return slope * (terms[0] + terms[1] + terms[2]), 1.2 * absolute


def _normalised(activated: Tensor, table: Tensor, residual: Tensor | None) -> Bound:
    mean, scale, shift = map(_across, table[:3])
    exact = (activated - mean) * scale + shift
    if residual is not None:
        exact = exact + residual
    size = (activated.abs() + 2) * scale.abs() + 1 + shift.abs()
    return Bound(exact, size * 2**-18)


def _moments(value: Tensor, bias: Tensor | None, activation: str) -> dict[str, Bound]:
    bias = None if bias is None else bias.double()
    exact = reference.moments(PreActivation(value.double(), bias, activation))
    biased = value.double() if bias is None else value.double() + _across(bias)
    size = reference._activation(biased, activation).abs().mean(_PIXELS)
    slack = (0.0, 2**-18 * (1 + size), 2**-16 * (exact[2] + 1))
    return {f"moments {row}": Bound(exact[row], slack[row]) for row in range(3)}


def _named(name: str, rows: Tensor) -> dict[str, Tensor]:
    return {f"{name} {row}": content for row, content in enumerate(rows)}


def _half_unit(exact: Tensor, dtype: torch.dtype) -> Tensor:
    finfo = torch.finfo(dtype)
    magnitude = exact.abs().clamp_min(finfo.smallest_normal)
    return torch.exp2(magnitude.log2().floor()) * finfo.eps / 2
