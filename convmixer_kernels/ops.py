"""The op boundary: everything PyTorch must know of the kernels to trace, compile and run them.

The operators are functional and take the name of a resolved implementation. Autograd lives outside
(`functional.py`): an operator with no autograd formula of its own is opaque and cheap to call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convmixer_kernels import dispatch, layout

_library = torch.library.Library("convmixer_kernels", "DEF")
# The layout of an output follows that of the input, so a compiler must not change it in between.
_TAGS = (torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag)

_library.define(
    "depthwise_conv2d(Tensor input, Tensor weight, Tensor? bias, str impl) -> Tensor", tags=_TAGS
)
_library.define(
    "depthwise_conv2d_input_gradient(Tensor grad_output, Tensor weight, str impl) -> Tensor",
    tags=_TAGS,
)
_library.define(
    "depthwise_conv2d_weight_gradient(Tensor input, Tensor grad_output, int kernel_size, "
    "bool with_bias, str impl) -> (Tensor, Tensor)",
    tags=_TAGS,
)


def _forward(input: Tensor, weight: Tensor, bias: Tensor | None, impl: str) -> Tensor:
    output: Tensor = dispatch.backend(impl).forward(input, weight, bias)
    return output


def _input_gradient(grad_output: Tensor, weight: Tensor, impl: str) -> Tensor:
    grad_input: Tensor = dispatch.backend(impl).input_gradient(grad_output, weight)
    return grad_input


def _weight_gradient(
    input: Tensor, grad_output: Tensor, kernel_size: int, with_bias: bool, impl: str
) -> tuple[Tensor, Tensor]:
    weight_gradient = dispatch.backend(impl).weight_gradient
    grad_weight, grad_bias = weight_gradient(input, grad_output, kernel_size, with_bias)
    if grad_bias is None:
        grad_bias = grad_weight.new_empty(0)
    return grad_weight, grad_bias


def _fake_forward(input: Tensor, weight: Tensor, bias: Tensor | None, impl: str) -> Tensor:
    return layout.empty_like_input(input)


def _fake_input_gradient(grad_output: Tensor, weight: Tensor, impl: str) -> Tensor:
    return layout.empty_like_input(grad_output)


def _fake_weight_gradient(
    input: Tensor, grad_output: Tensor, kernel_size: int, with_bias: bool, impl: str
) -> tuple[Tensor, Tensor]:
    channels = input.shape[1]
    grad_weight = input.new_empty((channels, 1, kernel_size, kernel_size), dtype=torch.float32)
    return grad_weight, grad_weight.new_empty(channels if with_bias else 0)


for _name, _implementation, _fake in (
    ("depthwise_conv2d", _forward, _fake_forward),
    ("depthwise_conv2d_input_gradient", _input_gradient, _fake_input_gradient),
    ("depthwise_conv2d_weight_gradient", _weight_gradient, _fake_weight_gradient),
):
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"convmixer_kernels::{_name}", _fake, lib=_library)

# Bound once: the look-up through torch.ops costs more than a microsecond a call.
depthwise_conv2d = torch.ops.convmixer_kernels.depthwise_conv2d.default
depthwise_conv2d_input_gradient = (
    torch.ops.convmixer_kernels.depthwise_conv2d_input_gradient.default
)
depthwise_conv2d_weight_gradient = (
    torch.ops.convmixer_kernels.depthwise_conv2d_weight_gradient.default
)
