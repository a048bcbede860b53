"""Depthwise convolutions and their gradients: float64 results, and the time of each peer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from benchmarks.lib import measure
from benchmarks.lib.measurement import Measurement, WrongResult
from benchmarks.lib.peers import Peer, pytorch_gradients
from benchmarks.lib.shapes import Case
from benchmarks.lib.ways import MEMORY_FORMATS


@dataclass
class Problem:
    """Random inputs of a case, contiguous, and the float64 result."""

    input: Tensor
    grad_output: Tensor
    weight: Tensor
    exact: Tensor

    def tensors(self, layout: str) -> tuple[Tensor, Tensor, Tensor]:
        """Fresh copies of the inputs in a layout."""
        memory_format = MEMORY_FORMATS[layout]
        input, grad_output, weight = (
            tensor.clone(memory_format=memory_format)
            for tensor in (self.input, self.grad_output, self.weight)
        )
        return input, grad_output, weight


@lru_cache(maxsize=1)
def load(case: Case, device: torch.device) -> Problem:
    """The problem of a case whose layout is left out of account."""
    input, grad_output, weight = _random_tensors(case, device)
    exact = _exact(case.operation, input.double(), grad_output.double(), weight.double())
    return Problem(input, grad_output, weight, exact)


def _random_tensors(case: Case, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Input, gradient of the output and filters, contiguous."""
    dtype = getattr(torch, case.dtype)
    filters = (case.channels, 1, case.kernel_size, case.kernel_size)
    input, grad_output, weight = (
        torch.randn(shape, device=device).to(dtype) for shape in (case.shape, case.shape, filters)
    )
    return input, grad_output, weight


def _exact(operation: str, input: Tensor, grad_output: Tensor, weight: Tensor) -> Tensor:
    if operation == "forward":
        border = weight.shape[-1] // 2
        return torch.conv2d(input, weight, padding=border, groups=input.shape[1])
    index = ("input_gradient", "weight_gradient").index(operation)
    return pytorch_gradients(input, grad_output, weight, (index == 0, index == 1))[index]


def run_once(case: Case, peer: Peer, device: torch.device) -> None:
    """Run a peer once, for what it compiles on the way."""
    tensors = _random_tensors(case, device)
    format = MEMORY_FORMATS[case.layout]
    with torch.no_grad(), peer.ready(device):
        peer.run(case.operation)(*(tensor.to(memory_format=format) for tensor in tensors))


def measured(
    case: Case, peer: Peer, device: torch.device, budget: float = measure.BUDGET_SECONDS
) -> Measurement:
    """Check the result of a peer against float64, then time it for about `budget` seconds.

    Raises:
        NotMeasured: the peer is not available on this device.
        WrongResult: a kernel of this project is wrong; a wrong peer is timed and marked.
    """
    with torch.no_grad(), peer.ready(device):
        return _measured(case, peer, device, budget)


def _measured(case: Case, peer: Peer, device: torch.device, budget: float) -> Measurement:
    problem = load(replace(case, layout="contiguous"), device)
    run = peer.run(case.operation)
    tensors = problem.tensors(case.layout)

    error = None
    # The first call of some peers tunes itself and may return the output of another kernel.
    for _ in range(2):
        measure.poison(problem.exact, tensors[0].dtype)
        actual = run(*tensors)
        error = error or measure.error_of(
            actual, problem.exact, case.terms, tensors[0].dtype, peer.units
        )
        del actual
    if error and peer.kernels is not None:
        raise WrongResult(f"{peer.name}: {error}")

    sets = [tensors]
    while len(sets) < measure.buffer_sets(case.work.bytes, device, budget):
        sets.append(problem.tensors(case.layout))
    calls = [lambda each=each: run(*each) for each in sets]
    return Measurement(
        "depthwise",
        {**case.subject, "peer": peer.name},
        measure.kernel_samples(calls, device, budget),
        case.work,
        peer.described(calls[0], device, error) | {"buffer_sets": len(sets)},
    )
