"""Convolution fused with activation, batch normalisation and residual, on the CUDA kernels.

The steps are those of `reference.batch_norm`, which spells out what each computes and what its
tables hold. For whole planes (8x8, 16x16, 32x32 on 16-byte boundaries) the convolution emits the
moments of its activation, and one kernel is the backward pass; any other input takes the same steps
in passes of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convmixer_kernels.backends.cuda import convolution, layouts
from convmixer_kernels.backends.cuda.convolution import ACTIVATIONS
from convmixer_kernels.backends.cuda.device import Located, address, current, launcher, located
from convmixer_kernels.channel_tables import GradientSums, Moments, Normalisation
from convmixer_kernels.filters import Filter
from convmixer_kernels.layout import ImageLayout
from convmixer_kernels.operands import BatchNorm, Epilogue, FusedBackward, PreActivation

# `ElementwisePass` of csrc/arguments.h has these numbers; a pass makes so many sums of a channel.
_MOMENTS, _NORMALISE, _SUM_GRADIENTS, _VALUE_GRADIENT = range(4)
_ROWS = {
    _MOMENTS: len(Moments._fields),
    _NORMALISE: 0,
    _SUM_GRADIENTS: len(GradientSums._fields),
    _VALUE_GRADIENT: 1,
}
_NONE: Located = (0, (0, 0))


def forward_normalised(
    input: Tensor, weight: Tensor, bias: Tensor | None, epilogue: Epilogue
) -> Tensor:
    """Convolve, activate, normalise and add `input` if asked, in one kernel."""
    return convolution.forward(input, weight, bias, epilogue=epilogue)


def forward_moments(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    if not _are_whole(input):
        value = convolution.forward(input, weight, bias)
        return value, moments(PreActivation(value, None, activation))
    kernels, context = launcher(input)
    image = ImageLayout.of(input)
    value = image.empty(input)
    weight = weight.contiguous()
    if bias is not None:
        bias = convolution.precise(bias)
    kernel_size = weight.shape[-1]
    splits = kernels.whole_plane_splits(context, image.shape, kernel_size, False)
    tables = input.new_empty(
        (splits + 1, len(Moments._fields), image.shape[1]), dtype=torch.float32
    )
    merged = tables[splits]
    with current(context):
        kernels.moments_forward(
            context,
            image.shape,
            kernel_size,
            located(input, image.strides[:2]),
            address(weight),
            address(bias),
            located(value, image.output_strides[:2], written=True),
            ACTIVATIONS[activation],
            address(tables, written=True),
            address(merged, written=True),
        )
    return value, merged


def moments(before: PreActivation) -> Tensor:
    """Return count, mean and squared deviations of an activation: float32 (3, C)."""
    sums = _elementwise_pass(_MOMENTS, before, None, None)
    assert sums is not None
    return sums


def batch_normalisation(moments: Tensor, norm: BatchNorm) -> Tensor:
    moments = moments.contiguous()
    return _normalisation(moments, moments.shape[0], norm)


def running_normalisation(norm: BatchNorm) -> Tensor:
    return _normalisation(None, 0, norm)


def normalise(before: PreActivation, normalisation: Tensor, residual: Tensor | None) -> Tensor:
    output = ImageLayout.of(before.value).empty(before.value)
    _elementwise_pass(_NORMALISE, before, residual, output, normalisation)
    return output


def gradient_sums(before: PreActivation, grad: Tensor, normalisation: Tensor) -> Tensor:
    sums = _elementwise_pass(_SUM_GRADIENTS, before, grad, None, normalisation)
    assert sums is not None
    return sums


def value_gradient(
    before: PreActivation, grad: Tensor, normalisation: Tensor, sums: Tensor, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    output = ImageLayout.of(before.value).empty(before.value)
    tables = (normalisation, sums.contiguous())
    summed = _elementwise_pass(_VALUE_GRADIENT, before, grad, output, *tables, with_sums=with_bias)
    return output, summed


def fused_backward(
    call: FusedBackward,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    weight = call.weight
    if weight is not None and _are_whole(call.value):
        grad = layouts.planar(call.grad)
        input = None if call.input is None else layouts.planar(call.input)
        call = call._replace(grad=grad, input=input)
        if _are_whole(grad, input):
            return _whole_backward(call, weight.contiguous())
    grad_value, grad_bias = value_gradient(
        call.before, call.grad, call.normalisation, call.sums, call.with_bias
    )
    grad_input = grad_weight = None
    if weight is not None:
        addend = call.grad if call.residual else None
        grad_input = convolution.forward(grad_value, weight, None, flipped=True, addend=addend)
    if call.input is not None:
        filter = Filter(call.kernel_size, call.kernel_size)
        grad_weight, _ = convolution.weight_gradient(call.input, grad_value, filter, False)
    return grad_input, grad_weight, grad_bias


def _are_whole(*tensors: Tensor | None) -> bool:
    """Tell whether each plane is one that an item of a kernel covers, on 16-byte boundaries.

    Args:
        tensors: of one shape, the first not None.
    """
    first, *_ = tensors
    assert first is not None
    kernels, _ = launcher(first)
    _, _, height, width = first.shape
    if not kernels.whole_planes(height, width):
        return False
    for tensor in tensors:
        if tensor is not None:
            image = ImageLayout.of(tensor)
            if not image.is_planar or tensor.data_ptr() % 16:
                return False
            if image.strides[0] % 8 or image.strides[1] % 8:
                return False
    return True


def _whole_backward(
    call: FusedBackward, weight: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    input, value, sums = call.input, call.value, call.sums.contiguous()
    channels, _, kernel_size, _ = weight.shape
    image = ImageLayout.of(value)
    sizes, written_strides = image.shape, image.output_strides[:2]
    kernels, context = launcher(value)
    at_once = input is not None and kernels.backward_gives_weight_gradient(kernel_size)
    grad_input = image.empty(value)
    # If registers do not hold both gradients, that of the weight comes from a pass of its own.
    grad_value = image.empty(value) if input is not None and not at_once else None
    grad_weight = grad_bias = None
    if at_once:
        shape = (channels, 1, kernel_size, kernel_size)
        grad_weight = weight.new_empty(shape, dtype=torch.float32)
    if call.with_bias:
        grad_bias = weight.new_empty(channels, dtype=torch.float32)
    splits = kernels.whole_plane_splits(context, sizes, kernel_size, True)
    workspace = None
    if splits > 1:
        of_split = channels * (kernel_size * kernel_size + 1)
        workspace = weight.new_empty(splits * of_split, dtype=torch.float32)
    with current(context):
        kernels.backward(
            context,
            sizes,
            kernel_size,
            _planes(input if at_once else None),
            located(value, image.strides[:2]),
            _planes(call.grad),
            address(weight),
            address(call.normalisation),
            address(sums),
            ACTIVATIONS[call.activation],
            call.residual,
            located(grad_input, written_strides, written=True),
            _planes(grad_value, written=True),
            address(grad_weight, written=True),
            address(grad_bias, written=True),
            address(workspace, written=True),
        )
    if grad_value is not None:
        assert input is not None
        grad_weight, _ = convolution.weight_gradient(
            input, grad_value, Filter(kernel_size, kernel_size), False
        )
    return grad_input, grad_weight, grad_bias


def _elementwise_pass(
    which: int,
    before: PreActivation,
    other: Tensor | None,
    output: Tensor | None,
    normalisation: Tensor | None = None,
    sums: Tensor | None = None,
    with_sums: bool = True,
) -> Tensor | None:
    """Run a pass and return its sums: (rows, C), or (C,) of a single row.

    Args:
        which: one of the passes above.
        other: a residual or a gradient of the output, of the shape of `before.value`.
        output: written by passes that write a tensor; laid out like `before.value`.
        sums: those of the gradient, read by the last pass.
        with_sums: whether sums are wanted of a pass that makes some.
    """
    value, bias, activation = before
    image = ImageLayout.of(value if output is None else output)
    last = image.is_channels_last
    value, other = _readable(value, last), None if other is None else _readable(other, last)
    kernels, context = launcher(value)
    rows = _ROWS[which] if with_sums else 0
    merged = parts = None
    with current(context):
        tensors = (_steps(value, last), _steps(other, last), _steps(output, last, written=True))
        if rows:
            splits = kernels.elementwise_pass_splits(context, image.shape, last, *tensors)
            channels = image.shape[1]
            shape = (channels,) if rows == 1 else (rows, channels)
            # Two tensors: the sums may live on as the gradient of a bias, their parts need not.
            merged = value.new_empty(shape, dtype=torch.float32)
            parts = merged.new_empty((splits, *shape))
        kernels.elementwise_pass(
            which,
            context,
            image.shape,
            last,
            *tensors,
            ACTIVATIONS[activation],
            address(bias),
            address(normalisation),
            address(sums),
            address(parts, written=True),
            address(merged, written=True),
        )
    return merged


def _readable(tensor: Tensor, channels_last: bool) -> Tensor:
    """Return `tensor` itself if a pass reads it as it is, else a copy.

    A pass reads planes, or in channels_last pixels that lie at one distance from each other.
    """
    if not channels_last:
        return layouts.planar(tensor)
    if ImageLayout.of(tensor).pixel_step is not None:
        return tensor
    return layouts.contiguous(tensor, torch.channels_last)


def _steps(tensor: Tensor | None, channels_last: bool, written: bool = False) -> Located:
    """Return the address of a tensor with its strides from outer index and channel to the next."""
    if tensor is None or not channels_last:
        return _planes(tensor, written)
    step = ImageLayout.of(tensor).pixel_step
    assert step is not None
    return located(tensor, (step, 1), written)


def _planes(tensor: Tensor | None, written: bool = False) -> Located:
    """Return the address of a tensor with its strides of images and channels; zeros for None."""
    return _NONE if tensor is None else located(tensor, tensor.stride()[:2], written)


def _normalisation(moments: Tensor | None, parts: int, norm: BatchNorm) -> Tensor:
    source = moments if moments is not None else norm.running_mean
    assert source is not None
    channels = source.shape[-1]
    table = source.new_empty((len(Normalisation._fields), channels))
    updated = moments is not None
    # The kernel has no tensors of 16 bits, so any of their types will do.
    kernels, context = launcher(source, torch.float16)
    with current(context):
        kernels.normalisation(
            context,
            address(moments),
            parts,
            channels,
            address(norm.gamma),
            address(norm.beta),
            address(norm.running_mean, written=updated),
            address(norm.running_var, written=updated),
            norm.momentum,
            norm.eps,
            address(table, written=True),
        )
    return table
