"""Drop-in modules: the parameters, names and hooks of `torch.nn`, the kernels of this package."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from convmixer_kernels import dispatch
from convmixer_kernels.functional import depthwise_conv2d


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d(channels, channels, kernel_size, padding="same", groups=channels)` on the kernels.

    Parameters, initial values, state dict (`weight` of shape (channels, 1, k, k), `bias` of shape
    (channels,)), attributes and hooks are those of `nn.Conv2d`, of which this is a subclass.

    Args:
        channels: number of input and of output channels.
        kernel_size: height and width of the filters; an even size pads the extra row and column at
            the bottom and right.
        bias: whether to add a learnable bias.
        impl: as in `depthwise_conv2d`; may be changed later through the attribute of this name.
        device, dtype: of the parameters.

    Input and output are (N, channels, H, W), or (channels, H, W) for a single image.

    Attributes that are changed later count as they do for `nn.Conv2d`: with another stride,
    dilation, padding, padding mode or number of groups, or with filters of another shape than its
    `kernel_size`, the layer runs as `nn.Conv2d` under ``"auto"`` and ``"torch"`` and raises under
    a kernel. For `torch.fx` it is one node, as the layers of `torch.nn` are.

    Raises:
        ValueError: an argument is out of range; or, in the forward pass, an attribute was changed
            so that the kernel named by `impl` cannot serve the layer.
    """

    impl: str

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        bias: bool = True,
        *,
        impl: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, value in (("channels", channels), ("kernel_size", kernel_size)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}: got {value!r}, expected an integer of at least 1")
        dispatch.check_name(impl)
        super().__init__(
            channels,
            channels,
            kernel_size,
            padding="same",
            groups=channels,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.impl = impl

    @classmethod
    def from_conv2d(cls, convolution: nn.Conv2d, impl: str = "auto") -> DepthwiseConv2d:
        """A module that shares the parameters of `convolution` and carries over its hooks.

        Raises:
            ValueError: `convolution` is no depthwise convolution with stride 1 and 'same' zero
                padding; the message says what it is instead.
        """
        dispatch.check_name(impl)
        if reason := why_ineligible(convolution):
            raise ValueError(f"convolution: {reason}")
        converted = cls.__new__(cls)
        # Tables of parameters and hooks are copied, what they hold is shared.
        converted.__dict__ = {
            name: value.copy() if isinstance(value, dict) else value
            for name, value in convolution.__dict__.items()
        }
        converted.impl = impl
        return converted

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, torch.fx.Proxy):
            return one_node(self, input)
        # Read once: a parametrisation computes it anew each time.
        weight = self.weight
        if reason := edited(self, weight):
            if self.impl not in ("auto", "torch"):
                raise ValueError(
                    f"impl={self.impl!r} cannot serve this layer: {reason}; use impl='torch'"
                )
            return self._conv_forward(input, weight, self.bias)
        if input.dim() == 3:
            single = input.unsqueeze(0)
            return depthwise_conv2d(single, weight, self.bias, impl=self.impl).squeeze(0)
        return depthwise_conv2d(input, weight, self.bias, impl=self.impl)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, impl={self.impl!r}"


def why_ineligible(module: nn.Module) -> str | None:
    """One line on why `DepthwiseConv2d` cannot stand in for `module`; None if it can."""
    if not isinstance(module, nn.Conv2d):
        return f"a {type(module).__name__} is no nn.Conv2d"
    if type(module) not in (nn.Conv2d, DepthwiseConv2d):
        return f"{type(module).__name__} is a subclass of nn.Conv2d and may compute something else"
    if "forward" in module.__dict__ or module._compiled_call_impl is not None:
        return "its forward has been replaced or compiled, which would go on running"
    for reason in (
        _channels_reason(module),
        edited(module, module.weight),
        _dtype_reason(module),
    ):
        if reason is not None:
            return reason
    return None


def edited(convolution: nn.Conv2d, weight: Tensor) -> str | None:
    """One line on why its attributes, as they are now, keep kernels from serving it; or None.

    Args:
        convolution: a depthwise convolution, whose attributes may have been changed.
        weight: its filters.
    """
    shape = tuple(weight.shape)
    kernel_size: Any = convolution.kernel_size
    size = shape[-1]
    same = ("same", (size // 2, size // 2)) if size % 2 else ("same",)
    if (
        kernel_size == shape[2:] == (size, size)
        and convolution.padding in same
        and convolution.stride == convolution.dilation == (1, 1)
        and convolution.padding_mode == "zeros"
        and convolution.groups == shape[0]
    ):
        return None
    if convolution.groups != shape[0]:
        return f"groups is {convolution.groups}, with weight of shape {shape}"
    if _pair(kernel_size) != shape[2:]:
        return f"kernel_size is {kernel_size}, with weight of shape {shape}"
    return _kernel_reason(convolution) or _padding_reason(convolution)


def one_node(module: nn.Module, input: torch.fx.Proxy) -> Any:
    """What `torch.fx` records for a module of `torch.nn`; tensors decide later what runs in it."""
    tracer: Any = input.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (input,), {})


def _pair(value: Any) -> Any:
    """The (height, width) that a size stands for, which may have been set to a single number."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _channels_reason(convolution: nn.Conv2d) -> str | None:
    if convolution.groups == convolution.in_channels == convolution.out_channels:
        return None
    return (
        f"not depthwise: {convolution.groups} groups, {convolution.in_channels} input and "
        f"{convolution.out_channels} output channels"
    )


def _kernel_reason(convolution: nn.Conv2d) -> str | None:
    height, width = _pair(convolution.kernel_size)
    if height != width:
        return f"kernel size {height} x {width} is not square"
    for name, value in (("stride", convolution.stride), ("dilation", convolution.dilation)):
        if _pair(value) != (1, 1):
            return f"{name} is {value}, not 1"
    return None


def _padding_reason(convolution: nn.Conv2d) -> str | None:
    if convolution.padding_mode != "zeros":
        return f"padding mode is {convolution.padding_mode!r}, not 'zeros'"
    size, _ = _pair(convolution.kernel_size)
    padding: Any = convolution.padding
    if padding == "same":
        return None
    padding = (0, 0) if padding == "valid" else _pair(padding)
    # No symmetric padding keeps the size of the image when the kernel size is even.
    if size % 2 == 1 and padding == (size // 2, size // 2):
        return None
    return f"padding {padding} is not 'same' for kernel size {size}"


def _dtype_reason(convolution: nn.Conv2d) -> str | None:
    if convolution.weight.is_floating_point():
        return None
    return f"dtype {convolution.weight.dtype} is not a floating dtype"
