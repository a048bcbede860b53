"""When a call may go from a public function to a kernel without PyTorch's dispatcher.

The dispatcher costs a Python operator more than everything else in a call. It only calls the kernel
if nothing else wants to see the operator; who may want to is asked here, one by one. Then the
kernel is called directly, with the same arguments.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad, profiler
from torch.nn import Parameter


def dispatcher_is_idle() -> bool:
    """Tell whether no compiler, tracer, mode, transform, autocast or profiler sees operators."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._is_torch_function_mode_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch._C._is_any_autocast_enabled()
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
        or profiler._is_profiler_enabled
    )


def is_plain(argument: Any) -> bool:
    """Tell whether an argument is a tensor of PyTorch's own class with its values in memory.

    Subclasses have a say in what operators do to them, meta tensors have no values, and those with
    a negative bit are negated by the dispatcher before a kernel reads them.
    """
    kind = type(argument)
    return (kind is Tensor or kind is Parameter) and not (argument.is_neg() or argument.is_meta)


def takes(*arguments: Any) -> bool:
    """Tell whether the kernel of an operator may be called with these arguments directly."""
    if not dispatcher_is_idle():
        return False
    for argument in arguments:
        if isinstance(argument, Tensor) and not is_plain(argument):
            return False
    return True


def takes_tensors(required: tuple[Any, ...], optional: tuple[Any, ...]) -> bool:
    """Tell whether an operation on these may go to kernels directly: tensors, or None if optional."""
    if not dispatcher_is_idle():
        return False
    for argument in required:
        if not is_plain(argument):
            return False
    for argument in optional:
        if argument is not None and not is_plain(argument):
            return False
    return True
