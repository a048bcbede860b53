"""Floating-point operations of the operators, for `torch.utils.flop_counter.FlopCounterMode`.

As PyTorch counts: a multiplication and an addition for each term of a sum, taps over the padding
included, and nothing for biases, activations and normalisation. Each gradient of a convolution has
as many terms as the convolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

import convmixer_kernels.ops  # noqa: F401, it declares the operators

_operators = torch.ops.convmixer_kernels
Shape = Sequence[int]


def _terms(image: Shape, filter: Shape) -> int:
    return 2 * math.prod(image) * math.prod(filter)


@register_flop_formula(
    [
        _operators.depthwise_conv2d,
        _operators.depthwise_conv2d_input_gradient,
        _operators.depthwise_conv2d_batch_norm_training,
        _operators.depthwise_conv2d_batch_norm_frozen,
    ]
)
def _convolution(image: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return _terms(image, weight[2:])


@register_flop_formula(_operators.depthwise_conv2d_weight_gradient)
def _weight_gradient(
    image: Shape, grad_output: Shape, kernel_size: Shape, *_: Any, **__: Any
) -> int:
    return _terms(image, kernel_size)


@register_flop_formula(_operators.depthwise_conv2d_batch_norm_backward)
def _batch_norm_backward(
    grad: Shape,
    input: Shape | None,
    weight: Shape,
    value: Shape,
    normalisation: Shape,
    needed: Sequence[bool],
    *_: Any,
    **__: Any,
) -> int:
    needs_input, needs_weight = needed[:2]
    return (needs_input + needs_weight) * _terms(value, weight[2:])
