"""The questions that a call asks PyTorch: who sees its operator, and which derivatives are wanted.

The dispatcher costs a Python operator more than everything else in a call. It only calls the kernel
if nothing else wants to see the operator; who may want to is asked here, one by one. Then the
kernel is called directly, with the same arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad, profiler
from torch.nn import Parameter


def _key_set(*keys: torch._C.DispatchKey) -> int:
    found = torch._C.DispatchKeySet(keys[0])
    for key in keys[1:]:
        found = found.add(key)
    return found.raw_repr()


# PyTorch adds these keys to those of every call where nothing is active, in inference mode and
# without. Modes, transforms of torch.func, tracers and both kinds of vmap add keys of their own.
_IDLE = (
    _key_set(torch._C.DispatchKey.BackendSelect),
    _key_set(torch._C.DispatchKey.BackendSelect, torch._C.DispatchKey.ADInplaceOrView),
)

# Each attribute that is looked up at a call takes as long as some of these questions.
_is_compiling = torch.compiler.is_dynamo_compiling
_included_keys = torch._C._dispatch_tls_local_include_set
_is_in_function_mode = torch._C._is_torch_function_mode_enabled
_is_in_autocast = torch._C._is_any_autocast_enabled
_is_wrapper = torch._C._functorch.is_functorch_wrapped_tensor
_KINDS = (Tensor, Parameter)


def dispatcher_is_idle() -> bool:
    """Tell whether no compiler, tracer, mode, transform, autocast or profiler sees operators."""
    return not (operators_are_changed() or _is_in_autocast() or profiler._is_profiler_enabled)


def operators_are_changed() -> bool:
    """Tell whether a compiler, tracer, mode or transform records operators or changes them."""
    return (
        _is_compiling()
        or _included_keys().raw_repr() not in _IDLE
        or _is_in_function_mode()
        or forward_ad._current_level >= 0
    )


def is_plain(argument: Any) -> bool:
    """Tell whether an argument is a tensor of PyTorch's own class with its values in memory.

    Subclasses have a say in what operators do to them, meta tensors have no values, the dispatcher
    negates those with a negative bit before a kernel reads them, and those that have left a
    transform of `torch.func` are wrappers around their values.
    """
    return type(argument) in _KINDS and not (
        argument.is_neg() or argument.is_meta or _is_wrapper(argument)
    )


def takes(required: tuple[Any, ...], optional: tuple[Any, ...] = ()) -> bool:
    """Tell whether kernels may be called directly with these, of which some may be None."""
    if not dispatcher_is_idle():
        return False
    for each in required:
        if not is_plain(each):
            return False
    return all([each is None or is_plain(each) for each in optional])


def takes_gradient(grad: Tensor) -> bool:
    """Tell whether a backward pass may call kernels directly with the gradient that comes in.

    Saved tensors are as plain as they were in the forward pass.
    """
    return dispatcher_is_idle() and not torch.is_grad_enabled() and is_plain(grad)


# ---- derivatives ---------------------------------------------------------------------------------


def records(arguments: Sequence[Any]) -> bool:
    """Tell whether a call with these arguments has to be recorded for a derivative."""
    if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
        return True
    return in_forward_mode()


def in_forward_mode() -> bool:
    """Tell whether tensors may carry tangents: within `torch.autograd.forward_ad.dual_level`."""
    return forward_ad._current_level >= 0


def in_transform() -> bool:
    """Tell whether a transform of `torch.func` (vmap, grad, jvp, ...) runs the caller."""
    return torch._C._are_functorch_transforms_active()


def beyond_backward() -> bool:
    """Tell whether the running backward pass has to be differentiable or transformed itself."""
    return torch.is_grad_enabled() or in_transform() or in_forward_mode()
