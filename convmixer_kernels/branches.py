"""Parallel depthwise branches as one convolution: what a block sums up, and its merged filter.

Convolution, and normalisation by running statistics, are linear in the image up to a bias. A sum of
such branches is a depthwise convolution again, and `MergedBranches` runs a block as that one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.fx
from torch import Tensor, nn

from convmixer_kernels import direct, inference_tables
from convmixer_kernels.arguments import autocast_dtype
from convmixer_kernels.filters import Filter, pair
from convmixer_kernels.functional import depthwise_conv2d
from convmixer_kernels.modules import one_node, why_ineligible

# Batch normalisations of other packages, with the names that PyTorch gives their tensors.
_OTHER_NORMS = {
    "timm.layers.norm_act.BatchNormAct2d",
    "timm.layers.norm_act.FrozenBatchNormAct2d",
    "timm.layers.norm_act.SyncBatchNormAct",
    "torchvision.ops.misc.FrozenBatchNorm2d",
}

# The names that lead from a block to one of its layers.
Path: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class Layer:
    """The output of a layer.

    Attributes:
        path: to the layer.
        operand: what the layer is applied to.
    """

    path: Path
    operand: Term


@dataclass(frozen=True)
class Sum:
    """The sum of branches."""

    terms: tuple[Term, ...]


# None is the image.
Term: TypeAlias = Layer | Sum | None


@dataclass(frozen=True, eq=False)
class Dataflow:
    """The steps of a block.

    Attributes:
        term: the sum of its branches.
        after: the layers that follow, each applied to the output of the one before.
    """

    term: Term
    after: tuple[Path, ...]


class Convolution(NamedTuple):
    """A depthwise convolution of the image by (C, 1, height, width), with (C,) or None as bias."""

    filter: Filter
    weight: Tensor
    bias: Tensor | None


class Norm(NamedTuple):
    """A batch normalisation of `operand`, by the statistics of the batch if `of_batch`.

    `updates` counts those of the running statistics, of which PyTorch counts no version; the other
    tensors are (C,).
    """

    operand: Value
    running_mean: Tensor
    running_var: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    updates: Tensor | None
    eps: float
    of_batch: bool


class Total(NamedTuple):
    """The sum of the values of branches."""

    values: tuple[Value, ...]


# A term, with what its layers hold now. None is the image.
Value: TypeAlias = Convolution | Norm | Total | None


class MergedBranches(nn.Module):
    """A block whose parallel depthwise branches run as one convolution wherever that is exact.

    `merge_branches` puts this class before the class of a block. The block keeps its layers,
    parameters, buffers, state dict, hooks and methods. Merged filters and bias are computed from
    those of the branches in float32 (float64 if the branches are), and gradients reach all of them.
    The filters are then rounded once, to the dtype of the branches or that of autocast, which is
    the dtype of the output as well. Inference keeps both until a parameter, a buffer or `eps`
    changes.

    The forward pass of the block's own class runs instead where the merged filter is not exact: a
    normalisation uses the statistics of the batch (training mode), layers of the branches have been
    replaced, removed or given hooks, or the input is not (N, C, H, W).

    Attributes:
        merged_impl: as `impl` in `depthwise_conv2d`; may be changed.
        merged_from: the block's own class.
    """

    merged_impl: str
    merged_from: type[nn.Module]
    _dataflow: Dataflow

    def forward(self, *inputs: Any, **named: Any) -> Any:
        if len(inputs) != 1 or named:
            return super().forward(*inputs, **named)
        (input,) = inputs
        if isinstance(input, torch.fx.Proxy):
            return one_node(self, input)
        value, after = read(self, self._dataflow.term), find_all(self, self._dataflow.after)
        if isinstance(value, str) or isinstance(after, str):
            return super().forward(input)
        if not isinstance(input, Tensor) or input.dim() != 4:
            return super().forward(input)
        operations = list(list_operations(value))
        if not _is_one_convolution(operations):
            _note_training(operations)
            return super().forward(input)
        weight, bias = self._filters(value, operations, input)
        output = depthwise_conv2d(input, weight, bias, impl=self.merged_impl)
        for layer in after:
            output = layer(output)
        return output

    def _filters(
        self, value: Value, operations: list[Convolution | Norm], input: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return the filters for `input` and the bias, as inference keeps them or computed now."""
        tensors = [each for operation in operations for each in _tensors(operation)]
        first = next(each.weight for each in operations if isinstance(each, Convolution))
        dtype = first.dtype
        if dtype is not torch.float64:
            dtype = autocast_dtype(input.device) or dtype

        def compute() -> tuple[Tensor, Tensor | None]:
            weight, bias = merge(value, operations, first)
            return weight.to(dtype), bias

        if direct.operators_are_changed():
            return compute()
        if direct.records((input, *tensors)):
            _note_training(operations)
            return compute()
        if not all([each is None or direct.is_plain(each) for each in tensors]):
            return compute()
        constants = [
            each.eps if isinstance(each, Norm) else each.filter.dilation for each in operations
        ]
        settings, device = (self._dataflow, dtype, *constants), first.get_device()
        kept: tuple[Tensor, Tensor | None] | None
        kept = inference_tables.kept(tensors, settings, device)
        return kept or inference_tables.keep(tensors, settings, device, compute)


def read(block: nn.Module, term: Term) -> Value | str:
    """Return the value of a term by the layers that `block` has now.

    Returns:
        The value; or, in a line, why the term is no depthwise convolution of the image.
    """
    if term is None:
        return None
    if isinstance(term, Sum):
        values: list[Value] = []
        for each in term.terms:
            value = read(block, each)
            if isinstance(value, str):
                return value
            values.append(value)
        return Total(tuple(values))
    operand = read(block, term.operand)
    if isinstance(operand, str):
        return operand
    layer = _find(block, term.path)
    if isinstance(layer, str):
        return layer
    result = _overridden(layer) or _apply(layer, operand)
    return f"{'.'.join(term.path)}: {result}" if isinstance(result, str) else result


def find_all(block: nn.Module, paths: Iterable[Path]) -> list[nn.Module] | str:
    """Return the layers that paths lead to; or, in a line, why calling one is not enough."""
    layers: list[nn.Module] = []
    for path in paths:
        layer = _find(block, path)
        if isinstance(layer, str):
            return layer
        layers.append(layer)
    return layers


def _find(block: nn.Module, path: Path) -> nn.Module | str:
    """Return the layer that a path leads to; or, in a line, why calling it is not enough."""
    layer = block
    for number, part in enumerate(path):
        if number > 0 and (reason := _overridden(layer)):
            return f"{'.'.join(path[:number])}: {reason}"
        found = layer._modules.get(part)
        if found is None:
            return f"{'.'.join(path)} has been removed"
        layer = found
    return layer


def _overridden(layer: nn.Module) -> str | None:
    """Say in a line why calling a layer is not just its class's forward pass; None if it is."""
    if (
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
    ):
        return "it has hooks, which a merged filter would leave out"
    if "forward" in layer.__dict__ or layer._compiled_call_impl is not None:
        return "its forward has been replaced or compiled"
    return None


def _apply(layer: nn.Module, operand: Value) -> Value | str:
    """Return what a layer makes of `operand`; or, in a line, why that is no convolution."""
    if isinstance(layer, nn.Conv2d):
        if reason := why_ineligible(layer):
            return reason
        if operand is not None:
            return "it is applied to the output of another layer"
        weight = layer.weight
        return Convolution(Filter.of(weight, pair(layer.dilation)), weight, layer.bias)
    if is_norm(layer):
        return _norm(layer, operand)
    if type(layer) is nn.Identity:
        return operand
    return f"a {type(layer).__name__} is neither a convolution nor a batch normalisation"


def is_norm(layer: nn.Module) -> bool:
    """Tell whether a layer normalises images by statistics of channels, and does no more."""
    kind = type(layer)
    if isinstance(layer, (nn.BatchNorm2d, nn.SyncBatchNorm)) and kind.forward in (
        nn.BatchNorm2d.forward,
        nn.SyncBatchNorm.forward,
    ):
        return True
    if f"{kind.__module__}.{kind.__qualname__}" not in _OTHER_NORMS:
        return False
    after = (getattr(layer, name, None) for name in ("drop", "act"))
    return all(each is None or type(each) is nn.Identity for each in after)


def _norm(layer: Any, operand: Value) -> Norm | str:
    mean, var = layer.running_mean, layer.running_var
    if mean is None or var is None:
        return "it has no running statistics"
    # Frozen ones are no subclasses of it: they use running statistics in training mode as well.
    of_batch = layer.training and isinstance(layer, nn.modules.batchnorm._BatchNorm)
    updates = getattr(layer, "num_batches_tracked", None)
    return Norm(operand, mean, var, layer.weight, layer.bias, updates, layer.eps, of_batch)


def list_operations(value: Value) -> Iterator[Convolution | Norm]:
    """Yield the convolutions and normalisations of a value."""
    if isinstance(value, Total):
        for each in value.values:
            yield from list_operations(each)
    elif isinstance(value, Norm):
        yield from list_operations(value.operand)
        yield value
    elif value is not None:
        yield value


def _tensors(operation: Convolution | Norm) -> tuple[Tensor | None, ...]:
    if isinstance(operation, Convolution):
        return operation.weight, operation.bias
    mean, var = operation.running_mean, operation.running_var
    return mean, var, operation.gamma, operation.beta, operation.updates


def _is_one_convolution(operations: list[Convolution | Norm]) -> bool:
    """Tell whether operations amount to a convolution that does not depend on the batch."""
    if any([isinstance(each, Norm) and each.of_batch for each in operations]):
        return False
    return any([isinstance(each, Convolution) for each in operations])


def merged_filter(operations: Iterable[Convolution | Norm]) -> Filter:
    """Return the smallest filter without dilation that holds those of all branches."""
    rows = columns = 1
    for each in operations:
        if isinstance(each, Convolution):
            extent = each.filter.extent
            rows, columns = max(rows, extent[0]), max(columns, extent[1])
    return Filter(rows, columns)


def merge(
    value: Value, operations: Iterable[Convolution | Norm], like: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return the filters and the bias of the depthwise convolution that computes a value.

    Args:
        operations: those of `value`.
        like: (C, 1, height, width) of any branch.

    Returns:
        (C, 1, *merged_filter(operations).shape) and (C,), in float32 or float64; None for no bias.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    filter = merged_filter(operations)
    identity = like.new_ones(like.shape[0], 1, 1, 1, dtype=dtype)
    merged = _merge(value, identity, filter)
    return merged.weight, merged.bias


def _merge(value: Value, identity: Tensor, filter: Filter) -> Convolution:
    """Return a value as one convolution, a sum with filters of the size of `filter`.

    Args:
        identity: (C, 1, 1, 1), the filters that change nothing, in the dtype of the result.
    """
    dtype = identity.dtype
    if value is None:
        return Convolution(Filter(1, 1), identity, None)
    if isinstance(value, Total):
        branches = [_merge(each, identity, filter) for each in value.values]
        weights = [_embedded(each, filter) for each in branches]
        biases = [each.bias for each in branches if each.bias is not None]
        return Convolution(filter, _added(weights), _added(biases) if biases else None)
    if isinstance(value, Convolution):
        bias = None if value.bias is None else value.bias.to(dtype)
        return Convolution(value.filter, value.weight.to(dtype), bias)
    inner = _merge(value.operand, identity, filter)
    scale = (value.running_var.to(dtype) + value.eps).rsqrt()
    if value.gamma is not None:
        scale = scale * value.gamma.to(dtype)
    mean = value.running_mean.to(dtype)
    bias = (-mean if inner.bias is None else inner.bias - mean) * scale
    if value.beta is not None:
        bias = bias + value.beta.to(dtype)
    return Convolution(inner.filter, inner.weight * scale.view(-1, 1, 1, 1), bias)


def _embedded(branch: Convolution, filter: Filter) -> Tensor:
    return (
        branch.weight
        if branch.filter == filter
        else branch.filter.embed(branch.weight, filter.shape)
    )


def _added(tensors: list[Tensor]) -> Tensor:
    return sum(tensors[1:], start=tensors[0])


def _note_training(operations: Iterable[Convolution | Norm]) -> None:
    """Tell what inference keeps of parameters and buffers that a training pass changes."""
    if not torch.compiler.is_compiling():
        inference_tables.trained(each for operation in operations for each in _tensors(operation))
