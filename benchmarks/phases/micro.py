"""Small measurements behind choices of the planner: each choice timed with our own kernels."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import facts
import measure
import source_variants
from convmixer_kernels import dispatch
from measurement import NotMeasured
from phases import building
from phases.context import Visit, tool
from shapes import Case
from ways import MEMORY_FORMATS

_SECONDS = 20


def micro(visit: Visit) -> None:
    for kernel_size in dict.fromkeys(case.kernel_size for case in visit.selection.blocks):
        case = next(each for each in visit.selection.blocks if each.kernel_size == kernel_size)
        with visit.attempt(f"choices of {case}"):
            _operators(visit, case)
    for name in ("micro", *(f"micro, {variant.label}" for variant in source_variants.VARIANTS)):
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
        raise RuntimeError(facts.shortened(ran.stdout))


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
                microseconds=round(1e6 * sorted(samples)[len(samples) // 2], 1),
            )
        del sets


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
        return steps.fused_backward(
            *(t.input, t.value, t.grad, t.weight, t.normalisation, t.sums),
            *("gelu", True, kernel_size, True),
        )

    def split(t: _Tensors) -> Any:
        grad_value, _ = steps.value_gradient(
            t.value, None, t.grad, t.normalisation, t.sums, "gelu", True
        )
        if impl == "torch":  # whose autograd has the rest
            return grad_value
        kernels = dispatch.kernel_backend(impl)
        return (
            kernels.input_gradient(grad_value, t.weight),
            kernels.weight_gradient(t.input, grad_value, kernel_size, True),
        )

    def normalised(activation: str) -> Callable[[_Tensors], Any]:
        return lambda t: steps.forward_normalised(
            t.input, t.weight, None, t.normalisation, activation, True
        )

    def moments(activation: str) -> Callable[[_Tensors], Any]:
        return lambda t: steps.forward_moments(t.input, t.weight, None, activation)

    return {
        "backward, fused": fused,
        "backward, split": split,
        **{f"inference, {word}": normalised(word) for word in ("gelu", "relu", "identity")},
        **{f"forward with moments, {word}": moments(word) for word in ("gelu", "relu")},
    }
