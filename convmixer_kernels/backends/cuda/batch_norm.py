"""Convolution fused with activation, batch normalisation and residual, on the CUDA kernels.

The steps are those of `reference.batch_norm`, which spells out what each computes and what its
tables hold. For whole planes (8x8, 16x16, 32x32 on 16-byte boundaries) the convolution emits the
moments of its activation, and one kernel is the backward pass; any other input takes the same steps
in passes of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convmixer_kernels import layout
from convmixer_kernels.backends.cuda import convolution
from convmixer_kernels.backends.cuda.convolution import ACTIVATIONS
from convmixer_kernels.backends.cuda.device import Located, address, current, launcher, located
from convmixer_kernels.channel_tables import GradientSums, Moments, Normalisation
from convmixer_kernels.filters import Filter
from convmixer_kernels.layout import ImageLayout

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
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    normalisation: Tensor,
    activation: str,
    residual: bool,
) -> Tensor:
    """Convolve, activate, normalise and add `input` if `residual`, in one kernel."""
    return convolution.forward(
        input,
        weight,
        bias,
        normalisation=normalisation,
        activation=activation,
        residual=residual,
    )


def forward_moments(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    if not _are_whole(input):
        value = convolution.forward(input, weight, bias)
        return value, moments(value, None, activation)
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


def moments(value: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """Return count, mean and squared deviations of an activation: float32 (3, C)."""
    sums = _elementwise_pass(_MOMENTS, value, None, None, activation, bias)
    assert sums is not None
    return sums


def batch_normalisation(
    moments: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    moments = moments.contiguous()
    buffers = (running_mean, running_var)
    return _normalisation(moments, moments.shape[0], gamma, beta, *buffers, momentum, eps)


def running_normalisation(
    running_mean: Tensor,
    running_var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
) -> Tensor:
    return _normalisation(None, 0, gamma, beta, running_mean, running_var, 0.0, eps)


def normalise(
    value: Tensor,
    bias: Tensor | None,
    normalisation: Tensor,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    output = ImageLayout.of(value).empty(value)
    _elementwise_pass(_NORMALISE, value, residual, output, activation, bias, normalisation)
    return output


def gradient_sums(
    value: Tensor, bias: Tensor | None, grad: Tensor, normalisation: Tensor, activation: str
) -> Tensor:
    sums = _elementwise_pass(_SUM_GRADIENTS, value, grad, None, activation, bias, normalisation)
    assert sums is not None
    return sums


def value_gradient(
    value: Tensor,
    bias: Tensor | None,
    grad: Tensor,
    normalisation: Tensor,
    sums: Tensor,
    activation: str,
    with_bias: bool,
) -> tuple[Tensor, Tensor | None]:
    output = ImageLayout.of(value).empty(value)
    tables = (normalisation, sums.contiguous())
    summed = _elementwise_pass(
        _VALUE_GRADIENT, value, grad, output, activation, bias, *tables, with_sums=with_bias
    )
    return output, summed


def fused_backward(
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
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    if weight is not None and _are_whole(value):
        grad = layout.planar(grad)
        if input is not None:
            input = layout.planar(input)
        if _are_whole(grad, input):
            tables = (normalisation, sums.contiguous())
            return _whole_backward(
                input, value, grad, weight.contiguous(), *tables, activation, residual, with_bias
            )
    grad_value, grad_bias = value_gradient(
        value, None, grad, normalisation, sums, activation, with_bias
    )
    grad_input = grad_weight = None
    if weight is not None:
        addend = grad if residual else None
        grad_input = convolution.forward(grad_value, weight, None, flipped=True, addend=addend)
    if input is not None:
        grad_weight, _ = convolution.weight_gradient(
            input, grad_value, Filter(kernel_size, kernel_size), False
        )
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
    input: Tensor | None,
    value: Tensor,
    grad: Tensor,
    weight: Tensor,
    normalisation: Tensor,
    sums: Tensor,
    activation: str,
    residual: bool,
    with_bias: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
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
    if with_bias:
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
            _planes(grad),
            address(weight),
            address(normalisation),
            address(sums),
            ACTIVATIONS[activation],
            residual,
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
    value: Tensor,
    other: Tensor | None,
    output: Tensor | None,
    activation: str,
    bias: Tensor | None = None,
    normalisation: Tensor | None = None,
    sums: Tensor | None = None,
    with_sums: bool = True,
) -> Tensor | None:
    """Run a pass over `value` and return its sums: (rows, C), or (C,) of a single row.

    Args:
        which: one of the passes above.
        other: a residual or a gradient of the output, of the shape of `value`.
        output: written by passes that write a tensor; laid out like `value`.
        sums: those of the gradient, read by the last pass.
        with_sums: whether sums are wanted of a pass that makes some.
    """
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
    image = ImageLayout.of(tensor)
    if not channels_last:
        return tensor if image.is_planar else tensor.contiguous()
    if image.pixel_step is not None:
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)


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


def _normalisation(
    moments: Tensor | None,
    parts: int,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    source = moments if moments is not None else running_mean
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
            address(gamma),
            address(beta),
            address(running_mean, written=updated),
            address(running_var, written=updated),
            momentum,
            eps,
            address(table, written=True),
        )
    return table
