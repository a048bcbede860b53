"""The op boundary: everything PyTorch must know of the kernels to trace, compile and run them.

The operators take the name of a resolved implementation and, but for the running statistics of
`batch_normalisation`, change nothing. Autograd lives outside (`autograd.py`, `fused.py`): an
operator with no autograd formula of its own is opaque and cheap to call. What an operator is not
asked for it returns as a tensor without elements. Batches of no images do not reach a kernel: those
of a convolution end in the backends, those of the fused steps here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from convmixer_kernels import dispatch, layout

_library = torch.library.Library("convmixer_kernels", "DEF")
# The layout of an output follows that of the input, so a compiler must not change it in between;
# and every operator has a fake implementation, so that it may trace them.
_TAGS = (torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag)


def _operator(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """The operator of `schema`, bound once: looking it up costs over a microsecond a call."""
    name = schema.partition("(")[0]
    _library.define(schema, tags=_TAGS)
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"convmixer_kernels::{name}", fake, lib=_library)
    return getattr(torch.ops.convmixer_kernels, name).default


def _nothing(like: Tensor) -> Tensor:
    return like.new_empty(0)


def _sums(like: Tensor, *shape: int) -> Tensor:
    """Uninitialised, in the dtype in which operations on `like` take sums."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return like.new_empty(shape, dtype=dtype)


# ---- depthwise convolution -----------------------------------------------------------------------


def _depthwise_conv2d(input: Tensor, weight: Tensor, bias: Tensor | None, impl: str) -> Tensor:
    output: Tensor = dispatch.backend(impl).forward(input, weight, bias)
    return output


def _fake_depthwise_conv2d(input: Tensor, weight: Tensor, bias: Tensor | None, impl: str) -> Tensor:
    return layout.empty_like_input(input)


def _input_gradient(grad_output: Tensor, weight: Tensor, impl: str) -> Tensor:
    grad_input: Tensor = dispatch.backend(impl).input_gradient(grad_output, weight)
    return grad_input


def _fake_input_gradient(grad_output: Tensor, weight: Tensor, impl: str) -> Tensor:
    return layout.empty_like_input(grad_output)


def _weight_gradient(
    input: Tensor, grad_output: Tensor, kernel_size: int, with_bias: bool, impl: str
) -> tuple[Tensor, Tensor]:
    weight_gradient = dispatch.backend(impl).weight_gradient
    grad_weight, grad_bias = weight_gradient(input, grad_output, kernel_size, with_bias)
    return grad_weight, _nothing(grad_weight) if grad_bias is None else grad_bias


def _fake_weight_gradient(
    input: Tensor, grad_output: Tensor, kernel_size: int, with_bias: bool, impl: str
) -> tuple[Tensor, Tensor]:
    channels = input.shape[1]
    grad_weight = input.new_empty((channels, 1, kernel_size, kernel_size), dtype=torch.float32)
    return grad_weight, grad_weight.new_empty(channels if with_bias else 0)


depthwise_conv2d = _operator(
    "depthwise_conv2d(Tensor input, Tensor weight, Tensor? bias, str impl) -> Tensor",
    _depthwise_conv2d,
    _fake_depthwise_conv2d,
)
depthwise_conv2d_input_gradient = _operator(
    "depthwise_conv2d_input_gradient(Tensor grad_output, Tensor weight, str impl) -> Tensor",
    _input_gradient,
    _fake_input_gradient,
)
depthwise_conv2d_weight_gradient = _operator(
    "depthwise_conv2d_weight_gradient(Tensor input, Tensor grad_output, int kernel_size, "
    "bool with_bias, str impl) -> (Tensor, Tensor)",
    _weight_gradient,
    _fake_weight_gradient,
)


# ---- steps of the fused operations, described in backends/reference_batch_norm.py ---------------


def _forward_normalised(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    normalisation: Tensor,
    activation: str,
    residual: bool,
    impl: str,
) -> Tensor:
    if input.shape[0] == 0:
        return layout.empty_like_input(input)
    output: Tensor = dispatch.backend(impl).forward_normalised(
        input, weight, bias, normalisation, activation, residual
    )
    return output


def _fake_forward_normalised(input: Tensor, *_: object) -> Tensor:
    return layout.empty_like_input(input)


def _forward_moments(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, impl: str
) -> tuple[Tensor, Tensor]:
    if input.shape[0] == 0:
        return layout.empty_like_input(input), _sums(input, 3, input.shape[1]).zero_()
    value, moments = dispatch.backend(impl).forward_moments(input, weight, bias, activation)
    return value, moments


def _fake_forward_moments(input: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return layout.empty_like_input(input), _sums(input, 3, input.shape[1])


def _moments(value: Tensor, bias: Tensor | None, activation: str, impl: str) -> Tensor:
    if value.shape[0] == 0:
        return _sums(value, 3, value.shape[1]).zero_()
    moments: Tensor = dispatch.backend(impl).moments(value, bias, activation)
    return moments


def _fake_moments(value: Tensor, bias: Tensor | None, activation: str, impl: str) -> Tensor:
    return _sums(value, 3, value.shape[1])


def _batch_normalisation(
    moments: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    impl: str,
) -> Tensor:
    normalisation: Tensor = dispatch.backend(impl).batch_normalisation(
        moments, gamma, beta, running_mean, running_var, momentum, eps
    )
    for buffer in (running_mean, running_var):
        if buffer is not None:
            # Kernels write through addresses, which autograd does not see.
            torch.autograd.graph.increment_version(buffer)
    return normalisation


def _fake_batch_normalisation(moments: Tensor, *_: object) -> Tensor:
    return moments.new_empty((5, moments.shape[2]))


def _running_normalisation(
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
    impl: str,
) -> Tensor:
    normalisation: Tensor = dispatch.backend(impl).running_normalisation(
        running_mean, running_var, gamma, beta, eps
    )
    return normalisation


def _fake_running_normalisation(running_mean: Tensor, *_: object) -> Tensor:
    return running_mean.new_empty((5, running_mean.shape[0]))


def _normalise(
    value: Tensor,
    bias: Tensor | None,
    normalisation: Tensor,
    residual: Tensor | None,
    activation: str,
    impl: str,
) -> Tensor:
    if value.shape[0] == 0:
        return layout.empty_like_input(value)
    output: Tensor = dispatch.backend(impl).normalise(
        value, bias, normalisation, residual, activation
    )
    return output


def _fake_normalise(value: Tensor, *_: object) -> Tensor:
    return layout.empty_like_input(value)


def _gradient_sums(
    value: Tensor,
    bias: Tensor | None,
    grad: Tensor,
    normalisation: Tensor,
    activation: str,
    impl: str,
) -> Tensor:
    if value.shape[0] == 0:
        return _sums(value, 2, value.shape[1]).zero_()
    sums: Tensor = dispatch.backend(impl).gradient_sums(
        value, bias, grad, normalisation, activation
    )
    return sums


def _fake_gradient_sums(value: Tensor, *_: object) -> Tensor:
    return _sums(value, 2, value.shape[1])


def _value_gradient(
    value: Tensor,
    bias: Tensor | None,
    grad: Tensor,
    normalisation: Tensor,
    sums: Tensor,
    activation: str,
    with_bias: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    if value.shape[0] == 0:
        empty, grad_bias = _fake_value_gradient(
            value, bias, grad, normalisation, sums, activation, with_bias, impl
        )
        return empty, grad_bias.zero_()
    grad_value, of_bias = dispatch.backend(impl).value_gradient(
        value, bias, grad, normalisation, sums, activation, with_bias
    )
    return grad_value, _nothing(sums) if of_bias is None else of_bias


def _fake_value_gradient(
    value: Tensor,
    bias: Tensor | None,
    grad: Tensor,
    normalisation: Tensor,
    sums: Tensor,
    activation: str,
    with_bias: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    return layout.empty_like_input(value), _sums(value, value.shape[1] if with_bias else 0)


def _fused_backward(
    input: Tensor | None,
    value: Tensor,
    grad: Tensor,
    weight: Tensor | None,
    normalisation: Tensor,
    sums: Tensor,
    activation: str,
    residual: bool,
    kernel_size: int,
    with_bias: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = (input, value, grad, weight, normalisation, sums)
    options = (activation, residual, kernel_size, with_bias)
    if value.shape[0] == 0:
        empty, *of_parameters = _fake_fused_backward(*arguments, *options, impl)
        grad_weight, grad_bias = (tensor.zero_() for tensor in of_parameters)
        return empty, grad_weight, grad_bias
    grads = dispatch.backend(impl).fused_backward(*arguments, *options)
    grad_input, grad_weight, grad_bias = grads
    return (
        _nothing(value) if grad_input is None else grad_input,
        _nothing(sums) if grad_weight is None else grad_weight,
        _nothing(sums) if grad_bias is None else grad_bias,
    )


def _fake_fused_backward(
    input: Tensor | None,
    value: Tensor,
    grad: Tensor,
    weight: Tensor | None,
    normalisation: Tensor,
    sums: Tensor,
    activation: str,
    residual: bool,
    kernel_size: int,
    with_bias: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    channels = value.shape[1]
    filters = (0,) if input is None else (channels, 1, kernel_size, kernel_size)
    return (
        _nothing(value) if weight is None else layout.empty_like_input(value),
        _sums(value, *filters),
        _sums(value, channels if with_bias else 0),
    )


forward_normalised = _operator(
    "forward_normalised(Tensor input, Tensor weight, Tensor? bias, Tensor normalisation, "
    "str activation, bool residual, str impl) -> Tensor",
    _forward_normalised,
    _fake_forward_normalised,
)
forward_moments = _operator(
    "forward_moments(Tensor input, Tensor weight, Tensor? bias, str activation, str impl) "
    "-> (Tensor, Tensor)",
    _forward_moments,
    _fake_forward_moments,
)
moments = _operator(
    "moments(Tensor value, Tensor? bias, str activation, str impl) -> Tensor",
    _moments,
    _fake_moments,
)
batch_normalisation = _operator(
    "batch_normalisation(Tensor moments, Tensor? gamma, Tensor? beta, Tensor(a!)? running_mean, "
    "Tensor(b!)? running_var, float momentum, float eps, str impl) -> Tensor",
    _batch_normalisation,
    _fake_batch_normalisation,
)
running_normalisation = _operator(
    "running_normalisation(Tensor running_mean, Tensor running_var, Tensor? gamma, Tensor? beta, "
    "float eps, str impl) -> Tensor",
    _running_normalisation,
    _fake_running_normalisation,
)
normalise = _operator(
    "normalise(Tensor value, Tensor? bias, Tensor normalisation, Tensor? residual, "
    "str activation, str impl) -> Tensor",
    _normalise,
    _fake_normalise,
)
gradient_sums = _operator(
    "gradient_sums(Tensor value, Tensor? bias, Tensor grad, Tensor normalisation, "
    "str activation, str impl) -> Tensor",
    _gradient_sums,
    _fake_gradient_sums,
)
value_gradient = _operator(
    "value_gradient(Tensor value, Tensor? bias, Tensor grad, Tensor normalisation, Tensor sums, "
    "str activation, bool with_bias, str impl) -> (Tensor, Tensor)",
    _value_gradient,
    _fake_value_gradient,
)
fused_backward = _operator(
    "fused_backward(Tensor? input, Tensor value, Tensor grad, Tensor? weight, "
    "Tensor normalisation, Tensor sums, str activation, bool residual, int kernel_size, "
    "bool with_bias, str impl) -> (Tensor, Tensor, Tensor)",
    _fused_backward,
    _fake_fused_backward,
)
