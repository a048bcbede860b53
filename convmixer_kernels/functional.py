"""What users call: argument checks, autocast and autograd around the operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convmixer_kernels import dispatch, ops
from convmixer_kernels.backends import reference


def depthwise_conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *, impl: str = "auto"
) -> Tensor:
    """Depthwise convolution with stride 1 and 'same' zero padding.

    Equivalent to ``F.conv2d(input, weight, bias, padding="same", groups=C)``: every channel is
    correlated with a filter of its own, and for an even kernel size the extra row and column of
    padding lie at the bottom and right. Sums are taken in float32.

    Args:
        input: (N, C, H, W), any N >= 0. Contiguous, channels_last, CNHW and slices of images or
            channels are taken as they are.
        weight: (C, 1, k, k), the dtype of `input`. ``"cuda"`` and ``"triton"`` take k = 3, 5, 7, 8,
            9, 11, 13, 15.
        bias: (C,) of any floating dtype, or None.
        impl: ``"auto"`` (the fastest that can serve the input, see `explain`), ``"cuda"``,
            ``"triton"`` or ``"torch"``. A named implementation runs or raises; no other takes its
            place.

    Returns:
        (N, C, H, W) in the dtype and memory format of `input`.

    Under autocast, `input` and `weight` are cast to the autocast dtype and `bias` is left as it is.
    Gradients are computed only for what requires them; ``"cuda"`` and ``"triton"`` are
    differentiable once. In those two, an input that is not finite may reach outputs of its plane
    that the filter does not (zeros of a banded matrix are multiplied by it as well).

    Raises:
        ValueError: an argument has a wrong shape, dtype or device, or `impl` cannot serve it.
        RuntimeError: `impl` is not available here; the message says why and what helps.
    """
    _check(input, weight, bias)
    if torch.is_autocast_enabled(input.device.type):
        dtype = torch.get_autocast_dtype(input.device.type)
        input, weight = _autocast(input, dtype), _autocast(weight, dtype)
    if input.dtype != weight.dtype:
        raise ValueError(
            f"weight: got dtype {weight.dtype}, expected that of input, {input.dtype} "
            "(autocast would cast both)"
        )
    name = dispatch.resolve(input, weight, impl)
    if name == "torch":
        return reference.forward(input, weight, bias)
    output: Tensor = _DepthwiseConv2d.apply(input, weight, bias, name)
    return output


def _autocast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    # As PyTorch's own convolutions do: double precision is left alone.
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)


def _check(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if input.dim() != 4:
        raise ValueError(f"input: got shape {tuple(input.shape)}, expected (N, C, H, W)")
    channels = input.shape[1]
    if weight.dim() != 4 or weight.shape[1] != 1 or weight.shape[2] != weight.shape[3]:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, expected ({channels}, 1, k, k)")
    if weight.shape[0] != channels:
        raise ValueError(
            f"weight: got {weight.shape[0]} filters, expected one for each of the "
            f"{channels} channels of input"
        )
    if weight.shape[2] == 0:
        raise ValueError("weight: got kernel size 0, expected at least 1")
    if 0 in input.shape[1:]:
        raise ValueError(f"input: got shape {tuple(input.shape)}, expected C, H, W of at least 1")
    if not input.is_floating_point():
        raise ValueError(f"input: got dtype {input.dtype}, expected a floating dtype")
    if bias is not None:
        if bias.shape != (channels,):
            raise ValueError(f"bias: got shape {tuple(bias.shape)}, expected ({channels},)")
        if not bias.is_floating_point():
            raise ValueError(f"bias: got dtype {bias.dtype}, expected a floating dtype")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.device != input.device:
            raise ValueError(
                f"{name}: got device {tensor.device}, expected {input.device} of input"
            )


class _DepthwiseConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, impl: str) -> Tensor:
        needs_input, needs_weight = ctx.needs_input_grad[:2]
        # The bias gradient rides along with the weight gradient, so it needs the input only there.
        ctx.save_for_backward(
            input if needs_weight else None,
            weight if needs_input else None,
        )
        ctx.impl = impl
        ctx.kernel_size = weight.shape[-1]
        ctx.weight_dtype = weight.dtype
        ctx.bias_dtype = bias.dtype if bias is not None and ctx.needs_input_grad[2] else None
        return ops.depthwise_conv2d(input, weight, bias, impl)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        grad_input = grad_weight = grad_bias = None
        if weight is not None:
            grad_input = ops.depthwise_conv2d_input_gradient(grad_output, weight, ctx.impl)
        if input is not None:
            sums, bias_sums = ops.depthwise_conv2d_weight_gradient(
                input, grad_output, ctx.kernel_size, ctx.bias_dtype is not None, ctx.impl
            )
            grad_weight = sums.to(ctx.weight_dtype)
            if ctx.bias_dtype is not None:
                grad_bias = bias_sums.to(ctx.bias_dtype)
        elif ctx.bias_dtype is not None:
            grad_bias = grad_output.sum((0, 2, 3), dtype=torch.float32).to(ctx.bias_dtype)
        if torch.is_grad_enabled():  # create_graph=True
            sources = (grad_output, input, weight)
            grad_input, grad_weight, grad_bias = (
                None if grad is None else _DifferentiableOnce.apply(grad, ctx.impl, *sources)
                for grad in (grad_input, grad_weight, grad_bias)
            )
        return grad_input, grad_weight, grad_bias, None


class _DifferentiableOnce(torch.autograd.Function):
    """Passes a gradient on and raises where somebody differentiates it again.

    `torch.autograd.function.once_differentiable` sees only whether the incoming gradient requires
    grad, and lets a derivative that runs through saved tensors pass as zero.
    """

    @staticmethod
    def forward(ctx: Any, grad: Tensor, impl: str, *sources: Tensor | None) -> Tensor:
        ctx.impl = impl
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:
        raise RuntimeError(
            f"depthwise_conv2d(impl={ctx.impl!r}) can be differentiated once; "
            "use impl='torch' for higher derivatives"
        )
