"""The declaration of an operator: schema, kernel, fake kernel and gradient in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from convmixer_kernels import derivatives, direct

_library = torch.library.Library("convmixer_kernels", "DEF")
# The layout of an output follows that of the input, so a compiler must not change it in between;
# and every operator has a fake kernel, so that it may trace them.
_TAGS = (torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag)


class _Kernel(NamedTuple):
    """The function that runs for an operator, and how many tensors its arguments begin with."""

    function: Callable[..., Any]
    tensors: int


_kernels: dict[Any, _Kernel] = {}


class Operator:
    """An operator with a gradient, called as a function of its arguments in their order."""

    def __init__(self, overload: Any, gradient: type[torch.autograd.Function]) -> None:
        self.overload = overload
        self.gradient = gradient

    def __call__(self, *arguments: Any) -> Any:
        # A tracer has to see the operator rather than what its gradient runs.
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return self.overload(*arguments)
        # Otherwise its gradient is applied from here: that saves a round through the dispatcher.
        return self.differentiable(*arguments)

    def differentiable(self, *arguments: Any) -> Any:
        """Return the results with gradients; a graph that was saved calls the operator here."""
        if derivatives.wanted(arguments):
            return self.gradient.apply(*arguments)
        return self.run(*arguments)

    def run(self, *arguments: Any) -> Any:
        """Return the results alone: no gradient is recorded."""
        kernel = _kernels[self.overload]
        if direct.takes((), arguments[: kernel.tensors]):
            return kernel.function(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return self.overload(*arguments)


def run(overload: Any, *arguments: Any) -> Any:
    """Run an operator that has no gradient, directly where that is the same."""
    kernel = _kernels[overload]
    if direct.takes((), arguments[: kernel.tensors]):
        return kernel.function(*arguments)
    return overload(*arguments)


def operator(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Declare an operator of this package that has no gradient, and return it.

    Args:
        schema: as `torch.library.Library.define` takes it; tensors are the first arguments.
        kernel: takes real tensors.
        fake: takes tensors without data, returns such of the shapes, dtypes and strides of results.
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=_TAGS)
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"convmixer_kernels::{name}", fake, lib=_library)
    # Looking it up costs over a microsecond a call.
    overload = getattr(torch.ops.convmixer_kernels, name).default
    types = [str(argument.type) for argument in overload._schema.arguments]
    _kernels[overload] = _Kernel(kernel, sum("Tensor" in each for each in types))
    return overload


def differentiable_operator(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    gradient: type[torch.autograd.Function],
) -> Operator:
    """Declare an operator with its gradient.

    Args:
        schema, kernel, fake: as in `operator`; no gradient is recorded in `kernel`.
        gradient: its forward pass calls `Operator.run` and keeps what its backward pass reads.
    """
    declared = Operator(operator(schema, kernel, fake), gradient)
    _library.impl(schema.partition("(")[0], declared.differentiable, "Autograd")
    return declared


def nothing(like: Tensor) -> Tensor:
    """Return the result that an operator was not asked for: a tensor without elements."""
    return like.new_empty(0)


def empty_sums(like: Tensor, *shape: int) -> Tensor:
    """Return an uninitialised tensor of the dtype in which operations on `like` take sums."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return like.new_empty(shape, dtype=dtype)
