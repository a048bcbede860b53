"""Small measurements behind choices of the planner: each choice timed with our own kernels."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from benchmarks.lib import facts, measure
from benchmarks.lib.measurement import NotMeasured
from benchmarks.lib.shapes import REFERENCE, Case, Shape
from benchmarks.lib.ways import MEMORY_FORMATS
from benchmarks.phases import building, source_variants
from benchmarks.phases.context import Visit, tool
from convmixer_kernels import dispatch
from convmixer_kernels.filters import Filter
from convmixer_kernels.operands import Epilogue, FusedBackward, PreActivation

_SECONDS = 20
_LIBRARIES = ("default", "cublas", "cublaslt")
# Channels of the two ConvMixers whose time is published.
_WIDTHS = (1536, 768)


def micro(visit: Visit) -> None:
    for kernel_size in dict.fromkeys(case.kernel_size for case in visit.selection.blocks):
        case = next(each for each in visit.selection.blocks if each.kernel_size == kernel_size)
        if not visit.wants(f"choices of {case}"):
            continue
        with visit.attempt(f"choices of {case}"):
            _operators(visit, case)
    with visit.attempt("pointwise products"):
        _pointwise_products(visit)
    variants = (f"micro, {variant.label}" for variant in source_variants.VARIANTS)
    for name in ("micro", "splits", *variants):
        with visit.attempt(name):
            _program(visit, name)


def _program(visit: Visit, name: str) -> None:
    visit.needs_gpu("a program of CUDA")
    path = building.program(name)
    if not path.exists():
        raise NotMeasured(f"{path.name} was not compiled")
    ran = tool([path], _SECONDS)
    for line in ran.stdout.splitlines():
        if line.startswith("{"):
            found = json.loads(line)
            visit.facts.add("micro", what=found.pop("name"), headers=name, **found)
    if ran.returncode:
        said = [line for line in ran.stdout.splitlines() if not line.startswith("{")]
        raise RuntimeError(facts.shortened("\n".join(said)))


def _operators(visit: Visit, case: Case) -> None:
    """The operators that a training step could choose between, in both layouts."""
    for layout, memory_format in MEMORY_FORMATS.items():
        sets = [
            _Tensors(case, visit.device, memory_format)
            for _ in range(measure.buffer_sets(case.work.bytes, visit.device, visit.budget))
        ]
        for name, run in _choices(visit.implementation, case.kernel_size).items():
            calls = [lambda each=each, run=run: run(each) for each in sets]
            with torch.no_grad():
                samples = measure.kernel_samples(calls, visit.device, visit.budget)
            visit.facts.add(
                "micro",
                what=name,
                shape=case.shape,
                kernel_size=case.kernel_size,
                dtype=case.dtype,
                layout=layout,
                microseconds=_microseconds(samples),
            )
        del sets


def _microseconds(samples: Sequence[float]) -> float:
    return round(1e6 * statistics.median(samples), 1)


def _pointwise_products(visit: Visit) -> None:
    """The matrix product of `convmixer.model.pointwise`, and others that give its result."""
    images, _, height, width = REFERENCE
    shapes = [(images, channels, height, width) for channels in _WIDTHS]
    if visit.dry_run:
        shapes = [visit.selection.blocks[0].shape]
    for shape, library in product(shapes, _LIBRARIES[: 1 if visit.dry_run else None]):
        with visit.attempt(f"pointwise product by {library}"), _preferred(library):
            _products_of(visit, shape, library)


@contextmanager
def _preferred(library: str) -> Iterator[None]:
    """Let PyTorch prefer a library for its matrix products."""
    if library == "default":
        yield
        return
    before = torch.backends.cuda.preferred_blas_library()
    torch.backends.cuda.preferred_blas_library(library)
    try:
        yield
    finally:
        torch.backends.cuda.preferred_blas_library(before)


def _products_of(visit: Visit, shape: Shape, library: str) -> None:
    channels, pixels = shape[1], math.prod(shape) // shape[1]
    dtype = getattr(torch, visit.selection.blocks[0].dtype)
    bytes_per_call = 2 * math.prod(shape) * dtype.itemsize
    count = measure.buffer_sets(bytes_per_call, visit.device, visit.budget)
    rows = [torch.randn(channels, pixels, device=visit.device).to(dtype) for _ in range(count)]
    lines = [each.view(pixels, channels) for each in rows]
    matrix = (torch.randn(channels, channels, device=visit.device) / channels**0.5).to(dtype)
    for way, run in products(matrix, torch.empty_like(rows[0])).items():
        calls = [partial(run, each) for each in (rows if "rows" in way else lines)]
        with torch.inference_mode():
            samples = measure.kernel_samples(calls, visit.device, visit.budget)
        microseconds = _microseconds(samples)
        visit.facts.add(
            "micro",
            what="pointwise product",
            shape=shape,
            dtype=str(dtype).removeprefix("torch."),
            way=way,
            library=library,
            microseconds=microseconds,
            teraflops=round(2 * pixels * channels**2 / microseconds / 1e6, 1),
        )


def products(matrix: Tensor, output: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Ways to multiply the channels of every pixel by `matrix`, by what they are.

    A row holds all pixels of a channel (CNHW), a line all channels of a pixel (channels_last).
    Results are as the input is, but for those with "to" in their name. `output` is like the rows.
    """
    columns, bias = matrix.t(), matrix.new_zeros(len(matrix))
    return {
        "matrix @ rows": lambda rows: matrix @ rows,
        "rows.t() @ matrix.t(), out=rows.t()": lambda rows: torch.mm(
            rows.t(), columns, out=output.t()
        ).t(),
        "rows.t() @ matrix.t() to lines": lambda rows: rows.t() @ columns,
        "lines @ matrix.t()": lambda lines: lines @ columns,
        "lines @ matrix.t() + bias": lambda lines: torch.addmm(bias, lines, columns),
        "matrix @ lines.t() to CNHW": lambda lines: matrix @ lines.t(),
    }


class _Tensors:
    """The tensors that the steps read, with values as normalised images have them."""

    def __init__(self, case: Case, device: torch.device, format: torch.memory_format) -> None:
        dtype = getattr(torch, case.dtype)

        def image() -> Tensor:
            return torch.randn(case.shape, device=device).to(dtype).to(memory_format=format)

        size, channels = case.kernel_size, case.channels
        self.input, self.value, self.grad = image(), image(), image()
        self.weight = (torch.randn(channels, 1, size, size, device=device) / size).to(dtype)
        self.normalisation = torch.rand(5, channels, device=device) + 0.5
        self.sums = torch.randn(2, channels, device=device)


def _choices(impl: str, kernel_size: int) -> dict[str, Callable[[_Tensors], Any]]:
    steps = dispatch.backend(impl)

    def fused(t: _Tensors) -> Any:
        given = (t.input, t.weight, t.value, t.grad, t.normalisation, t.sums)
        return steps.fused_backward(FusedBackward(*given, "gelu", True, kernel_size, True))

    def split(t: _Tensors) -> Any:
        grad_value, _ = steps.value_gradient(
            PreActivation(t.value, None, "gelu"), t.grad, t.normalisation, t.sums, True
        )
        if impl == "torch":  # its autograd calls the others
            return grad_value
        kernels = dispatch.kernel_backend(impl)
        return (
            kernels.input_gradient(grad_value, t.weight),
            kernels.weight_gradient(t.input, grad_value, Filter.of(t.weight), True),
        )

    def normalised(activation: str) -> Callable[[_Tensors], Any]:
        return lambda t: steps.forward_normalised(
            t.input, t.weight, None, Epilogue(t.normalisation, activation, True)
        )

    def moments(activation: str) -> Callable[[_Tensors], Any]:
        return lambda t: steps.forward_moments(t.input, t.weight, None, activation)

    return {
        "backward, fused": fused,
        "backward, split": split,
        **{f"inference, {word}": normalised(word) for word in ("gelu", "relu", "identity")},
        **{f"forward with moments, {word}": moments(word) for word in ("gelu", "relu")},
    }
