"""The Triton implementation: kernels without nvcc, for CPU tensors in Triton's interpreter.

Triton itself is imported with the first tensor, so that the package works without it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

import torch

from convmixer_kernels import devices
from convmixer_kernels.backends.triton.shape_key import DTYPES, KERNEL_SIZES, MOST_EXTENT
from convmixer_kernels.filters import Filter

_REMEDY_INTERPRETER = "set TRITON_INTERPRET=1 before Triton is first imported"
# The operations of a backend, and the module of each.
_OPERATIONS = {
    "arranged": "planes",
    "forward": "depthwise_forward",
    "input_gradient": "depthwise_forward",
    "weight_gradient": "depthwise_weight_gradient",
    "gradients": "depthwise_gradients",
    "forward_normalised": "depthwise_forward",
    "forward_moments": "fused",
    "moments": "statistics",
    "batch_normalisation": "statistics",
    "running_normalisation": "statistics",
    "normalise": "batch_norm",
    "gradient_sums": "batch_norm",
    "affine_gradients": "batch_norm",
    "value_gradient": "batch_norm",
    "fused_backward": "fused",
}


def __getattr__(name: str) -> Any:
    """Import an operation when it is first asked for."""
    if name not in _OPERATIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    operation = getattr(importlib.import_module(f"{__name__}.{_OPERATIONS[name]}"), name)
    globals()[name] = operation
    return operation


def unavailable(device: torch.device) -> str | None:
    """Say why these kernels cannot run for tensors on `device`, None if they can."""
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
    return devices.too_old(device) or _launcher_problem()


def unsupported(
    device: torch.device, dtype: torch.dtype, filter: Filter | None, fused: bool
) -> str | None:
    """Say why these kernels cannot take this dtype or filter, None if they can."""
    if dtype not in DTYPES:
        return f"it takes float16, bfloat16 and float32, not {dtype}; cast or use impl='torch'"
    if filter is not None and (reason := unsupported_filter(filter, fused)):
        return f"{reason}; use impl='torch'"
    if dtype == torch.bfloat16 and _interpreted():
        return "Triton's interpreter computes wrong values in bfloat16; use float16 or float32"
    return None


def unsupported_filter(filter: Filter, fused: bool = False) -> str | None:
    """Say why there is no kernel for a filter, None if there is."""
    return filter.unserved(fused, KERNEL_SIZES, MOST_EXTENT)


@functools.cache
def _interpreted() -> bool | str:
    """Tell whether the kernels run in Triton's interpreter, or say why they cannot run at all.

    Triton reads TRITON_INTERPRET when it is imported, for its own functions, and again when a
    module of ours is, for ours. The variable may have changed since, so the functions are asked.
    """
    try:
        import triton.language as tl
        from triton.runtime.jit import JITFunction

        from convmixer_kernels.backends.triton.kernels import activations
    except ImportError as error:
        return f"the package triton does not load ({error}); reinstall it"
    ours = not isinstance(activations.activate, JITFunction)
    tritons = not isinstance(tl.zeros, JITFunction)
    if ours != tritons:
        return f"TRITON_INTERPRET has changed since Triton was imported; {_REMEDY_INTERPRETER}"
    return ours


@functools.cache
def _launcher_problem() -> str | None:
    """Say why Triton cannot launch anything, None if it can.

    Triton compiles its launchers as C, once for all processes.
    """
    from triton.runtime import driver

    try:
        driver.active.get_current_target()
    except Exception as error:
        line = str(error).strip().partition("\n")[0]
        return (
            f"Triton cannot build its launcher ({line}); install gcc and the headers of Python, "
            "or set CC"
        )
    return None
