"""Checks of arguments, whose errors name the argument in a line, and the casts of autocast."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from convmixer_kernels.activations import ACTIVATIONS
from convmixer_kernels.filters import pair
from convmixer_kernels.operands import BatchNorm


def check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a torch.Tensor")


def check_image(input: Tensor) -> None:
    """Check that `input` is (N, C, H, W) of a floating dtype, where only N may be 0."""
    check_tensor("input", input)
    shape = input.shape
    if len(shape) != 4:
        raise ValueError(f"input: got shape {tuple(shape)}, expected (N, C, H, W)")
    if 0 in shape[1:]:
        raise ValueError(f"input: got shape {tuple(shape)}, expected C, H, W of at least 1")
    if not input.is_floating_point():
        raise ValueError(f"input: got dtype {input.dtype}, expected a floating dtype")


def check_convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None, square: bool = False
) -> None:
    """Check an image, a filter for each of its channels, and a bias."""
    check_tensor("input", input)
    check_tensor("weight", weight)
    shape, filters = input.shape, weight.shape
    if len(shape) != 4:
        raise ValueError(f"input: got shape {tuple(shape)}, expected (N, C, H, W)")
    channels = shape[1]
    if len(filters) != 4 or filters[1] != 1 or (square and filters[2] != filters[3]):
        expected = "k, k" if square else "height, width"
        raise ValueError(
            f"weight: got shape {tuple(filters)}, expected ({channels}, 1, {expected})"
        )
    if filters[0] != channels:
        raise ValueError(
            f"weight: got {filters[0]} filters, expected one for each of the "
            f"{channels} channels of input"
        )
    if 0 in filters:
        raise ValueError("weight: got kernel size 0, expected at least 1")
    check_image(input)
    check_per_channel("bias", bias, input)
    _check_device("weight", weight, input)


def check_dilation(dilation: int | tuple[int, int]) -> tuple[int, int]:
    """Return the dilations of rows and columns, checked."""
    if type(dilation) is int and dilation >= 1:
        return dilation, dilation
    steps = pair(dilation)
    if len(steps) != 2 or not all(isinstance(step, int) and step >= 1 for step in steps):
        raise ValueError(
            f"dilation: got {dilation!r}, expected an integer of at least 1 or a pair of them"
        )
    return steps[0], steps[1]


def check_per_channel(name: str, tensor: Tensor | None, input: Tensor) -> None:
    """Check for a value of a floating dtype for each channel of `input`, on its device, or None."""
    if tensor is None:
        return
    check_tensor(name, tensor)
    channels = input.shape[1]
    if tensor.shape != (channels,):
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected ({channels},)")
    if not tensor.is_floating_point():
        raise ValueError(f"{name}: got dtype {tensor.dtype}, expected a floating dtype")
    _check_device(name, tensor, input)


def check_residual(input: Tensor, residual: Tensor | None) -> None:
    """Check that `residual` is a tensor like `input`, or None."""
    if residual is None:
        return
    check_tensor("residual", residual)
    if residual.shape != input.shape:
        raise ValueError(
            f"residual: got shape {tuple(residual.shape)}, expected {tuple(input.shape)} of input"
        )
    if residual.dtype != input.dtype:
        raise ValueError(
            f"residual: got dtype {residual.dtype}, expected that of input, {input.dtype}"
        )
    _check_device("residual", residual, input)


def check_batch_norm(
    input: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    activation: str,
) -> None:
    """Check the arguments of normalisation and activation in the fused operations."""
    for name, tensor in (
        ("gamma", gamma),
        ("beta", beta),
        ("running_mean", running_mean),
        ("running_var", running_var),
    ):
        check_per_channel(name, tensor, input)
    if (running_mean is None) != (running_var is None):
        missing = "running_mean" if running_mean is None else "running_var"
        raise ValueError(f"{missing}: got None, expected both running statistics or neither")
    if momentum is None:
        raise ValueError(
            "momentum: got None, expected a number; the cumulative average of nn.BatchNorm2d is "
            "momentum 1 / num_batches_tracked"
        )
    if eps <= 0:
        raise ValueError(f"eps: got {eps}, expected a positive number")
    if activation not in ACTIVATIONS:
        accepted = ", ".join(repr(name) for name in ACTIVATIONS)
        raise ValueError(f"activation: got {activation!r}, expected one of {accepted}")


def fits_batch_norm(momentum: float, eps: float, activation: str) -> bool:
    """Tell whether these pass `check_batch_norm`."""
    return momentum is not None and eps > 0 and activation in ACTIVATIONS


def check_same_dtype(input: Tensor, weight: Tensor) -> None:
    if input.dtype != weight.dtype:
        raise ValueError(
            f"weight: got dtype {weight.dtype}, expected that of input, {input.dtype} "
            "(autocast would cast both)"
        )


def check_values_per_channel(input: Tensor, norm: BatchNorm) -> None:
    """Refuse statistics of a single value, as PyTorch does: it has no variance.

    Of no value there is nothing to refuse: everything stays as it is.
    """
    images, _, height, width = input.shape
    alone = norm.process_group is None or norm.process_group.size() == 1
    if norm.of_batch and alone and images * height * width == 1:
        raise ValueError(
            "Expected more than 1 value per channel when training, got input size "
            f"{tuple(input.shape)}"
        )


@overload
def precise(tensor: Tensor, input: Tensor) -> Tensor: ...


@overload
def precise(tensor: Tensor | None, input: Tensor) -> Tensor | None: ...


def precise(tensor: Tensor | None, input: Tensor) -> Tensor | None:
    """Return `tensor`, contiguous and in the dtype in which operations on `input` take sums."""
    if tensor is None:
        return None
    dtype = torch.float64 if input.dtype is torch.float64 else torch.float32
    if tensor.dtype is dtype and tensor.is_contiguous():
        return tensor
    return tensor.to(dtype).contiguous()


def convolution_operands(
    input: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Check operands of a convolution, and return `input` and `weight` as autocast makes them."""
    check_convolution(input, weight, bias)
    input, weight = autocast(input, weight)
    check_same_dtype(input, weight)
    return input, weight


def autocast(input: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return `input` and `weight` as PyTorch's own convolutions see them.

    Under autocast they are cast to its dtype; double precision is left alone.
    """
    dtype = autocast_dtype(input.device)
    return (input, weight) if dtype is None else (_cast(input, dtype), _cast(weight, dtype))


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype that autocast gives operands of a convolution; None where it is off."""
    # There is no autocast of meta tensors: PyTorch refuses to be asked.
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)


def _check_device(name: str, tensor: Tensor, input: Tensor) -> None:
    if tensor.device != input.device:
        raise ValueError(f"{name}: got device {tensor.device}, expected {input.device} of input")
