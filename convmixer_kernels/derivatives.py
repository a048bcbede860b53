"""The derivatives that kernels lack: PyTorch's own, and the refusal.

Kernels compute first derivatives, backward. Everything else (derivatives of gradients, forward-mode
derivatives, the transforms of `torch.func`) PyTorch computes where "auto" chose the implementation;
where the user named one, it is refused in a line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_REMEDY = "impl='torch'"


def refusal(call: str, remedy: str = _REMEDY) -> RuntimeError:
    """Make the error of a derivative that the kernels of `call` lack.

    Args:
        call: the function with the implementation that the user named.
        remedy: the arguments with which it is differentiable in every way.
    """
    return RuntimeError(
        f"{call} can be differentiated once; use {remedy} for higher derivatives, forward mode and "
        "the transforms of torch.func"
    )


def of_pytorch(
    function: Callable[..., Tensor],
    operands: Sequence[Tensor | None],
    needed: Sequence[bool],
    grad: Tensor,
) -> tuple[Tensor | None, ...]:
    """Compute gradients of ``function(*operands)`` that can be differentiated any number of times.

    Args:
        function: made of PyTorch's own operations.
        operands: its arguments; the result is connected with the graph that they belong to.
        needed: whether the gradient of each is wanted.
        grad: the gradient of its output.
    """
    with torch.enable_grad(), torch.autocast(grad.device.type, enabled=False):
        # An operand may depend on another one: the derivatives are partial, with respect to these.
        aliases = [None if operand is None else operand.view_as(operand) for operand in operands]
        pairs = zip(aliases, needed, strict=True)
        sources = [alias for alias, need in pairs if need and alias is not None]
        for alias in sources:
            if not alias.requires_grad:
                alias.requires_grad_()
        output = function(*aliases)
        grads = iter(torch.autograd.grad(output, sources, grad.to(output.dtype), create_graph=True))
    return tuple(next(grads) if need else None for need in needed)


def once(
    call: str,
    remedy: str,
    grads: Sequence[Tensor | None],
    sources: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Give the gradients that a kernel computed derivatives that raise `refusal`.

    Args:
        call, remedy: as in `refusal`.
        grads: the gradients, each a tensor of its own.
        sources: every tensor that they depend on and that may require grad.
    """
    return tuple(
        None if grad is None else _Once.apply(grad, call, remedy, *sources) for grad in grads
    )


class _Once(torch.autograd.Function):
    """A gradient that is passed on, and raises where somebody differentiates it again.

    `torch.autograd.function.once_differentiable` sees only whether the incoming gradient requires
    grad, and lets a derivative that runs through saved tensors pass as zero.
    """

    @staticmethod
    def forward(ctx: Any, grad: Tensor, call: str, remedy: str, *sources: Tensor | None) -> Tensor:
        ctx.call, ctx.remedy = call, remedy
        # A view of it could not be changed in place.
        ctx.mark_dirty(grad)
        return grad

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:
        raise refusal(ctx.call, ctx.remedy)
