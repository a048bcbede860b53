"""A program that runs every operator of an implementation, for the sanitizers and for ncu.

python -m phases.operators IMPLEMENTATION few|small|large
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from convmixer_kernels import dispatch, layout
from convmixer_kernels.filters import Filter
from convmixer_kernels.operands import BatchNorm, Epilogue, FusedBackward, PreActivation

# Kernel size, height and width: planes that are whole, ragged, tiny and wide.
SMALL = ((9, 32, 32), (7, 14, 14), (15, 8, 8), (9, 9, 13), (5, 40, 72), (11, 16, 16))
LARGE = ((9, 32, 32),)
SHAPES = {
    "tiny": (2, 3, ((3, 5, 6),)),
    "few": (3, 24, SMALL[:2]),
    "small": (3, 24, SMALL),
    "large": (64, 1536, LARGE),
}


def run(implementation: str, size: str, device: torch.device) -> None:
    images, channels, planes = SHAPES[size]
    # PyTorch's own operators have these types on a CPU.
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    for format in (torch.contiguous_format, torch.channels_last):
        for kernel_size, height, width in planes:
            shape = (images, channels, height, width)
            # A tensor is made on the CPU: initcheck follows what every kernel of PyTorch writes.
            input = torch.randn(shape).to(dtype).to(memory_format=format).to(device)
            weight = torch.randn(channels, 1, kernel_size, kernel_size).to(dtype).to(device)
            every_operator(implementation, input, weight)
    if device.type == "cuda":
        torch.cuda.synchronize()


def every_operator(impl: str, input: Tensor, weight: Tensor) -> None:
    channels, kernel_size = input.shape[1], weight.shape[-1]
    normalisation = torch.ones(5, channels).to(input.device)
    sums = torch.ones(2, channels).to(input.device)
    gamma, beta, mean, var = torch.ones(4, channels).to(input.device).unbind()
    steps = dispatch.backend(impl)
    output = steps.forward(input, weight, beta)
    value, moments = steps.forward_moments(input, weight, None, "gelu")
    if impl != "torch":  # its autograd has these
        kernels = dispatch.kernel_backend(impl)
        kernels.input_gradient(output, weight)
        kernels.weight_gradient(input, output, Filter.of(weight), True)
    steps.arranged(output, layout.is_planar(output))  # in the other layout
    steps.forward_normalised(input, weight, None, Epilogue(normalisation, "gelu", True))
    steps.moments(PreActivation(value, None, "gelu"))
    steps.batch_normalisation(moments[None], BatchNorm(gamma, beta, mean, var, True, 0.1, 1e-5))
    steps.normalise(PreActivation(value, None, "gelu"), normalisation, input)
    steps.gradient_sums(PreActivation(value, None, "gelu"), output, normalisation)
    steps.value_gradient(PreActivation(value, None, "gelu"), output, normalisation, sums, True)
    given = (input, weight, value, output, normalisation, sums)
    steps.fused_backward(FusedBackward(*given, "gelu", True, kernel_size, True))


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], torch.device("cuda"))
