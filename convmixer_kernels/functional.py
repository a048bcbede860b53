"""The public functions: argument checks, autocast, and the choice of implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from convmixer_kernels import (
    arguments,
    direct,
    dispatch,
    inference,
    inference_tables,
    ops,
    sharding,
)
from convmixer_kernels.backends import reference
from convmixer_kernels.operands import BatchNorm, PreActivation

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def depthwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    dilation: int | tuple[int, int] = 1,
    impl: str = "auto",
) -> Tensor:
    """Depthwise convolution with stride 1 and 'same' zero padding.

    Equivalent to ``F.conv2d(input, weight, bias, padding="same", dilation=dilation, groups=C)``:
    every channel is correlated with a filter of its own, and where the padding is odd the extra row
    or column lies at the bottom or right. Sums are taken in float32.

    Args:
        input: (N, C, H, W), any N >= 0. Contiguous, channels_last, CNHW and slices of images or
            channels are taken as they are; ``"triton"`` copies channels_last to contiguous and
            back.
        weight: (C, 1, height, width), the dtype of `input`. ``"cuda"`` and ``"triton"`` take
            filters of which the taps reach over up to 31 rows and columns of the image. Square ones
            of k = 3, 5, 7, 8, 9, 11, 13, 15 without dilation have kernels of their own. The others
            run on a kernel that skips rows without taps (``"cuda"``, contiguous; those that reach
            over more than 15 in both, copied to contiguous and back in channels_last), or as a
            square filter with zeros between and around the taps.
        bias: (C,) of any floating dtype, or None.
        dilation: rows and columns of the image from tap to tap, an integer or a pair.
        impl: ``"auto"`` (on a GPU in half precision the first that can serve the input, else
            PyTorch; see `explain`), ``"cuda"``, ``"triton"`` or ``"torch"``. A named implementation
            runs or raises; no other takes its place.

    Returns:
        (N, C, H, W) in the dtype and memory format of `input`.

    Under autocast, `input` and `weight` are cast to the autocast dtype and `bias` is left as it is.
    Gradients are computed only for what requires them; ``"cuda"`` and ``"triton"`` are
    differentiable once, backward: `torch.func` and forward-mode derivatives take ``"torch"``. In
    those two, an input that is not finite may reach outputs of its plane that the filter does not
    (zeros of a banded matrix are multiplied by it as well).

    Raises:
        TypeError: `input`, `weight` or `bias` is no tensor.
        ValueError: an argument has a wrong shape, dtype or device, or `impl` cannot serve it.
        RuntimeError: `impl` is not available here; the message says why and what helps.
    """
    tensors = (input, weight, bias)
    if direct.takes((input, weight), (bias,)):
        steps = arguments.check_dilation(dilation)
        known = dispatch.convolution_at_once(input, weight, bias, impl, dilation=steps)
        if known is not None and direct.records(tensors):
            return ops.depthwise_conv2d.recorded(tensors, (known, impl == "auto", steps))
        if known is not None:
            return dispatch.backend(known).forward(input, weight, bias, steps)
    if has_torch_function(tensors):
        return handle_torch_function(
            depthwise_conv2d, tensors, *tensors, dilation=dilation, impl=impl
        )
    steps = arguments.check_dilation(dilation)
    input, weight = arguments.convolution_operands(input, weight, bias)
    name = dispatch.resolve(input, weight, impl, dilation=steps)
    if name == "torch":
        return reference.forward(input, weight, bias, steps)
    if type(input) is not Tensor:
        sharding.prepare(input)
    output: Tensor = ops.depthwise_conv2d(input, weight, bias, name, impl == "auto", steps)
    return output


def depthwise_conv2d_gelu_batch_norm(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    residual: bool = False,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "gelu",
    impl: str = "auto",
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """The convolution half of a ConvMixer block (equation 2): ``BN(GELU(depthwise(x) + b)) + x``.

    Equivalent to `depthwise_conv2d`, the activation, and ``F.batch_norm(..., training)``, plus
    `input` if `residual`, but in fewer passes over memory: evaluation is one kernel, which reads
    `input` and writes the output. Training keeps `input` and the convolution for the backward pass.

    Args:
        input: (N, C, H, W), any N >= 0, in the layouts that `depthwise_conv2d` takes.
        weight: (C, 1, k, k), the dtype of `input`. ``"cuda"`` and ``"triton"`` take k = 3, 5, 7, 8,
            9, 11, 13, 15.
        bias: (C,) of any floating dtype, or None.
        gamma, beta: scale and shift after normalisation, (C,) of any floating dtype, or None for 1
            and 0.
        running_mean, running_var: (C,) of any floating dtype, or both None: then statistics are
            always those of the batch. With `training` they are updated in place, the variance
            without bias, as by ``F.batch_norm``.
        residual: whether to add `input`.
        training: normalise by the mean and variance of the batch, or else by the running ones.
        momentum: weight of the batch in the running statistics. A cumulative average
            (``momentum=None`` of `nn.BatchNorm2d`) is 1 / num_batches_tracked here.
        eps: added to the variance.
        activation: ``"gelu"`` (exact), ``"relu"`` or ``"identity"``.
        impl: as in `depthwise_conv2d`.
        process_group: with it, statistics of the batch are those of the batches of all its
            processes together, whose sizes may differ; so are the sums behind the gradients of
            `input`, `weight` and `bias`. All processes must call the function, and its backward
            pass, in the same order.

    Returns:
        (N, C, H, W) in the dtype and memory format of `input`.

    Under autocast, `input` and `weight` are cast to the autocast dtype; a residual that has another
    dtype is added as PyTorch adds it, and decides the dtype of the output. Sums, statistics and
    normalisation are in float32. Gradients are computed only for what requires them, and, for
    batches of several processes and for ``"cuda"`` and ``"triton"``, are differentiable once, as
    those of `depthwise_conv2d`.

    Raises:
        ValueError: an argument has a wrong shape, dtype or device, `impl` cannot serve it, or a
            batch to normalise by has one value per channel.
        RuntimeError: `impl` is not available here; the message says why and what helps.
    """
    tensors = (input, weight, bias, gamma, beta, running_mean, running_var)
    if has_torch_function(tensors):
        return handle_torch_function(
            depthwise_conv2d_gelu_batch_norm,
            tensors,
            *tensors,
            residual=residual,
            training=training,
            momentum=momentum,
            eps=eps,
            activation=activation,
            impl=impl,
            process_group=process_group,
        )
    if not training and _infers_directly((input, weight), (), tensors):
        known = dispatch.convolution_at_once(input, weight, None, impl, fused=True)
        if known is not None and arguments.fits_batch_norm(momentum, eps, activation):
            running = inference.Norm(running_mean, running_var, gamma, beta, eps)
            inferred = inference.convolved(
                input, weight, bias, running, activation, residual, known
            )
            if inferred is not None:
                return inferred
    if training and direct.takes((input, weight), tensors[2:]):
        known = dispatch.convolution_at_once(input, weight, bias, impl, fused=True)
        per_channel = (gamma, beta, running_mean, running_var)
        if known is not None and _trains_at_once(input, per_channel, momentum, eps, activation):
            output = ops.depthwise_conv2d_batch_norm_training.directly(
                (input, weight, arguments.precise(bias, input), *per_channel),
                (momentum, _name(process_group), residual, activation, eps, known, impl == "auto"),
            )
            inference_tables.trained((*per_channel, bias))
            return output
    arguments.check_convolution(input, weight, bias, square=True)
    arguments.check_batch_norm(
        input, gamma, beta, running_mean, running_var, momentum, eps, activation
    )
    outer = input
    input, weight = arguments.autocast(input, weight)
    arguments.check_same_dtype(input, weight)
    name = dispatch.resolve(input, weight, impl, fused=True)
    norm = _batch_norm(
        input, gamma, beta, running_mean, running_var, training, momentum, eps, process_group
    )
    arguments.check_values_per_channel(input, norm)
    precise_bias = arguments.precise(bias, input)
    inside = residual and outer.dtype == input.dtype
    if _in_pytorch(norm, name):
        value = reference.forward(input, weight, precise_bias)
        added = input if inside else None
        before = PreActivation(value, None, activation)
        output = reference.activated_batch_norm(before, added, norm)
    else:
        statistics = (norm.running_mean, norm.running_var)
        operands = (input, weight, precise_bias, norm.gamma, norm.beta, *statistics)
        settings = (inside, activation, eps, name, impl == "auto")
        if norm.of_batch:
            group = _name(norm.process_group)
            output, *_ = ops.depthwise_conv2d_batch_norm_training(
                *operands, momentum, group, *settings
            )
        else:
            output, *_ = ops.depthwise_conv2d_batch_norm_frozen(*operands, False, *settings)
    _after_training(running_mean, running_var, norm, (gamma, beta, bias))
    return output + outer if residual and not inside else output


def gelu_batch_norm(
    input: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "gelu",
    impl: str = "auto",
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Activation and batch normalisation of any tensor: ``BN(GELU(x + b))`` (+ residual).

    Equivalent to the activation and ``F.batch_norm(..., training)``, in fewer passes over memory.
    In a ConvMixer block it follows the pointwise convolution (equation 3), whose bias it takes.

    Args:
        input: (N, C, H, W), any N >= 0. Contiguous, channels_last, CNHW and slices of images or
            channels are taken as they are.
        bias: (C,) of any floating dtype, added before the activation in float32, or None.
        residual: of the shape, dtype and device of `input`, added to the result, or None.
        gamma, beta, running_mean, running_var, training, momentum, eps, activation, impl,
            process_group: as in `depthwise_conv2d_gelu_batch_norm`.

    Returns:
        (N, C, H, W) in the dtype and memory format of `input`.

    Like ``F.batch_norm`` it leaves dtypes alone under autocast. Gradients are computed only for
    what requires them, and, for batches of several processes and for ``"cuda"`` and ``"triton"``,
    are differentiable once, as those of `depthwise_conv2d`.

    Raises:
        ValueError: an argument has a wrong shape, dtype or device, `impl` cannot serve it, or a
            batch to normalise by has one value per channel.
        RuntimeError: `impl` is not available here; the message says why and what helps.
    """
    tensors = (input, gamma, beta, running_mean, running_var)
    if has_torch_function((*tensors, bias, residual)):
        return handle_torch_function(
            gelu_batch_norm,
            (*tensors, bias, residual),
            *tensors,
            bias=bias,
            residual=residual,
            training=training,
            momentum=momentum,
            eps=eps,
            activation=activation,
            impl=impl,
            process_group=process_group,
        )
    if not training and _infers_directly((input,), (residual,), (*tensors, bias, residual)):
        known = dispatch.image_at_once(input, None, residual, impl)
        if known is not None and arguments.fits_batch_norm(momentum, eps, activation):
            running = inference.Norm(running_mean, running_var, gamma, beta, eps)
            inferred = inference.normalised(input, bias, running, activation, residual, known)
            if inferred is not None:
                return inferred
    if training and direct.takes((input,), (*tensors[1:], bias, residual)):
        known = dispatch.image_at_once(input, bias, residual, impl)
        per_channel = (gamma, beta, running_mean, running_var)
        if known is not None and _trains_at_once(input, per_channel, momentum, eps, activation):
            output = ops.activated_batch_norm_training.directly(
                (input, arguments.precise(bias, input), residual, *per_channel),
                (momentum, _name(process_group), activation, eps, known, impl == "auto"),
            )
            inference_tables.trained((*per_channel, bias))
            return output
    arguments.check_image(input)
    arguments.check_per_channel("bias", bias, input)
    arguments.check_residual(input, residual)
    arguments.check_batch_norm(
        input, gamma, beta, running_mean, running_var, momentum, eps, activation
    )
    name = dispatch.resolve(input, None, impl, fused=True)
    norm = _batch_norm(
        input, gamma, beta, running_mean, running_var, training, momentum, eps, process_group
    )
    arguments.check_values_per_channel(input, norm)
    precise_bias = arguments.precise(bias, input)
    if _in_pytorch(norm, name):
        before = PreActivation(input, precise_bias, activation)
        output = reference.activated_batch_norm(before, residual, norm)
    else:
        operands = (input, precise_bias, residual, norm.gamma, norm.beta)
        statistics = (norm.running_mean, norm.running_var)
        settings = (activation, eps, name, impl == "auto")
        if norm.of_batch:
            group = _name(norm.process_group)
            output, _ = ops.activated_batch_norm_training(
                *operands, *statistics, momentum, group, *settings
            )
        else:
            output, _ = ops.activated_batch_norm_frozen(*operands, *statistics, *settings)
    _after_training(running_mean, running_var, norm, (gamma, beta, bias))
    return output


def _infers_directly(
    required: tuple[Tensor, ...],
    optional: tuple[Tensor | None, ...],
    differentiable: tuple[Tensor | None, ...],
) -> bool:
    return direct.takes(required, optional) and not direct.records(differentiable)


def _trains_at_once(
    input: Tensor,
    per_channel: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    momentum: float,
    eps: float,
    activation: str,
) -> bool:
    """Tell whether arguments of training are right, and kernels read its tensors as they are.

    Args:
        per_channel: gamma, beta, running mean and running variance.
    """
    _, _, running_mean, running_var = per_channel
    channels = input.shape[1]
    if (running_mean is None) != (running_var is None) or input.numel() == channels:
        return False
    if not arguments.fits_batch_norm(momentum, eps, activation):
        return False
    device = input.device
    for each in per_channel:
        if each is not None and not (
            each.dtype is torch.float32
            and each.shape == (channels,)
            and each.is_contiguous()
            and each.device == device
        ):
            return False
    return True


def _batch_norm(
    input: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    process_group: ProcessGroup | None,
) -> BatchNorm:
    return BatchNorm(
        arguments.precise(gamma, input),
        arguments.precise(beta, input),
        arguments.precise(running_mean, input),
        arguments.precise(running_var, input),
        training or running_mean is None,
        momentum,
        eps,
        process_group,
    )


def _in_pytorch(norm: BatchNorm, name: str) -> bool:
    """Tell whether PyTorch's own operations run, which cannot merge batches of processes."""
    return name == "torch" and not (norm.of_batch and norm.process_group is not None)


def _name(process_group: ProcessGroup | None) -> str | None:
    return None if process_group is None else process_group.group_name


def _after_training(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    norm: BatchNorm,
    parameters: tuple[Tensor | None, ...],
) -> None:
    """Store statistics that were updated in copies of another precision, and tell of a graph."""
    if norm.of_batch:
        for buffer, updated in ((running_mean, norm.running_mean), (running_var, norm.running_var)):
            if buffer is not None and updated is not None and updated is not buffer:
                buffer.copy_(updated)
    if torch.compiler.is_compiling():
        return
    if norm.of_batch:
        inference_tables.forget((running_mean, running_var))
        inference_tables.trained((running_mean, running_var))
    if torch.is_grad_enabled():
        inference_tables.trained(parameters)
