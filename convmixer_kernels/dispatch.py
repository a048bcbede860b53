"""The choice of the implementation that serves an input, and the reasons for it."""

from __future__ import annotations

import functools
import importlib
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from convmixer_kernels import (
    architectures,
    arguments,
    devices,
    direct,
    layout,
    preference,
)
from convmixer_kernels.backends import Backend, KernelBackend
from convmixer_kernels.filters import Filter
from convmixer_kernels.preference import IMPLEMENTATIONS, Plane, Preference, Problem

_F = TypeVar("_F", bound=Callable[..., Any])


@functools.cache
def backend(name: str) -> Backend:
    """Return the module of an implementation, imported when it is first needed."""
    folder = "reference" if name == "torch" else name
    return cast(Backend, importlib.import_module(f"convmixer_kernels.backends.{folder}"))


# This is `backend`, typed for implementations that are not PyTorch. A function around it would cost
# time at every call.
kernel_backend = cast(Callable[[str], KernelBackend], backend)


def check_name(impl: str) -> None:
    if impl != "auto" and impl not in IMPLEMENTATIONS:
        accepted = ", ".join(repr(name) for name in ("auto", *IMPLEMENTATIONS))
        raise ValueError(f"impl: got {impl!r}, expected one of {accepted}")


def unsupported_filter(filter: Filter, impl: str) -> str | None:
    """Say why `impl` has no kernel for a filter; None if it has one or needs none."""
    if impl == "torch":
        return None
    names = ("triton", "cuda") if impl == "auto" else (impl,)
    reasons = [kernel_backend(name).unsupported_filter(filter) for name in names]
    return None if None in reasons else reasons[-1]


def available_impls(device: torch.device | str | None = None) -> dict[str, str | None]:
    """Return every implementation with None if it can run here, else the reason why it cannot.

    Args:
        device: where the tensors will live; by default the current CUDA device if there is one,
            otherwise the CPU.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return {name: backend(name).unavailable(torch.device(device)) for name in IMPLEMENTATIONS}


def resolve(
    input: Tensor,
    weight: Tensor | None,
    impl: str,
    fused: bool = False,
    dilation: tuple[int, int] = (1, 1),
) -> str:
    """Choose the implementation that runs `input` and `weight` under `impl`.

    Args:
        weight: None for an operation that has no filter.
        fused: whether activation and normalisation follow in the same call.

    Raises:
        RuntimeError: an explicit `impl` is not available for the device of `input`, or it is asked
            for a derivative or a transform that only PyTorch computes.
        ValueError: `impl` is no implementation, or it cannot take this dtype or filter.
    """
    filter = None
    if weight is not None:
        # Under torch.compile, index() makes a size that may be dynamic a constant.
        height, width = weight.shape[2:]
        filter = (operator.index(height), operator.index(width), *dilation)
    what = (input.device, input.dtype, filter, fused)
    name, refusal, available = _resolve(impl, *what)
    if name is refusal is None:
        # The plane is read only if it decides: a compiler makes a graph for each.
        name, refusal, available = _resolve(impl, *what, *_plane(input))
    if refusal is not None:
        raise (ValueError if available else RuntimeError)(refusal)
    assert name is not None
    if name != "torch" and (reason := _only_in_pytorch()) is not None:
        if impl == "auto":
            return "torch"
        if direct.in_transform():
            raise RuntimeError(f"impl={impl!r} cannot run here: {reason}; use impl='torch'")
    return name


def _constant_when_traced(function: _F) -> _F:
    """Have Dynamo call a function where it traces a call, and keep the result.

    `torch.compiler.assume_constant_result` sets the same mark, but imports Dynamo, for a second.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_constant_when_traced
def _only_in_pytorch() -> str | None:
    """Say why a call that is made now needs PyTorch's own operations, None if it does not."""
    if direct.in_transform():
        return (
            "a transform of torch.func (vmap, grad, jvp, ...) runs, which kernels know nothing of"
        )
    return "derivatives in forward mode may be asked for" if direct.in_forward_mode() else None


def _plane(input: Tensor) -> Plane:
    return Plane(
        "channels_last" if layout.is_channels_last(input) else "planar",
        operator.index(input.shape[2]),
        operator.index(input.shape[3]),
    )


def convolution_at_once(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    impl: str,
    fused: bool = False,
    dilation: tuple[int, int] = (1, 1),
) -> str | None:
    """Return what `resolve` does for a convolution, or None where there is more to be said.

    The arguments are checked, but what is wrong with them is not said; nor is a choice made that
    depends on the plane of the image. `direct.takes` has to hold.
    """
    shape, filters = input.shape, weight.shape
    if len(shape) != 4 or len(filters) != 4 or 0 in shape or 0 in filters:
        return None
    _, channels, _, _ = shape
    first, second, height, width = filters
    if first != channels or second != 1 or (fused and height != width):
        return None
    dtype, device = input.dtype, input.device
    if weight.dtype is not dtype or weight.device != device:
        return None
    if bias is not None and not fits_channels(bias, channels, device):
        return None
    return at_once(impl, device, dtype, (height, width, *dilation), fused)


def image_at_once(
    input: Tensor, bias: Tensor | None, residual: Tensor | None, impl: str
) -> str | None:
    """Return what `resolve` does without filters; None as in `convolution_at_once`."""
    shape, dtype, device = input.shape, input.dtype, input.device
    if len(shape) != 4 or 0 in shape:
        return None
    if bias is not None and not fits_channels(bias, shape[1], device):
        return None
    if residual is not None and (
        residual.shape != shape or residual.dtype is not dtype or residual.device != device
    ):
        return None
    return at_once(impl, device, dtype, None, fused=True)


def fits_channels(tensor: Tensor, channels: int, device: torch.device) -> bool:
    """Tell whether a tensor passes `arguments.check_per_channel`."""
    return tensor.shape == (channels,) and tensor.is_floating_point() and tensor.device == device


def at_once(
    impl: str,
    device: torch.device,
    dtype: torch.dtype,
    filter: tuple[int, int, int, int] | None,
    fused: bool,
) -> str | None:
    """Return the implementation with kernels that these alone decide for, None if there is none.

    `direct.dispatcher_is_idle` has to hold.
    """
    name = _resolve_once(impl, device, dtype, filter, fused, None).name
    return None if name == "torch" else name


# The answer does not change while a process runs, so a compiler need not look inside.
@_constant_when_traced
def _resolve(
    impl: str,
    device: torch.device,
    dtype: torch.dtype,
    filter: tuple[int, int, int, int] | None,
    fused: bool,
    *plane: Any,
) -> tuple[str | None, str | None, bool]:
    # PyTorch 2.13 loses what is in a named tuple when it traces, so none comes in or goes out.
    given = Plane(*plane) if plane else None
    name, refusal, available = _resolve_once(impl, device, dtype, filter, fused, given)
    return name, refusal, available


class Resolution(NamedTuple):
    """The choice of an implementation for a call.

    Args:
        name: the implementation; None if there is none, or if the plane decides and was not given.
        refusal: why the implementation that was asked for does not run.
        available: whether that implementation would run other inputs.
    """

    name: str | None
    refusal: str | None = None
    available: bool = True


@functools.lru_cache(maxsize=4096)
def _resolve_once(
    impl: str,
    device: torch.device,
    dtype: torch.dtype,
    sizes: tuple[int, int, int, int] | None,
    fused: bool,
    plane: Plane | None,
) -> Resolution:
    check_name(impl)
    filter = None if sizes is None else Filter(*sizes)
    what = (device, dtype, filter, fused)
    if impl == "auto":
        first = {
            next(name for name in preferred.order if _barred(name, *what) is None)
            for preferred in _preferences(device, _problem(filter, dtype, plane, fused))
        }
        return Resolution(first.pop() if len(first) == 1 else None)
    # Tensors on the meta device have no data: shapes are all that is computed.
    if device.type != "meta" and (reason := backend(impl).unavailable(device)):
        return Resolution(None, f"impl={impl!r} is not available: {reason}", available=False)
    if reason := backend(impl).unsupported(*what):
        return Resolution(None, f"impl={impl!r} cannot serve this input: {reason}")
    return Resolution(impl)


def _problem(
    filter: Filter | None, dtype: torch.dtype, plane: Plane | None, fused: bool = False
) -> Problem:
    if filter is None:
        return Problem(None, dtype, plane, fused)
    return Problem(filter.size, dtype, plane, fused, filter.taps)


def _architecture(device: torch.device) -> architectures.Architecture | None:
    """Return the architecture of `device`, None if no kernel of ours runs there under "auto"."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    capability = devices.capability(devices.index_of(device))
    return architectures.find(capability) if capability >= architectures.LEAST_CAPABILITY else None


def _preferences(device: torch.device, problem: Problem) -> tuple[Preference, ...]:
    architecture = _architecture(device)
    if architecture is None:
        return (Preference(IMPLEMENTATIONS),)
    return preference.possible(architecture, problem)


def _barred(
    name: str, device: torch.device, dtype: torch.dtype, filter: Filter | None, fused: bool = False
) -> str | None:
    """Say why "auto" cannot choose an implementation, wherever in its order that stands."""
    if name != "torch" and device.type == "cpu":
        return "on the CPU its kernels are emulated for tests, only an explicit impl asks for that"
    module = backend(name)
    return module.unavailable(device) or module.unsupported(device, dtype, filter, fused)


def explain(
    input: Tensor, weight: Tensor, impl: str = "auto", *, dilation: int | tuple[int, int] = 1
) -> str:
    """Say which implementation `depthwise_conv2d` would run, and why not the others.

    Args:
        input: (N, C, H, W), any dtype; under autocast it counts as cast.
        weight: (C, 1, h, w).
        impl, dilation: as in `depthwise_conv2d`.

    Returns:
        A line for the choice, then one for each implementation that was passed over: it cannot
        serve the input, has no tensor-core path for its dtype, or another was measured faster.

    Raises:
        ValueError: an argument has a wrong shape, dtype or device, or `impl` cannot serve it.
        RuntimeError: `impl` is not available here; the message says why and what helps.
    """
    input, weight = arguments.convolution_operands(input, weight, None)
    steps = arguments.check_dilation(dilation)
    chosen = resolve(input, weight, impl, dilation=steps)
    filter = Filter.of(weight, steps)
    shape = "x".join(str(size) for size in input.shape)
    dtype = str(input.dtype).removeprefix("torch.")
    line = f"{chosen}: runs {shape} {dtype} on {input.device}, kernel size {filter}"
    if impl != "auto":
        return f"{line} (asked for by name)"
    device = input.device
    (preferred,) = _preferences(device, _problem(filter, input.dtype, _plane(input)))
    before = preferred.order[: preferred.order.index(chosen)]
    usually_before = IMPLEMENTATIONS[: IMPLEMENTATIONS.index(chosen)]
    lines = [line]
    for name in IMPLEMENTATIONS:
        if name in before or name in usually_before:
            otherwise = _only_in_pytorch() if name in before else preferred.reason
            lines.append(f"not {name}: {_barred(name, device, input.dtype, filter) or otherwise}")
    return "\n".join(lines)
