"""Merging of the parallel depthwise branches of any model, and the way back."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.fx
from torch import nn

from convmixer_kernels import dispatch
from convmixer_kernels.branches import (
    Convolution,
    Dataflow,
    Layer,
    MergedBranches,
    Path,
    Sum,
    Term,
    find_all,
    is_norm,
    list_operations,
    merged_filter,
    read,
)
from convmixer_kernels.convert import check_module, report
from convmixer_kernels.mixed_classes import mixed_class

_IN_PLACE = (operator.iadd, "add_")
_ADDITIONS = (operator.add, torch.add, "add", *_IN_PLACE)


@dataclass(frozen=True)
class Merge:
    """The outcome of `merge_branches`, by name of the block, as `module.named_modules()` has it.

    Attributes:
        merged: the blocks that run as one convolution wherever that is exact.
        left: all other blocks that add up convolutions of their input, each with the reason in a
            line.
    """

    merged: tuple[str, ...]
    left: dict[str, str]

    def __str__(self) -> str:
        """Give a line on what was merged, and one for each reason why others were not."""
        return report("merged", self.merged, self.left)


def merge_branches(module: nn.Module, impl: str = "auto") -> Merge:
    """Run parallel depthwise branches inside `module` as one convolution wherever that is exact.

    A block is merged that adds up depthwise convolutions of its input, each normalised or not, and
    perhaps the input itself: those of RepLKNet, UniRepLKNet and SLaK, and of RepViT, MobileOne and
    FastViT in timm. What a block does is found by tracing its forward pass with `torch.fx`. With
    stride 1, 'same' zero padding and normalisation by running statistics, branches b sum up to one
    convolution by

        weight = sum of gamma_b / sqrt(var_b + eps_b) * weight_b, embedded in the largest extent
        bias = sum of beta_b + gamma_b / sqrt(var_b + eps_b) * (bias_b - mean_b)

    The block keeps its branches, parameters, buffers and state dict, and becomes a
    `MergedBranches`: in evaluation, and in training with frozen normalisation (``norm.eval()``), it
    computes the merged filter from them and convolves once; gradients reach every branch. In
    training mode the normalisation of each branch depends on what that branch makes of the batch,
    so branches run one by one, as before. `convert_depthwise` puts those on the kernels too, before
    or after.

    A block is found if its forward pass takes the image alone, adds up the branches and applies
    nothing but layers to the sum, one after the other. Write a sum that stands within more than
    that as a module of its own.

    Args:
        module: any model, or a block.
        impl: as in `depthwise_conv2d`, for the merged convolution.

    Returns:
        Which blocks are merged, and for other sums of convolutions why they are not; printed, a
        line for each reason. `restore_branches` undoes it.

    Raises:
        TypeError: `module` is no `nn.Module`.
        ValueError: `impl` is unknown.
    """
    dispatch.check_name(impl)
    check_module(module)
    outcomes: dict[nn.Module, str | None] = {}
    # Blocks that are one layer to the forward pass of a block around them.
    closed: set[nn.Module] = set()
    # Blocks come before those around them.
    for block in reversed(list(module.modules())):
        if isinstance(block, MergedBranches):
            closed.add(block)
            outcomes[block] = _why_left(block, block._dataflow, impl)
            if outcomes[block] is None:
                block.merged_impl = impl
        elif _has_own_forward(block):
            _visit(block, impl, closed, outcomes)
    names = [
        (name, outcomes[block])
        for name, block in module.named_modules(remove_duplicate=False)
        if block in outcomes
    ]
    return Merge(
        tuple(name for name, reason in names if reason is None),
        {name: reason for name, reason in names if reason is not None},
    )


def restore_branches(module: nn.Module) -> tuple[str, ...]:
    """Undo `merge_branches`, in place: every block gets back its own class.

    Args:
        module: any model, or a block.

    Returns:
        The names of the blocks, in the order of `module.named_modules()`.

    Raises:
        TypeError: `module` is no `nn.Module`.
    """
    check_module(module)
    merged = [
        (name, block)
        for name, block in module.named_modules(remove_duplicate=False)
        if isinstance(block, MergedBranches)
    ]
    for block in {block for _, block in merged}:
        _restore(block)
    return tuple(name for name, _ in merged)


def _merge(block: Any, dataflow: Dataflow, impl: str) -> None:
    block.merged_impl, block.merged_from, block._dataflow = impl, type(block), dataflow
    block.__class__ = mixed_class("Merged", MergedBranches, block.merged_from)


def _restore(block: Any) -> None:
    block.__class__ = block.merged_from
    del block.merged_impl, block.merged_from, block._dataflow


def _has_own_forward(block: nn.Module) -> bool:
    """Tell whether a module that holds convolutions has a forward pass to be traced."""
    if block.__module__.startswith("torch.nn") or isinstance(block, torch.jit.ScriptModule):
        return False
    if type(block).forward in (nn.Module.forward, nn.Sequential.forward) or _is_layer(block):
        return False
    return any(isinstance(each, nn.Conv2d) for each in block.modules())


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Identity) or is_norm(module)


def _visit(
    block: nn.Module,
    impl: str,
    closed: set[nn.Module],
    outcomes: dict[nn.Module, str | None],
) -> None:
    """Merge the branches of a block, or note why a sum of convolutions is left.

    Args:
        closed: the blocks that are one layer where a block around them is traced; this one may
            join them.
        outcomes: what is said of blocks, None where they are merged.
    """
    try:
        steps, in_training = (_trace(block, closed, training) for training in (False, True))
    except Exception as error:  # A forward pass may raise anything where it is traced.
        if _count_depthwise(block, closed) > 1:
            (line, *_) = str(error).splitlines() or [type(error).__name__]
            outcomes[block] = f"its forward pass cannot be traced: {line}"
        closed.add(block)
        return
    if steps is None:
        closed.add(block)
    elif _adds_up_convolutions(block, steps.term):
        closed.add(block)
        if steps == in_training:
            outcomes[block] = _why_left(block, steps, impl)
        else:
            outcomes[block] = "its forward pass is another one in training mode"
        if outcomes[block] is None:
            _merge(block, Dataflow(*steps), impl)
    elif steps.after or steps != in_training:
        closed.add(block)


class _Steps(NamedTuple):
    """The fields of a `Dataflow`."""

    term: Term
    after: tuple[Path, ...]


class _Proxy(torch.fx.Proxy):
    """A value of a traced forward pass that tells ``a += b`` from ``a + b``."""

    def __iadd__(self, other: Any) -> torch.fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})


class _Tracer(torch.fx.Tracer):
    """Record the calls of layers, and look into the blocks that are not closed."""

    def __init__(self, closed: set[nn.Module]) -> None:
        super().__init__()
        self.closed = closed

    def proxy(self, node: torch.fx.Node) -> torch.fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        if module in self.closed or _is_layer(module) or super().is_leaf_module(module, name):
            return True
        return not any(isinstance(each, nn.Conv2d) or is_norm(each) for each in module.modules())


def _trace(block: nn.Module, closed: set[nn.Module], training: bool) -> _Steps | None:
    """Return the steps of a block in a mode; None if it does something else than such steps."""
    modes = {each: each.training for each in block.modules()}
    try:
        for each in modes:
            each.training = training
        graph = _Tracer(closed).trace(block)
    finally:
        for each, mode in modes.items():
            each.training = mode
    if sum(node.op == "placeholder" for node in graph.nodes) != 1:
        return None
    terms: dict[Any, Term] = {}
    for node in graph.nodes:
        _find_term(block, node, terms)
    (node,) = graph.output_node().args
    after: list[Path] = []
    while node not in terms:
        if not isinstance(node, torch.fx.Node) or (argument := _only_argument(node)) is None:
            return None
        after.append(_path(node))
        node = argument
    if len(graph.nodes) > len(terms) + len(after) + 1:
        # A step that the output does not depend on may have changed something in place.
        return None
    return _Steps(terms[node], tuple(reversed(after)))


def _find_term(block: nn.Module, node: torch.fx.Node, terms: dict[Any, Term]) -> None:
    """Add the term that a node of a graph computes to `terms`, if it is one."""
    if node.op == "placeholder":
        terms[node] = None
    elif (argument := _only_argument(node)) is not None:
        layer = block.get_submodule(str(node.target))
        if argument not in terms or not _is_layer(layer):
            return
        operand = terms[argument]
        if not isinstance(layer, nn.Conv2d) or _is_image(block, operand):
            terms[node] = Layer(_path(node), operand)
    elif node.target in _ADDITIONS and not node.kwargs:
        # The sum of a list begins with 0.
        operands = [each for each in node.args if each != 0]
        if node.target in _IN_PLACE and _is_seen_elsewhere(block, operands[0]):
            return
        if all(each in terms for each in operands):
            added = [terms[each] for each in operands]
            terms[node] = Sum(tuple(added)) if len(added) > 1 else added[0]


def _is_seen_elsewhere(block: nn.Module, value: Any) -> bool:
    """Tell whether something else reads a value, or what an identity made it of."""
    while len(value.users) == 1 and value.op == "call_module":
        if not isinstance(block.get_submodule(str(value.target)), nn.Identity):
            return False
        value = value.args[0]
    return len(value.users) > 1


def _only_argument(node: torch.fx.Node) -> torch.fx.Node | None:
    """Return what a layer is applied to; None if the node is no layer or gives it more."""
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return None
    (argument,) = node.args
    return argument if isinstance(argument, torch.fx.Node) else None


def _path(node: torch.fx.Node) -> Path:
    return tuple(str(node.target).split("."))


def _layers(block: nn.Module, term: Term) -> Iterator[nn.Module]:
    if isinstance(term, Sum):
        for each in term.terms:
            yield from _layers(block, each)
    elif term is not None:
        yield block.get_submodule(".".join(term.path))
        yield from _layers(block, term.operand)


def _is_image(block: nn.Module, term: Term) -> bool:
    """Tell whether a term is the image, passed through nothing but identities."""
    if isinstance(term, Sum):
        return False
    return all(isinstance(each, nn.Identity) for each in _layers(block, term))


def _adds_up_convolutions(block: nn.Module, term: Term) -> bool:
    while isinstance(term, Layer):
        term = term.operand
    return isinstance(term, Sum) and any(
        isinstance(each, nn.Conv2d) for each in _layers(block, term)
    )


def _count_depthwise(block: nn.Module, closed: set[nn.Module]) -> int:
    """Count the depthwise convolutions of a block that are in no closed one inside it."""
    if isinstance(block, nn.Conv2d):
        return int(block.groups == block.in_channels > 1)
    inside = (each for each in block.children() if each not in closed)
    return sum(_count_depthwise(each, closed) for each in inside)


def _why_left(block: nn.Module, steps: _Steps | Dataflow, impl: str) -> str | None:
    """Say in a line why the branches of a block cannot be merged under `impl`; None if they can."""
    if "forward" in block.__dict__ or block._compiled_call_impl is not None:
        return "its forward has been replaced or compiled, which would go on running"
    value, after = read(block, steps.term), find_all(block, steps.after)
    if isinstance(value, str):
        return value
    if isinstance(after, str):
        return after
    operations = list(list_operations(value))
    filter = merged_filter(operations)
    if reason := dispatch.unsupported_filter(filter, impl):
        return f"no kernel for the merged filter: {reason}"
    taps = sum(each.filter.taps for each in operations if isinstance(each, Convolution))
    if impl == "torch" and filter.taps > taps:
        return f"PyTorch would multiply by {filter.taps} taps of the merged filter, not by {taps}"
    return None
