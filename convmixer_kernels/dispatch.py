"""Which implementation serves an input, and why."""

from __future__ import annotations

import functools
import importlib
import operator
from types import ModuleType

import torch
from torch import Tensor

# In the order in which "auto" tries them.
_MODULES = {"cuda": "cuda", "triton": "triton", "torch": "reference"}
IMPLEMENTATIONS = tuple(_MODULES)


def backend(name: str) -> ModuleType:
    """The module of an implementation, imported when it is first needed."""
    return importlib.import_module(f"convmixer_kernels.backends.{_MODULES[name]}")


def check_name(impl: str) -> None:
    if impl != "auto" and impl not in IMPLEMENTATIONS:
        accepted = ", ".join(repr(name) for name in ("auto", *IMPLEMENTATIONS))
        raise ValueError(f"impl: got {impl!r}, expected one of {accepted}")


def available_impls(device: torch.device | str | None = None) -> dict[str, str | None]:
    """Every implementation with None if it can run here, otherwise the reason why it cannot.

    Args:
        device: where the tensors will live; by default the current CUDA device if there is one,
            otherwise the CPU.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return {name: backend(name).unavailable(torch.device(device)) for name in IMPLEMENTATIONS}


def resolve(input: Tensor, weight: Tensor | None, impl: str) -> str:
    """The implementation that runs `input` and `weight` under `impl`.

    Without `weight`: for an operation that has no filter.

    Raises:
        RuntimeError: an explicit `impl` is not available for the device of `input`.
        ValueError: `impl` is no implementation, or it cannot take this dtype or kernel size.
    """
    check_name(impl)
    # Under torch.compile, index() makes a size that may be dynamic a constant.
    kernel_size = None if weight is None else operator.index(weight.shape[-1])
    name, error = _resolve(impl, input.device, input.dtype, kernel_size)
    if error is not None:
        raise (ValueError if name else RuntimeError)(error)
    return name


# The answer does not change while a process runs, so a compiler need not look inside.
@torch.compiler.assume_constant_result
def _resolve(
    impl: str, device: torch.device, dtype: torch.dtype, kernel_size: int | None
) -> tuple[str, str | None]:
    return _resolve_once(impl, device, dtype, kernel_size)


@functools.cache
def _resolve_once(
    impl: str, device: torch.device, dtype: torch.dtype, kernel_size: int | None
) -> tuple[str, str | None]:
    """The implementation and None, or an error: with a name if only this input is refused."""
    if impl == "auto":
        what = (device, dtype, kernel_size)
        return next(name for name in IMPLEMENTATIONS if _passed_over(name, *what) is None), None
    if reason := backend(impl).unavailable(device):
        return "", f"impl={impl!r} is not available: {reason}"
    if reason := backend(impl).unsupported(device, dtype, kernel_size):
        return impl, f"impl={impl!r} cannot serve this input: {reason}"
    return impl, None


def _passed_over(
    name: str, device: torch.device, dtype: torch.dtype, kernel_size: int | None
) -> str | None:
    """Why "auto" does not choose an implementation."""
    if name != "torch" and device.type == "cpu":
        return "on the CPU its kernels are emulated for tests, only an explicit impl asks for that"
    if name != "torch" and dtype not in (torch.float16, torch.bfloat16):
        return f"it has no tensor-core path for {dtype}"
    module = backend(name)
    reason: str | None = module.unavailable(device) or module.unsupported(
        device, dtype, kernel_size
    )
    return reason


def explain(input: Tensor, weight: Tensor, impl: str = "auto") -> str:
    """Says which implementation `depthwise_conv2d` would run, and why not the others.

    Args:
        input: (N, C, H, W), any dtype; only its metadata is looked at.
        weight: (C, 1, k, k).
        impl: as in `depthwise_conv2d`.

    Returns:
        A line for the choice, then one for each implementation that was passed over.
    """
    chosen = resolve(input, weight, impl)
    kernel_size = weight.shape[-1]
    shape = "x".join(str(size) for size in input.shape)
    dtype = str(input.dtype).removeprefix("torch.")
    line = f"{chosen}: runs {shape} {dtype} on {input.device}, kernel size {kernel_size}"
    if impl != "auto":
        return f"{line} (asked for by name)"
    lines = [line]
    for name in IMPLEMENTATIONS[: IMPLEMENTATIONS.index(chosen)]:
        lines.append(f"not {name}: {_passed_over(name, input.device, input.dtype, kernel_size)}")
    return "\n".join(lines)
