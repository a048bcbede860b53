"""Autograd of activation and batch normalisation, after a depthwise convolution or on their own.

A training step keeps the values before the activation (and the input of the convolution) for the
backward pass, which computes the activation again. Operators that update running statistics run
before the autograd functions, so that a compiler finds no mutation inside these.

Tables per channel (moments, normalisation, sums) are described in
`backends/reference_batch_norm.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from convmixer_kernels import layout, ops
from convmixer_kernels.arguments import BatchNorm
from convmixer_kernels.autograd import differentiable_once

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class _Settings(NamedTuple):
    """What the backward pass needs to know besides tensors."""

    function: str
    activation: str
    of_batch: bool
    impl: str
    process_group: ProcessGroup | None

    def differentiable_once(
        self, grads: tuple[Tensor | None, ...], sources: tuple[Tensor | None, ...]
    ) -> tuple[Tensor | None, ...]:
        call = f"{self.function}(impl={self.impl!r})"
        remedy = (
            "impl='torch'" if self.process_group is None else "impl='torch', process_group=None"
        )
        return differentiable_once(call, remedy, grads, sources)


def depthwise_conv2d_activated_batch_norm(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: bool,
    norm: BatchNorm,
    activation: str,
    impl: str,
) -> Tensor:
    """The normalised activation of a depthwise convolution, plus `input` if `residual`."""
    leaves = (input, weight, bias, norm.gamma, norm.beta)
    needs_grad = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in leaves
    )
    with torch.no_grad():
        if norm.of_batch:
            value, moments = ops.forward_moments(input, weight, bias, activation, impl)
            normalisation = _normalisation_of_batch(moments, norm, impl)
        else:
            normalisation = _running_normalisation(norm, impl)
            if not needs_grad:
                return ops.forward_normalised(
                    input, weight, bias, normalisation, activation, residual, impl
                )
            value = ops.depthwise_conv2d(input, weight, bias, impl)
    function = "depthwise_conv2d_gelu_batch_norm"
    settings = _Settings(function, activation, norm.of_batch, impl, norm.process_group)
    output: Tensor = _DepthwiseConv2dActivatedBatchNorm.apply(
        *leaves, value, normalisation, residual, settings
    )
    return output


def activated_batch_norm(
    value: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    norm: BatchNorm,
    activation: str,
    impl: str,
) -> Tensor:
    """The normalised activation of `value` + `bias`, plus `residual`."""
    with torch.no_grad():
        if norm.of_batch:
            normalisation = _normalisation_of_batch(
                ops.moments(value, bias, activation, impl), norm, impl
            )
        else:
            normalisation = _running_normalisation(norm, impl)
    function = "gelu_batch_norm"
    settings = _Settings(function, activation, norm.of_batch, impl, norm.process_group)
    output: Tensor = _ActivatedBatchNorm.apply(
        value, bias, residual, norm.gamma, norm.beta, normalisation, settings
    )
    return output


class _DepthwiseConv2dActivatedBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        value: Tensor,
        normalisation: Tensor,
        residual: bool,
        settings: _Settings,
    ) -> Tensor:
        # Only the weight gradient reads the input; the input gradient depends on it through
        # `value`, of which a second derivative has to know.
        needs_input, needs_weight = ctx.needs_input_grad[:2]
        kept = input if needs_input or needs_weight else None
        ctx.save_for_backward(kept, weight, bias, gamma, value, normalisation)
        ctx.residual = residual
        ctx.settings = settings
        added = input if residual else None
        return ops.normalise(value, None, normalisation, added, settings.activation, settings.impl)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, bias, gamma, value, normalisation = ctx.saved_tensors
        needs_input, needs_weight, needs_bias, *needs_affine = ctx.needs_input_grad[:5]
        settings: _Settings = ctx.settings
        needs_value = needs_input or needs_weight or needs_bias
        arranged = _arranged(grad, value)
        sums, grad_gamma, grad_beta = _affine_gradients(
            value, None, arranged, normalisation, needs_value, needs_affine, settings
        )
        grad_input = grad_weight = grad_bias = None
        if needs_input or needs_weight:
            grad_input, grad_weight, grad_bias = ops.fused_backward(
                input if needs_weight else None,
                value,
                arranged,
                weight if needs_input else None,
                normalisation,
                sums,
                settings.activation,
                ctx.residual,
                weight.shape[-1],
                needs_bias,
                settings.impl,
            )
            grad_weight = grad_weight.to(weight.dtype)
        elif needs_bias:
            _, grad_bias = ops.value_gradient(
                value, None, arranged, normalisation, sums, settings.activation, True, settings.impl
            )
        grads = settings.differentiable_once(
            (
                grad_input if needs_input else None,
                grad_weight if needs_weight else None,
                grad_bias if needs_bias else None,
                grad_gamma,
                grad_beta,
            ),
            (grad, input, weight, bias, gamma),
        )
        return (*grads, None, None, None, None)


class _ActivatedBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        normalisation: Tensor,
        settings: _Settings,
    ) -> Tensor:
        ctx.save_for_backward(value, bias, gamma, normalisation)
        ctx.settings = settings
        return ops.normalise(
            value, bias, normalisation, residual, settings.activation, settings.impl
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, bias, gamma, normalisation = ctx.saved_tensors
        needs_value, needs_bias, needs_residual, *needs_affine = ctx.needs_input_grad[:5]
        settings: _Settings = ctx.settings
        arranged = _arranged(grad, value)
        sums, grad_gamma, grad_beta = _affine_gradients(
            value, bias, arranged, normalisation, needs_value or needs_bias, needs_affine, settings
        )
        grad_value = grad_bias = None
        if needs_value or needs_bias:
            grad_value, grad_bias = ops.value_gradient(
                value,
                bias,
                arranged,
                normalisation,
                sums,
                settings.activation,
                needs_bias,
                settings.impl,
            )
        grads = settings.differentiable_once(
            (
                grad_value if needs_value else None,
                grad_bias if needs_bias else None,
                grad_gamma,
                grad_beta,
            ),
            (grad, value, bias, gamma),
        )
        return (*grads[:2], grad if needs_residual else None, *grads[2:], None, None)


def _affine_gradients(
    value: Tensor,
    bias: Tensor | None,
    grad: Tensor,
    normalisation: Tensor,
    needs_value: bool,
    needs_affine: list[bool],
    settings: _Settings,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The sums over all processes that the gradient of `value` takes, and those of gamma, beta.

    The latter are of this process alone, as those of all parameters.
    """
    if not any(needs_affine) and not (needs_value and settings.of_batch):
        # Running statistics do not depend on the values, so the sums do not count.
        return normalisation.new_zeros((2, value.shape[1])), None, None
    sums = ops.gradient_sums(value, bias, grad, normalisation, settings.activation, settings.impl)
    grad_gamma = sums[1] * normalisation[3] if needs_affine[0] else None
    grad_beta = sums[0].clone() if needs_affine[1] else None
    if settings.process_group is not None and settings.of_batch and needs_value:
        dist.all_reduce(sums, group=settings.process_group)
    return sums, grad_gamma, grad_beta


def _arranged(grad: Tensor, value: Tensor) -> Tensor:
    """`grad` as kernels read it beside `value`: copied here once rather than by each of them."""
    if not layout.is_channels_last(value):
        return layout.planar(grad)
    read_as_it_is = grad.stride(1) == 1 and 0 not in grad.stride()
    return grad if read_as_it_is else grad.contiguous(memory_format=torch.channels_last)


def _normalisation_of_batch(moments: Tensor, norm: BatchNorm, impl: str) -> Tensor:
    return ops.batch_normalisation(
        _of_all_processes(moments, norm.process_group),
        norm.gamma,
        norm.beta,
        norm.running_mean,
        norm.running_var,
        norm.momentum,
        norm.eps,
        impl,
    )


def _running_normalisation(norm: BatchNorm, impl: str) -> Tensor:
    return ops.running_normalisation(
        norm.running_mean, norm.running_var, norm.gamma, norm.beta, norm.eps, impl
    )


def _of_all_processes(moments: Tensor, process_group: ProcessGroup | None) -> Tensor:
    """(processes, 3, C), in the order of ranks: every process merges the same parts."""
    if process_group is None:
        return moments.unsqueeze(0)
    rows, channels = moments.shape
    # One below the other, which gloo asks for.
    parts = moments.new_empty((process_group.size() * rows, channels))
    dist.all_gather_into_tensor(parts, moments, group=process_group)
    return parts.unflatten(0, (-1, rows))
