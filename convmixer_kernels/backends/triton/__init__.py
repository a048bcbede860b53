"""Triton kernels: no compiler needed to install them, and CPU tensors in Triton's interpreter.

Triton itself is imported with the first tensor, so that the package works where it is missing.
"""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor

from convmixer_kernels.backends.triton.problem import KERNEL_SIZES

_LEAST_CAPABILITY = (8, 0)
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_REMEDY_INTERPRETER = "set TRITON_INTERPRET=1 before Triton is first imported"


def unavailable(device: torch.device) -> str | None:
    """Why these kernels cannot run for tensors on `device`, or None if they can."""
    if device.type not in ("cuda", "cpu"):
        return f"it takes CUDA tensors, not tensors on {device}"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed; pip install triton (Linux only)"
    interpreted = _interpreted()
    if isinstance(interpreted, str):
        return interpreted
    if device.type == "cpu":
        if interpreted:
            return None
        return f"it takes CUDA tensors; {_REMEDY_INTERPRETER} to run its kernels on CPU tensors"
    if interpreted:
        return "TRITON_INTERPRET=1 is set, which runs Triton on the CPU; unset it to use the GPU"
    if not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    if torch.version.hip is not None:
        return "it is written for NVIDIA GPUs, and this is PyTorch for AMD GPUs"
    capability = _capability(device)
    if capability < _LEAST_CAPABILITY:
        major, minor = capability
        return f"it needs compute capability 8.0 or newer; {device} has {major}.{minor}"
    return None


def unsupported(device: torch.device, dtype: torch.dtype, kernel_size: int | None) -> str | None:
    """Why these kernels cannot take this dtype or kernel size, or None if they can."""
    if dtype not in _DTYPES:
        return f"it takes float16, bfloat16 and float32, not {dtype}; cast or use impl='torch'"
    if kernel_size is not None and kernel_size not in KERNEL_SIZES:
        sizes = ", ".join(map(str, KERNEL_SIZES))
        return f"it takes kernel sizes {sizes}, not {kernel_size}; use impl='torch'"
    if dtype == torch.bfloat16 and _interpreted():
        return "Triton's interpreter computes wrong values in bfloat16; use float16 or float32"
    return None


def forward(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    from convmixer_kernels.backends.triton import depthwise_forward

    return depthwise_forward.forward(input, weight, bias)


def input_gradient(grad_output: Tensor, weight: Tensor) -> Tensor:
    from convmixer_kernels.backends.triton import depthwise_forward

    return depthwise_forward.input_gradient(grad_output, weight)


def weight_gradient(
    input: Tensor, grad_output: Tensor, kernel_size: int, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    from convmixer_kernels.backends.triton import depthwise_weight_gradient

    return depthwise_weight_gradient.weight_gradient(input, grad_output, kernel_size, with_bias)


def forward_normalised(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    normalisation: Tensor,
    activation: str,
    residual: bool,
) -> Tensor:
    from convmixer_kernels.backends.triton import depthwise_forward

    return depthwise_forward.forward_normalised(
        input, weight, bias, normalisation, activation, residual
    )


def forward_moments(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    from convmixer_kernels.backends.triton import fused

    return fused.forward_moments(input, weight, bias, activation)


def moments(value: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    from convmixer_kernels.backends.triton import statistics

    return statistics.moments(value, bias, activation)


def batch_normalisation(
    moments: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    from convmixer_kernels.backends.triton import statistics

    return statistics.batch_normalisation(
        moments, gamma, beta, running_mean, running_var, momentum, eps
    )


def running_normalisation(
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
) -> Tensor:
    from convmixer_kernels.backends.triton import statistics

    return statistics.running_normalisation(running_mean, running_var, gamma, beta, eps)


def normalise(
    value: Tensor,
    bias: Tensor | None,
    normalisation: Tensor,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    from convmixer_kernels.backends.triton import batch_norm

    return batch_norm.normalise(value, bias, normalisation, residual, activation)


def gradient_sums(
    value: Tensor, bias: Tensor | None, grad: Tensor, normalisation: Tensor, activation: str
) -> Tensor:
    from convmixer_kernels.backends.triton import batch_norm

    return batch_norm.gradient_sums(value, bias, grad, normalisation, activation)


def value_gradient(
    value: Tensor,
    bias: Tensor | None,
    grad: Tensor,
    normalisation: Tensor,
    sums: Tensor,
    activation: str,
    with_bias: bool,
) -> tuple[Tensor, Tensor | None]:
    from convmixer_kernels.backends.triton import batch_norm

    return batch_norm.value_gradient(value, bias, grad, normalisation, sums, activation, with_bias)


def fused_backward(
    input: Tensor | None,
    value: Tensor,
    grad: Tensor,
    weight: Tensor | None,
    normalisation: Tensor,
    sums: Tensor,
    activation: str,
    residual: bool,
    kernel_size: int,
    with_bias: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    from convmixer_kernels.backends.triton import fused

    return fused.fused_backward(
        input,
        value,
        grad,
        weight,
        normalisation,
        sums,
        activation,
        residual,
        kernel_size,
        with_bias,
    )


@functools.cache
def _interpreted() -> bool | str:
    """Whether the kernels run in Triton's interpreter, or why they cannot run at all.

    Triton decides it function by function, when it is imported for its own and when our modules are
    for ours; the environment may have changed since, so the functions themselves are asked.
    """
    try:
        import triton.language as tl
        from triton.runtime.jit import JITFunction

        from convmixer_kernels.backends.triton import depthwise_forward
    except ImportError as error:
        return f"the package triton does not load ({error}); reinstall it"
    ours = not isinstance(depthwise_forward.tensor_core_kernel, JITFunction)
    tritons = not isinstance(tl.zeros, JITFunction)
    if ours != tritons:
        return f"TRITON_INTERPRET has changed since Triton was imported; {_REMEDY_INTERPRETER}"
    return ours


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
