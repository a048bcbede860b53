"""Exported programs without the operators of this package, for programs that lack it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from convmixer_kernels.backends import reference
from convmixer_kernels.operands import BatchNorm, PreActivation


def decompose(program: ExportedProgram) -> ExportedProgram:
    """Replace the operators of this package by PyTorch's own in an exported program.

    The result loads and runs without this package, and exporters take it that know PyTorch's
    operators alone, as in ``torch.onnx.export(decompose(torch.export.export(model, inputs)))``. A
    depthwise convolution becomes ``aten.conv2d``: nothing runs on the kernels any more.

    Args:
        program: what `torch.export.export` made of a model in evaluation; stays as it is.

    Raises:
        ValueError: the program trains batch normalisation on the fused operations.
    """
    decomposed = program.run_decompositions(_table())
    for node in decomposed.graph.nodes:
        _tell_source(node)
        # One that updates statistics has become an argument of an operator without side effects.
        for operator in (node.target, *node.args):
            if getattr(operator, "namespace", None) == "convmixer_kernels":
                raise ValueError(
                    f"program: got {operator}, which no operator of PyTorch stands for; export the "
                    "model after model.eval()"
                )
    return decomposed


_operators = torch.ops.convmixer_kernels


def _tell_source(node: torch.fx.Node) -> None:
    """Record that a convolution comes from `conv2d`: quantisers look for it by that.

    Tracing has recorded the operator of this package.
    """
    stack = node.meta.get("source_fn_stack")
    if node.target is torch.ops.aten.conv2d.default and stack:
        name, source = stack[-1]
        if getattr(source, "namespace", None) == "convmixer_kernels":
            node.meta["source_fn_stack"] = [*stack[:-1], (name, torch.nn.functional.conv2d)]


def _table() -> dict[Any, Any]:
    return {
        _operators.depthwise_conv2d.default: _depthwise_conv2d,
        _operators.depthwise_conv2d_batch_norm_frozen.default: _depthwise_conv2d_batch_norm,
        _operators.activated_batch_norm_frozen.default: _activated_batch_norm,
    }


def _depthwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    impl: str = "torch",
    automatic: bool = False,
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    rows, columns = dilation
    return reference.forward(_in_order(input), weight, bias, (rows, columns))


def _depthwise_conv2d_batch_norm(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    keep_value: bool,
    residual: bool,
    activation: str,
    eps: float,
    *_: object,
) -> tuple[Tensor, Tensor, Tensor]:
    value = _depthwise_conv2d(input, weight, bias)
    output, normalisation = _activated_batch_norm(
        value,
        None,
        input if residual else None,
        gamma,
        beta,
        running_mean,
        running_var,
        activation,
        eps,
    )
    return output, value if keep_value else value.new_empty(0), normalisation


def _activated_batch_norm(
    value: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    activation: str,
    eps: float,
    *_: object,
) -> tuple[Tensor, Tensor]:
    norm = BatchNorm(gamma, beta, running_mean, running_var, False, 0.0, eps)
    before = PreActivation(_in_order(value), bias, activation)
    output = reference.activated_batch_norm(before, residual, norm)
    return output, reference.running_normalisation(norm)


def _in_order(image: Tensor) -> Tensor:
    """Return `image` contiguous or channels_last.

    For other strides PyTorch's batch normalisation returns other ones than it tells the tracer.
    """
    if image.is_contiguous(memory_format=torch.channels_last):
        return image
    return image.contiguous()
