"""Activation and batch normalisation, after a depthwise convolution or on their own.

Each of the two has an operator for statistics of the batch ("training") and one for running
statistics ("frozen"), and one for the backward pass of both. Besides their output they return what
the backward pass reads: the values before the activation, from which it computes the activation
again, and the normalisation. The steps that implementations provide, and their tables per channel
(moments, normalisation, sums), are described in `backends/reference/batch_norm.py`; batches of no
images do not reach them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from convmixer_kernels import derivatives, direct, dispatch, layout
from convmixer_kernels.backends import Backend, reference
from convmixer_kernels.channel_tables import GradientSums, Moments, Normalisation, row, rows
from convmixer_kernels.operands import BatchNorm, Epilogue, FusedBackward, PreActivation
from convmixer_kernels.ops.declaration import (
    differentiable_operator,
    empty_sums,
    nothing,
    operator,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Gradients = tuple[Tensor | None, ...]
_CONVOLVED = "depthwise_conv2d_gelu_batch_norm"
_ALONE = "gelu_batch_norm"


class _Call(NamedTuple):
    """The settings of a call that its backward pass needs; the last ones in the schemas' order."""

    function: str
    residual: bool
    process_group: str | None
    of_batch: bool
    activation: str
    eps: float
    impl: str
    automatic: bool = False

    def in_pytorch(
        self,
        before: PreActivation,
        added: Tensor | None,
        affine: tuple[Tensor | None, Tensor | None],
        normalisation: Tensor,
    ) -> Tensor:
        """Compute the normalised activation by PyTorch's own operations."""
        mean = var = None
        if not self.of_batch:
            table = rows(normalisation, Normalisation)
            mean, var = table.mean, table.rstd.pow(-2) - self.eps
        norm = BatchNorm(*affine, mean, var, self.of_batch, 0.0, self.eps)
        return reference.activated_batch_norm(before, added, norm)

    def refusal(self) -> RuntimeError:
        return derivatives.refusal(*self._names())

    def once(self, grads: Gradients, sources: Sequence[Tensor | None]) -> Gradients:
        return derivatives.once(*self._names(), grads, sources)

    def _names(self) -> tuple[str, str]:
        """Return the call as its user wrote it, and the arguments that make it differentiable."""
        remedy = "impl='torch'"
        if self.process_group is not None:
            remedy += ", process_group=None"
        return f"{self.function}(impl={self.impl!r})", remedy


def _keep(
    ctx: Any,
    is_direct: bool,
    call: _Call,
    operands: Sequence[Tensor | None],
    beta: Tensor | None,
    results: tuple[Tensor, ...],
) -> Any:
    """Keep what the backward pass reads; of `results`, which it returns, the first has a gradient.

    Direct callers get the first alone.
    """
    ctx.call, ctx.is_direct = call, is_direct
    ctx.save_for_backward(*operands, *results[1:])
    ctx.beta_strides = None if beta is None else beta.stride()
    if is_direct:
        return results[0]
    ctx.mark_non_differentiable(*results[1:])
    ctx.set_materialize_grads(False)
    return results


def _backward(
    ctx: Any,
    grad: Tensor,
    by_kernels: Callable[..., Gradients],
    by_pytorch: Callable[..., Gradients],
) -> Gradients:
    """Compute the gradients by kernels, or by PyTorch if they have to be differentiable as well."""
    saved = ctx.saved_tensors
    is_direct = ctx.is_direct and direct.takes_gradient(grad)
    if is_direct or not direct.beyond_backward():
        return by_kernels(ctx, is_direct, *saved, grad)
    call: _Call = ctx.call
    if call.automatic and call.process_group is None:
        return by_pytorch(ctx, *saved, grad)
    if direct.in_transform() or direct.in_forward_mode():
        raise call.refusal()
    with torch.no_grad():
        grads = by_kernels(ctx, False, *saved, grad)
    return call.once(grads, (grad, *saved))


def _of_parameter(parameter: Tensor | None, grad: Tensor | None) -> Tensor:
    assert parameter is not None and grad is not None
    return layout.parameter_gradient(grad, parameter.stride())


# ---- after a depthwise convolution ---------------------------------------------------------------


class _Convolved(torch.autograd.Function):
    """The backward pass of `depthwise_conv2d_batch_norm_training` and `..._frozen`."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: None) -> Gradients:
        grads = _backward(ctx, grad, _convolved_gradients, _convolved_gradients_of_pytorch)
        return None, None, *grads, None, None  # running statistics have none

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise ctx.call.refusal()


class _ConvolvedTraining(_Convolved):
    @staticmethod
    def forward(
        ctx: Any, is_direct: bool, settings: tuple[Any, ...], *tensors: Tensor | None
    ) -> Any:
        operator = depthwise_conv2d_batch_norm_training
        results = operator.results(is_direct, *tensors, *settings)
        _, process_group, residual, *rest = settings
        call = _Call(_CONVOLVED, residual, process_group, True, *rest)
        return _keep_convolved(ctx, is_direct, call, tensors, results)


class _ConvolvedFrozen(_Convolved):
    @staticmethod
    def forward(
        ctx: Any, is_direct: bool, settings: tuple[Any, ...], *tensors: Tensor | None
    ) -> Any:
        _, residual, *rest = settings
        results = depthwise_conv2d_batch_norm_frozen.results(
            is_direct, *tensors, True, residual, *rest
        )
        call = _Call(_CONVOLVED, residual, None, False, *rest)
        return _keep_convolved(ctx, is_direct, call, tensors, results)


def _keep_convolved(
    ctx: Any,
    is_direct: bool,
    call: _Call,
    tensors: Sequence[Any],
    results: tuple[Tensor, ...],
) -> Any:
    input, weight, bias, gamma, beta, *_ = tensors
    _, _, needs_input, needs_weight, *_ = ctx.needs_input_grad
    # Kernels read the input for the weight gradient alone. The input gradient depends on it through
    # the convolution, of which a second derivative has to know.
    if not needs_input and not needs_weight and not call.automatic:
        input = None
    return _keep(ctx, is_direct, call, (input, weight, bias, gamma), beta, results)


def _convolved_gradients(
    ctx: Any,
    is_direct: bool,
    input: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    value: Tensor,
    normalisation: Tensor,
    grad: Tensor,
) -> Gradients:
    call: _Call = ctx.call
    needed = ctx.needs_input_grad[2:7]
    operands = (grad, input, weight, value, normalisation)
    settings = (call.of_batch, call.process_group, call.residual, call.activation, call.impl)
    if is_direct:
        results = _convolved_backward(*operands, needed, *settings, may_round=True)
    else:
        results = depthwise_conv2d_batch_norm_backward.run(*operands, needed, *settings)
    grad_input, grad_weight, grad_bias, grad_gamma, grad_beta = results
    return (
        grad_input if needed[0] else None,
        _of_parameter(weight, grad_weight) if needed[1] else None,
        _of_parameter(bias, grad_bias) if needed[2] else None,
        _of_parameter(gamma, grad_gamma) if needed[3] else None,
        layout.parameter_gradient(grad_beta, ctx.beta_strides) if needed[4] else None,
    )


def _convolved_gradients_of_pytorch(
    ctx: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    value: Tensor,
    normalisation: Tensor,
    grad: Tensor,
) -> Gradients:
    call: _Call = ctx.call

    def function(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
    ) -> Tensor:
        value = reference.forward(input, weight, bias)
        before = PreActivation(value, None, call.activation)
        added = input if call.residual else None
        return call.in_pytorch(before, added, (gamma, beta), normalisation)

    operands = (input, weight, bias, gamma, _any_beta(ctx, normalisation))
    return derivatives.of_pytorch(function, operands, ctx.needs_input_grad[2:7], grad)


def _any_beta(ctx: Any, normalisation: Tensor) -> Tensor | None:
    """Make a beta of any value, on which no gradient depends."""
    if ctx.beta_strides is None:
        return None
    return torch.zeros_like(row(normalisation, Normalisation, "shift"))


def _convolved_training(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    process_group: str | None,
    residual: bool,
    activation: str,
    eps: float,
    impl: str,
    automatic: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    steps = dispatch.backend(impl)
    if input.shape[0] == 0:
        value, moments = layout.empty_like_input(input), _no_moments(input)
    else:
        value, moments = steps.forward_moments(input, weight, bias, activation)
    norm = BatchNorm(gamma, beta, running_mean, running_var, True, momentum, eps)
    normalisation = _normalisation_of_batch(steps, moments, norm, process_group)
    before = PreActivation(value, None, activation)
    added = input if residual else None
    return _normalise(steps, before, normalisation, added), value, normalisation


def _fake_convolved_training(input: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    output, value = layout.empty_like_input(input), layout.empty_like_input(input)
    return output, value, empty_sums(input, len(Normalisation._fields), input.shape[1])


def _convolved_frozen(
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
    impl: str,
    automatic: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    steps = dispatch.backend(impl)
    norm = BatchNorm(gamma, beta, running_mean, running_var, False, 0.0, eps)
    normalisation = steps.running_normalisation(norm)
    if keep_value:
        value = steps.forward(input, weight, bias)
        before = PreActivation(value, None, activation)
        output = _normalise(steps, before, normalisation, input if residual else None)
        return output, value, normalisation
    if input.shape[0] == 0:
        return layout.empty_like_input(input), nothing(input), normalisation
    epilogue = Epilogue(normalisation, activation, residual)
    output = steps.forward_normalised(input, weight, bias, epilogue)
    return output, nothing(input), normalisation


def _fake_convolved_frozen(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    keep_value: bool,
    *_: object,
) -> tuple[Tensor, Tensor, Tensor]:
    output = layout.empty_like_input(input)
    value = layout.empty_like_input(input) if keep_value else nothing(input)
    return output, value, empty_sums(input, len(Normalisation._fields), input.shape[1])


def _convolved_backward(
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor,
    value: Tensor,
    normalisation: Tensor,
    needed: Sequence[bool],
    of_batch: bool,
    process_group: str | None,
    residual: bool,
    activation: str,
    impl: str,
    may_round: bool = False,
) -> tuple[Tensor, ...]:
    needs_input, needs_weight, needs_bias, *needs_affine = needed
    needs_value = needs_input or needs_weight or needs_bias
    steps = dispatch.backend(impl)
    grad = steps.arranged(grad, layout.is_channels_last(value))
    before = PreActivation(value, None, activation)
    sums, grad_gamma, grad_beta = _affine_gradients(
        steps, (before, grad, normalisation), needs_value, needs_affine, of_batch, process_group
    )
    if value.shape[0] == 0:
        shapes = _fake_convolved_backward(grad, input, weight, value, normalisation, needed)
        return tuple(each.zero_() for each in shapes)
    grad_input = grad_weight = grad_bias = None
    if needs_input or needs_weight:
        call = FusedBackward(
            input if needs_weight else None,
            weight if needs_input else None,
            value,
            grad,
            normalisation,
            sums,
            activation,
            residual,
            weight.shape[-1],
            needs_bias,
            may_round,
        )
        grad_input, grad_weight, grad_bias = steps.fused_backward(call)
    elif needs_bias:
        _, grad_bias = steps.value_gradient(before, grad, normalisation, sums, True)
    return (
        nothing(value) if grad_input is None else grad_input,
        nothing(normalisation) if grad_weight is None else grad_weight,
        nothing(normalisation) if grad_bias is None else grad_bias,
        grad_gamma,
        grad_beta,
    )


def _fake_convolved_backward(
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor,
    value: Tensor,
    normalisation: Tensor,
    needed: Sequence[bool],
    *_: object,
) -> tuple[Tensor, ...]:
    channels, size = weight.shape[0], weight.shape[-1]
    return (
        layout.empty_like_input(value) if needed[0] else nothing(value),
        normalisation.new_empty((channels, 1, size, size) if needed[1] else 0),
        *(normalisation.new_empty(channels if need else 0) for need in needed[2:]),
    )


depthwise_conv2d_batch_norm_training = differentiable_operator(
    "depthwise_conv2d_batch_norm_training(Tensor input, Tensor weight, Tensor? bias, "
    "Tensor? gamma, Tensor? beta, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
    "float momentum, str? process_group, bool residual, str activation, float eps, str impl, "
    "bool automatic=False) -> (Tensor output, Tensor value, Tensor normalisation)",
    _convolved_training,
    _fake_convolved_training,
    _ConvolvedTraining,
)
depthwise_conv2d_batch_norm_frozen = differentiable_operator(
    "depthwise_conv2d_batch_norm_frozen(Tensor input, Tensor weight, Tensor? bias, "
    "Tensor? gamma, Tensor? beta, Tensor running_mean, Tensor running_var, bool keep_value, "
    "bool residual, str activation, float eps, str impl, bool automatic=False) "
    "-> (Tensor output, Tensor value, Tensor normalisation)",
    _convolved_frozen,
    _fake_convolved_frozen,
    _ConvolvedFrozen,
)
depthwise_conv2d_batch_norm_backward = operator(
    "depthwise_conv2d_batch_norm_backward(Tensor grad, Tensor? input, Tensor weight, "
    "Tensor value, Tensor normalisation, bool[] needed, bool of_batch, str? process_group, "
    "bool residual, str activation, str impl) -> (Tensor input, Tensor weight, Tensor bias, "
    "Tensor gamma, Tensor beta)",
    _convolved_backward,
    _fake_convolved_backward,
)


# ---- of any tensor -------------------------------------------------------------------------------


class _Alone(torch.autograd.Function):
    """The backward pass of `activated_batch_norm_training` and `..._frozen`."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: None) -> Gradients:
        grads = _backward(ctx, grad, _alone_gradients, _alone_gradients_of_pytorch)
        return None, None, *grads, None, None  # running statistics have none

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise ctx.call.refusal()


class _AloneTraining(_Alone):
    @staticmethod
    def forward(
        ctx: Any, is_direct: bool, settings: tuple[Any, ...], *tensors: Tensor | None
    ) -> Any:
        results = activated_batch_norm_training.results(is_direct, *tensors, *settings)
        _, process_group, *rest = settings
        call = _Call(_ALONE, False, process_group, True, *rest)
        return _keep_alone(ctx, is_direct, call, tensors, results)


class _AloneFrozen(_Alone):
    @staticmethod
    def forward(
        ctx: Any, is_direct: bool, settings: tuple[Any, ...], *tensors: Tensor | None
    ) -> Any:
        results = activated_batch_norm_frozen.results(is_direct, *tensors, *settings)
        call = _Call(_ALONE, False, None, False, *settings)
        return _keep_alone(ctx, is_direct, call, tensors, results)


def _keep_alone(
    ctx: Any,
    is_direct: bool,
    call: _Call,
    tensors: Sequence[Any],
    results: tuple[Tensor, ...],
) -> Any:
    value, bias, _, gamma, beta, *_ = tensors
    return _keep(ctx, is_direct, call, (value, bias, gamma), beta, results)


def _alone_gradients(
    ctx: Any,
    is_direct: bool,
    value: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    normalisation: Tensor,
    grad: Tensor,
) -> Gradients:
    call: _Call = ctx.call
    needs_value, needs_bias, needs_residual, needs_gamma, needs_beta = ctx.needs_input_grad[2:7]
    needed = (needs_value, needs_bias, needs_gamma, needs_beta)
    residual_grad = grad if needs_residual else None
    if not any(needed):
        return None, None, residual_grad, None, None
    operator = activated_batch_norm_backward
    run = operator.kernel if is_direct else operator.run
    settings = (call.of_batch, call.process_group, call.activation, call.impl)
    grad_value, grad_bias, grad_gamma, grad_beta = run(
        grad, value, bias, normalisation, needed, *settings
    )
    return (
        grad_value if needs_value else None,
        _of_parameter(bias, grad_bias) if needs_bias else None,
        residual_grad,
        _of_parameter(gamma, grad_gamma) if needs_gamma else None,
        layout.parameter_gradient(grad_beta, ctx.beta_strides) if needs_beta else None,
    )


def _alone_gradients_of_pytorch(
    ctx: Any,
    value: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    normalisation: Tensor,
    grad: Tensor,
) -> Gradients:
    call: _Call = ctx.call
    needed = list(ctx.needs_input_grad[2:7])
    needs_residual = needed.pop(2)

    def function(
        value: Tensor, bias: Tensor | None, gamma: Tensor | None, beta: Tensor | None
    ) -> Tensor:
        before = PreActivation(value, bias, call.activation)
        return call.in_pytorch(before, None, (gamma, beta), normalisation)

    operands = (value, bias, gamma, _any_beta(ctx, normalisation))
    grads = derivatives.of_pytorch(function, operands, needed, grad)
    return (*grads[:2], grad if needs_residual else None, *grads[2:])


def _alone_training(
    value: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    process_group: str | None,
    activation: str,
    eps: float,
    impl: str,
    automatic: bool = False,
) -> tuple[Tensor, Tensor]:
    steps = dispatch.backend(impl)
    before = PreActivation(value, bias, activation)
    moments = _no_moments(value) if value.shape[0] == 0 else steps.moments(before)
    norm = BatchNorm(gamma, beta, running_mean, running_var, True, momentum, eps)
    normalisation = _normalisation_of_batch(steps, moments, norm, process_group)
    return _normalise(steps, before, normalisation, residual), normalisation


def _alone_frozen(
    value: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    activation: str,
    eps: float,
    impl: str,
    automatic: bool = False,
) -> tuple[Tensor, Tensor]:
    steps = dispatch.backend(impl)
    norm = BatchNorm(gamma, beta, running_mean, running_var, False, 0.0, eps)
    normalisation = steps.running_normalisation(norm)
    before = PreActivation(value, bias, activation)
    return _normalise(steps, before, normalisation, residual), normalisation


def _fake_alone(value: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return layout.empty_like_input(value), empty_sums(
        value, len(Normalisation._fields), value.shape[1]
    )


def _alone_backward(
    grad: Tensor,
    value: Tensor,
    bias: Tensor | None,
    normalisation: Tensor,
    needed: Sequence[bool],
    of_batch: bool,
    process_group: str | None,
    activation: str,
    impl: str,
) -> tuple[Tensor, ...]:
    needs_value, needs_bias, *needs_affine = needed
    steps = dispatch.backend(impl)
    grad = steps.arranged(grad, layout.is_channels_last(value))
    before = PreActivation(value, bias, activation)
    sums, grad_gamma, grad_beta = _affine_gradients(
        steps,
        (before, grad, normalisation),
        needs_value or needs_bias,
        needs_affine,
        of_batch,
        process_group,
    )
    if value.shape[0] == 0:
        shapes = _fake_alone_backward(grad, value, bias, normalisation, needed)
        return tuple(each.zero_() for each in shapes)
    grad_value = grad_bias = None
    if needs_value or needs_bias:
        grad_value, grad_bias = steps.value_gradient(before, grad, normalisation, sums, needs_bias)
    return (
        grad_value if grad_value is not None and needs_value else nothing(value),
        nothing(normalisation) if grad_bias is None else grad_bias,
        grad_gamma,
        grad_beta,
    )


def _fake_alone_backward(
    grad: Tensor,
    value: Tensor,
    bias: Tensor | None,
    normalisation: Tensor,
    needed: Sequence[bool],
    *_: object,
) -> tuple[Tensor, ...]:
    channels = value.shape[1]
    return (
        layout.empty_like_input(value) if needed[0] else nothing(value),
        *(normalisation.new_empty(channels if need else 0) for need in needed[1:]),
    )


activated_batch_norm_training = differentiable_operator(
    "activated_batch_norm_training(Tensor value, Tensor? bias, Tensor? residual, Tensor? gamma, "
    "Tensor? beta, Tensor(a!)? running_mean, Tensor(b!)? running_var, float momentum, "
    "str? process_group, str activation, float eps, str impl, bool automatic=False) "
    "-> (Tensor output, Tensor normalisation)",
    _alone_training,
    _fake_alone,
    _AloneTraining,
)
activated_batch_norm_frozen = differentiable_operator(
    "activated_batch_norm_frozen(Tensor value, Tensor? bias, Tensor? residual, Tensor? gamma, "
    "Tensor? beta, Tensor running_mean, Tensor running_var, str activation, float eps, str impl, "
    "bool automatic=False) -> (Tensor output, Tensor normalisation)",
    _alone_frozen,
    _fake_alone,
    _AloneFrozen,
)
activated_batch_norm_backward = operator(
    "activated_batch_norm_backward(Tensor grad, Tensor value, Tensor? bias, Tensor normalisation, "
    "bool[] needed, bool of_batch, str? process_group, str activation, str impl) "
    "-> (Tensor value, Tensor bias, Tensor gamma, Tensor beta)",
    _alone_backward,
    _fake_alone_backward,
)


# ---- steps of both -------------------------------------------------------------------------------


def _normalisation_of_batch(
    steps: Backend,
    moments: Tensor,
    norm: BatchNorm,
    process_group: str | None,
) -> Tensor:
    """Return the normalisation (5, C) by the moments of all processes; update statistics."""
    parts = moments
    if process_group is not None:
        parts = _of_all_processes(moments, _process_group(process_group))
    normalisation = steps.batch_normalisation(parts, norm)
    if norm.running_mean is not None and norm.running_var is not None:
        # Kernels write through addresses, which autograd does not see.
        torch.autograd.graph.increment_version((norm.running_mean, norm.running_var))
    return normalisation


def _no_moments(image: Tensor) -> Tensor:
    return empty_sums(image, len(Moments._fields), image.shape[1]).zero_()


def _normalise(
    steps: Backend, before: PreActivation, normalisation: Tensor, residual: Tensor | None
) -> Tensor:
    if before.value.shape[0] == 0:
        return layout.empty_like_input(before.value)
    return steps.normalise(before, normalisation, residual)


def _affine_gradients(
    steps: Backend,
    tensors: tuple[PreActivation, Tensor, Tensor],
    needs_value: bool,
    needs_affine: Sequence[bool],
    of_batch: bool,
    process_group: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sums behind the gradient of values, over all processes, and those of parameters.

    The latter are of this process alone, as those of all parameters.

    Args:
        tensors: the argument of the activation, the gradient of the output, the normalisation.
        needs_value: whether a gradient of the values is computed from the sums.
        needs_affine: whether the gradients of gamma and beta are wanted.
    """
    before, _, normalisation = tensors
    value = before.value
    if not any(needs_affine) and not (needs_value and of_batch):
        # Running statistics do not depend on the values, so the sums do not count.
        sums = normalisation.new_zeros((len(GradientSums._fields), value.shape[1]))
        return sums, nothing(sums), nothing(sums)
    if value.shape[0] == 0:
        sums = normalisation.new_zeros((len(GradientSums._fields), value.shape[1]))
    else:
        sums = steps.gradient_sums(*tensors)
    grad_gamma = grad_beta = None
    if any(needs_affine):
        grad_gamma, grad_beta = steps.affine_gradients(sums, normalisation, needs_affine)
    if process_group is not None and of_batch and needs_value:
        dist.all_reduce(sums, group=_process_group(process_group))
    return (
        sums,
        nothing(sums) if grad_gamma is None else grad_gamma,
        nothing(sums) if grad_beta is None else grad_beta,
    )


def _of_all_processes(moments: Tensor, process_group: ProcessGroup) -> Tensor:
    """Gather moments, (processes, 3, C), by rank: every process merges the same parts."""
    rows, channels = moments.shape
    # gloo asks for the parts one below the other.
    parts = moments.new_empty((process_group.size() * rows, channels))
    dist.all_gather_into_tensor(parts, moments, group=process_group)
    return parts.unflatten(0, (-1, rows))


def _process_group(name: str) -> ProcessGroup:
    group: ProcessGroup = dist.distributed_c10d._resolve_process_group(name)  # type: ignore[arg-type]
    return group
