"""The first half of a ConvMixer block, BN(GELU(depthwise(x))) + x: its runs, checks and times.

Filters have no bias, as in peers.py; normalisation is that of `nn.BatchNorm2d` in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.lib import measure
from benchmarks.lib.measurement import Measurement, WrongResult
from benchmarks.lib.peers import Peer
from benchmarks.lib.shapes import Case
from benchmarks.lib.ways import MEMORY_FORMATS
from convmixer_kernels import depthwise_conv2d_gelu_batch_norm


@dataclass(frozen=True)
class Inputs:
    """The tensors that the operation reads; it updates the running statistics in training."""

    input: Tensor
    weight: Tensor
    gamma: Tensor
    beta: Tensor
    running_mean: Tensor
    running_var: Tensor
    grad_output: Tensor

    def copied(self, layout: str) -> Inputs:
        """Fresh copies, images and filters in a layout."""
        return Inputs(
            **{
                name: tensor.clone(memory_format=MEMORY_FORMATS[layout])
                if tensor.dim() == 4
                else tensor.clone()
                for name, tensor in vars(self).items()
            }
        )

    def to(self, dtype: torch.dtype) -> Inputs:
        return Inputs(**{name: tensor.to(dtype) for name, tensor in vars(self).items()})


Forward = Callable[..., Tensor]
# Runs an operation; returns its results and the statistics that it updates, by name.
Run = Callable[[Inputs], dict[str, Tensor]]


def composition(
    input: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    training: bool,
) -> Tensor:
    """The block of PyTorch's operations."""
    border = weight.shape[-1] // 2
    value = F.gelu(F.conv2d(input, weight, padding=border, groups=input.shape[1]))
    return F.batch_norm(value, running_mean, running_var, gamma, beta, training) + input


def runner(peer: Peer, operation: str) -> Run:
    """Return what runs an operation of `shapes.BLOCK_OPERATIONS` by way of `peer`."""
    return _RUNS[operation](_forward(peer))


def _forward(peer: Peer) -> Forward:
    if peer.kernels is None:
        return peer.tuned(composition)

    def fused(input: Tensor, weight: Tensor, *norm: Tensor, training: bool) -> Tensor:
        impl = str(peer.kernels)
        return depthwise_conv2d_gelu_batch_norm(
            input, weight, None, *norm, residual=True, training=training, impl=impl
        )

    return fused


def _inference(forward: Forward) -> Run:
    def run(inputs: Inputs) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"output": forward(*_arguments(inputs), training=False)}

    return run


def _training_forward(forward: Forward) -> Run:
    """Run the forward pass and keep what the backward pass needs as long as the output lives."""

    def run(inputs: Inputs) -> dict[str, Tensor]:
        with torch.enable_grad():
            output = forward(*_leaves(inputs), *_statistics(inputs), training=True)
        return {"output": output, **_updated(inputs)}

    return run


def _training(forward: Forward) -> Run:
    """Run both passes in one call: autograd runs the backward pass on the forward pass's stream.

    A CUDA graph that captures the call has both; one that captured the backward pass of an earlier
    call would find it on another stream.
    """

    def run(inputs: Inputs) -> dict[str, Tensor]:
        leaves = _leaves(inputs)
        with torch.enable_grad():
            output = forward(*leaves, *_statistics(inputs), training=True)
        gradients = torch.autograd.grad(output, leaves, inputs.grad_output)
        named = zip(("input", "weight", "gamma", "beta"), gradients, strict=True)
        return {
            "output": output.detach(),
            **_updated(inputs),
            **{f"gradient of {name}": gradient for name, gradient in named},
        }

    return run


_RUNS: dict[str, Callable[[Forward], Run]] = {
    "inference": _inference,
    "training_forward": _training_forward,
    "training": _training,
}


def _arguments(inputs: Inputs) -> tuple[Tensor, ...]:
    return inputs.input, inputs.weight, inputs.gamma, inputs.beta, *_statistics(inputs)


def _statistics(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return inputs.running_mean, inputs.running_var


def _leaves(inputs: Inputs) -> list[Tensor]:
    """Return new leaves each time: autograd remembers the stream on which it first met a leaf."""
    tensors = (inputs.input, inputs.weight, inputs.gamma, inputs.beta)
    return [tensor.detach().requires_grad_() for tensor in tensors]


def _updated(inputs: Inputs) -> dict[str, Tensor]:
    return {"running mean": inputs.running_mean, "running variance": inputs.running_var}


def random_inputs(case: Case, device: torch.device) -> Inputs:
    """Contiguous, with values before the activation of about 1, as normalised inputs give."""
    dtype = getattr(torch, case.dtype)
    channels, size = case.channels, case.kernel_size
    filters = torch.randn(channels, 1, size, size, device=device) / size
    return Inputs(
        input=torch.randn(case.shape, device=device).to(dtype),
        weight=filters.to(dtype),
        gamma=0.5 + torch.rand(channels, device=device),
        beta=torch.randn(channels, device=device),
        running_mean=torch.randn(channels, device=device) / 4,
        running_var=0.5 + torch.rand(channels, device=device),
        grad_output=torch.randn(case.shape, device=device).to(dtype),
    )


def exact_results(inputs: Inputs) -> dict[str, dict[str, Tensor]]:
    """Compute the results in float64, by operation: training has those of its forward pass."""
    inference, training = (
        run(composition)(inputs.to(torch.float64)) for run in (_inference, _training)
    )
    return {"inference": inference, "training_forward": training, "training": training}


def error_of(
    run: Run, case: Case, inputs: Inputs, exact: dict[str, Tensor], units: float
) -> str | None:
    """Name a result of `run` that is no rounding of the exact one, and its error; None if all are.

    Runs twice, as the first call may tune itself, each time from the same running statistics. What
    is summed over images and positions is as precise as the values of `case.dtype` in the sum, so
    `units` are of that dtype even where the sum itself is in float32.
    """
    dtype: torch.dtype = getattr(torch, case.dtype)
    for _ in range(2):
        copied = inputs.copied(case.layout)
        measure.poison(inputs.input, dtype)
        for name, tensor in run(copied).items():
            is_image = tensor.shape == case.shape
            terms = case.kernel_size**2 if is_image else case.images * case.plane**2
            if error := measure.error_of(tensor.detach(), exact[name], terms, dtype, units):
                return f"{name}: {error}"
    return None


@lru_cache(maxsize=1)
def load(case: Case, device: torch.device) -> tuple[Inputs, dict[str, dict[str, Tensor]]]:
    """Contiguous inputs and the float64 results of every operation, whatever that of `case`."""
    inputs = random_inputs(case, device)
    return inputs, exact_results(inputs)


def measured(
    block: Case, peer: Peer, device: torch.device, budget: float = measure.BUDGET_SECONDS
) -> Measurement:
    """Do for a block what `convolutions.measured` does for a convolution."""
    with peer.ready(device):
        return _measured(block, peer, device, budget)


def _measured(block: Case, peer: Peer, device: torch.device, budget: float) -> Measurement:
    inputs, exact = load(replace(block, operation="training", layout="contiguous"), device)
    run = runner(peer, block.operation)
    error = error_of(run, block, inputs, exact[block.operation], peer.units)
    if error and peer.kernels is not None:
        raise WrongResult(f"{peer.name}: {error}")

    image_bytes = inputs.input.nbytes + inputs.grad_output.nbytes
    count = measure.buffer_sets(image_bytes, device, budget)
    calls = [partial(run, inputs.copied(block.layout)) for _ in range(count)]
    return Measurement(
        "block",
        {**block.subject, "peer": peer.name},
        measure.kernel_samples(calls, device, budget),
        block.work,
        peer.described(calls[0], device, error)
        | {
            "buffer_sets": count,
            "peak_memory_bytes": measure.peak_memory(calls[0], device),
        },
    )
