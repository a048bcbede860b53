"""The declaration of an operator: schema, kernel, fake kernel and gradient in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from convmixer_kernels import direct

_library = torch.library.Library("convmixer_kernels", "DEF")
# The layout of an output follows that of the input, so a compiler must not change it in between;
# and every operator has a fake kernel, so that it may trace them.
_TAGS = (torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag)


class Operator:
    """An operator, called as a function of its arguments in their order."""

    def __init__(self, overload: Any, kernel: Callable[..., Any]) -> None:
        self.overload = overload
        self.kernel = kernel
        types = [str(argument.type) for argument in overload._schema.arguments]
        # Tensors are the first arguments.
        self._tensors = sum("Tensor" in each for each in types)

    def __call__(self, *arguments: Any) -> Any:
        return self.overload(*arguments)

    def run(self, *arguments: Any) -> Any:
        """Return the results without a gradient, from the kernel where that is the same."""
        if direct.takes((), arguments[: self._tensors]):
            return self.kernel(*arguments)
        return self._dispatched(*arguments)

    def _dispatched(self, *arguments: Any) -> Any:
        return self.overload(*arguments)


class DifferentiableOperator(Operator):
    """An operator with a gradient."""

    def __init__(
        self, overload: Any, kernel: Callable[..., Any], gradient: type[torch.autograd.Function]
    ) -> None:
        super().__init__(overload, kernel)
        self.gradient = gradient
        # `Function.apply` without its questions about torch.func, which `direct.takes` answers.
        self._apply = super(torch.autograd.Function, gradient).apply  # type: ignore[misc]
        self._defaults = tuple(each.default_value for each in overload._schema.arguments)

    def __call__(self, *arguments: Any) -> Any:
        # A tracer has to see the operator rather than what its gradient runs.
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return self.overload(*arguments)
        # Otherwise its gradient is applied from here: that saves a round through the dispatcher.
        return self.differentiable(*arguments)

    def differentiable(self, *arguments: Any) -> Any:
        """Return the results with gradients; a graph that was saved calls the operator here."""
        if not direct.records(arguments):
            return self.run(*arguments)
        # The dispatcher leaves out last arguments that are the defaults.
        settings = arguments[self._tensors :] + self._defaults[len(arguments) :]
        return self.gradient.apply(False, settings, *arguments[: self._tensors])

    def directly(self, tensors: tuple[Tensor | None, ...], settings: tuple[Any, ...]) -> Any:
        """Return the first result, with its gradient if that is wanted; `direct.takes` holds."""
        if direct.records(tensors):
            return self.recorded(tensors, settings)
        results = self.kernel(*tensors, *settings)
        return results[0] if isinstance(results, tuple) else results

    def recorded(self, tensors: tuple[Tensor | None, ...], settings: tuple[Any, ...]) -> Any:
        """Return the first result with its gradient; `direct.takes` and `direct.records` hold."""
        return self._apply(True, settings, *tensors)

    def results(self, is_direct: bool, *arguments: Any) -> Any:
        """Return the results without a gradient, in the forward pass of one."""
        return self.kernel(*arguments) if is_direct else self.run(*arguments)

    def _dispatched(self, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return self.overload(*arguments)


def operator(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Operator:
    """Declare an operator of this package that has no gradient, and return it.

    Args:
        schema: as `torch.library.Library.define` takes it; tensors are the first arguments.
        kernel: takes real tensors.
        fake: takes tensors without data, returns such of the shapes, dtypes and strides of results.
    """
    return Operator(_declare(schema, kernel, fake), kernel)


def differentiable_operator(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    gradient: type[torch.autograd.Function],
) -> DifferentiableOperator:
    """Declare an operator with its gradient.

    Args:
        schema, kernel, fake: as in `operator`; no gradient is recorded in `kernel`.
        gradient: its forward pass takes a flag, which says that `direct.takes` holds, a tuple of
            the arguments that are no tensors, and the tensors. It keeps what its backward pass
            reads, and returns `DifferentiableOperator.results`, with the flag the first alone.
    """
    declared = DifferentiableOperator(_declare(schema, kernel, fake), kernel, gradient)
    _library.impl(schema.partition("(")[0], declared.differentiable, "Autograd")
    return declared


def _declare(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    name = schema.partition("(")[0]
    _library.define(schema, tags=_TAGS)
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"convmixer_kernels::{name}", fake, lib=_library)
    # Looking it up costs over a microsecond a call.
    return getattr(torch.ops.convmixer_kernels, name).default


def nothing(like: Tensor) -> Tensor:
    """Return the result that an operator was not asked for: a tensor without elements."""
    return like.new_empty(0)


def empty_sums(like: Tensor, *shape: int) -> Tensor:
    """Return an uninitialised tensor of the dtype in which operations on `like` take sums."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return like.new_empty(shape, dtype=dtype)
