"""Drop-in modules: the parameters, names and hooks of `torch.nn`, the kernels of this package."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.utils import parametrize

from convmixer_kernels import dispatch
from convmixer_kernels.arguments import check_tensor
from convmixer_kernels.filters import Filter, pair
from convmixer_kernels.functional import depthwise_conv2d
from convmixer_kernels.mixed_classes import mixed_class

_Convolution = TypeVar("_Convolution", bound=nn.Conv2d)


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d(channels, channels, kernel_size, padding="same", groups=channels)` on the kernels.

    Parameters, initial values, state dict (`weight` of shape (channels, 1, height, width), `bias`
    of shape (channels,)), attributes and hooks are those of `nn.Conv2d`, of which this is a
    subclass.

    Args:
        channels: number of input and of output channels.
        kernel_size: height and width of the filters, an integer or a pair; where the padding is
            odd, the extra row or column lies at the bottom or right.
        dilation: rows and columns of the image from tap to tap, an integer or a pair.
        bias: whether to add a learnable bias.
        impl: as in `depthwise_conv2d`; may be changed later through the attribute of this name.
        device, dtype: of the parameters.

    Input and output are (N, channels, H, W), or (channels, H, W) for a single image.

    Attributes that are changed later count as they do for `nn.Conv2d`: with another stride,
    padding, padding mode or number of groups, or with filters of another shape than its
    `kernel_size`, the layer runs as `nn.Conv2d` under ``"auto"`` and ``"torch"`` and raises under
    a kernel. For `torch.fx` it is one node, as the layers of `torch.nn` are.

    Attributes:
        converted_from: the class of the layer that `from_conv2d` was given; None if built as is.

    Raises:
        ValueError: an argument is out of range; or, in the forward pass, an attribute was changed
            so that the kernel named by `impl` cannot serve the layer.
    """

    impl: str
    converted_from: type[nn.Conv2d] | None = None

    def __init__(
        self,
        channels: int,
        kernel_size: int | tuple[int, int],
        *,
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        impl: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_positive("channels", channels)
        kernel_size = _checked_pair("kernel_size", kernel_size)
        dilation = _checked_pair("dilation", dilation)
        dispatch.check_name(impl)
        super().__init__(
            channels,
            channels,
            kernel_size,
            padding="same",
            dilation=dilation,
            groups=channels,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.impl = impl

    @classmethod
    def from_conv2d(cls, convolution: nn.Conv2d, impl: str = "auto") -> DepthwiseConv2d:
        """Build a layer that shares the parameters of `convolution` and carries over its hooks.

        A layer of a subclass stays of that subclass, with its attributes and methods, and a
        parametrised one (`torch.nn.utils.parametrizations`) stays parametrised.

        Raises:
            ValueError: `convolution` is no depthwise convolution with stride 1 and 'same' zero
                padding, or computes something else; the message says what it is instead.
        """
        dispatch.check_name(impl)
        if reason := why_ineligible(convolution):
            raise ValueError(f"convolution: {reason}")
        original = _unparametrised(convolution)
        converted = _sharing(convolution, _depthwise_class(original))
        if not issubclass(original, DepthwiseConv2d):
            converted.converted_from = original
        converted.impl = impl
        return converted

    def to_conv2d(self) -> nn.Conv2d:
        """Build the layer of the class that `from_conv2d` was given; it shares the parameters.

        Raises:
            ValueError: this layer did not come from `from_conv2d`.
        """
        if self.converted_from is None:
            raise ValueError("this layer was built as DepthwiseConv2d and converted from nothing")
        restored = _sharing(self, self.converted_from)
        for name in ("impl", "converted_from"):
            del restored.__dict__[name]
        return restored

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, torch.fx.Proxy):
            return one_node(self, input)
        check_tensor("input", input)
        # Read once: a parametrisation computes it anew each time.
        weight = self.weight
        if reason := edited(self, weight):
            if self.impl not in ("auto", "torch"):
                raise ValueError(
                    f"impl={self.impl!r} cannot serve this layer: {reason}; use impl='torch'"
                )
            return self._conv_forward(input, weight, self.bias)
        settings: dict[str, Any] = {"dilation": self.dilation, "impl": self.impl}
        if input.dim() == 3:
            return depthwise_conv2d(input.unsqueeze(0), weight, self.bias, **settings).squeeze(0)
        return depthwise_conv2d(input, weight, self.bias, **settings)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, impl={self.impl!r}"


def _check_positive(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: got {value!r}, expected an integer of at least 1")


def _checked_pair(name: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, tuple | list):
        _check_positive(name, value)
        return value, value
    if len(value) != 2:
        raise ValueError(f"{name}: got {value!r}, expected an integer or a pair of them")
    for each in value:
        _check_positive(name, each)
    return value[0], value[1]


def _sharing(module: nn.Conv2d, cls: type[_Convolution]) -> _Convolution:
    """Make a layer of class `cls` with the parameters, hooks and attributes of `module`."""
    if parametrize.is_parametrized(module):
        # The properties that compute the parameters are in a class that PyTorch made for `module`.
        properties = dict(vars(type(module)))
        for name in ("__dict__", "__weakref__"):
            properties.pop(name, None)
        cls = type(f"Parametrized{cls.__name__}", (cls,), properties)
    layer = cls.__new__(cls)
    # Tables of parameters and hooks are copied, what they hold is shared.
    layer.__dict__ = {
        name: value.copy() if isinstance(value, dict) else value
        for name, value in module.__dict__.items()
    }
    return layer


def _unparametrised(convolution: nn.Conv2d) -> type[nn.Conv2d]:
    """Return the class of a layer before PyTorch made one of its own for it."""
    cls = type(convolution)
    if not parametrize.is_parametrized(convolution):
        return cls
    (original,) = cls.__bases__
    return original


def _depthwise_class(original: type[nn.Conv2d]) -> type[DepthwiseConv2d]:
    """Return the class that a layer of class `original` is converted to."""
    if issubclass(original, DepthwiseConv2d):
        return original
    if original is nn.Conv2d:
        return DepthwiseConv2d
    mixed: type[DepthwiseConv2d]
    mixed = mixed_class("Depthwise", DepthwiseConv2d, original)  # type: ignore[arg-type]
    return mixed


def why_ineligible(module: nn.Module) -> str | None:
    """Say in a line why `DepthwiseConv2d` cannot stand in for `module`; None if it can."""
    if not isinstance(module, nn.Conv2d):
        return f"a {type(module).__name__} is no nn.Conv2d"
    for name in ("forward", "_conv_forward", "__call__"):
        own = getattr(type(module), name)
        if own not in (getattr(nn.Conv2d, name), getattr(DepthwiseConv2d, name)):
            return f"{type(module).__name__} has a {name} of its own"
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
    """Say in a line why its attributes, as they are now, keep kernels from serving it; or None.

    Args:
        convolution: a depthwise convolution, whose attributes may have been changed.
        weight: its filters.
    """
    shape = tuple(weight.shape)
    kernel_size: Any = convolution.kernel_size
    if (
        kernel_size == shape[2:]
        and (convolution.padding == "same" or convolution.padding == _same_padding(convolution))
        and convolution.stride == (1, 1)
        and convolution.padding_mode == "zeros"
        and convolution.groups == shape[0]
    ):
        return None
    if convolution.groups != shape[0]:
        return f"groups is {convolution.groups}, with weight of shape {shape}"
    if pair(kernel_size) != shape[2:]:
        return f"kernel_size is {kernel_size}, with weight of shape {shape}"
    if pair(convolution.stride) != (1, 1):
        return f"stride is {convolution.stride}, not 1"
    return _padding_reason(convolution)


def one_node(module: nn.Module, input: torch.fx.Proxy) -> Any:
    """Record a layer as one node of `torch.fx`; the tensors choose later what runs in it."""
    tracer: Any = input.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (input,), {})


def _channels_reason(convolution: nn.Conv2d) -> str | None:
    if convolution.groups == convolution.in_channels == convolution.out_channels:
        return None
    return (
        f"not depthwise: {convolution.groups} groups, {convolution.in_channels} input and "
        f"{convolution.out_channels} output channels"
    )


def _same_padding(convolution: nn.Conv2d) -> tuple[int, int] | None:
    """Return the symmetric padding that keeps the size of the image; None if there is none."""
    sizes, steps = pair(convolution.kernel_size), pair(convolution.dilation)
    rows, columns = (step * (size - 1) for size, step in zip(sizes, steps, strict=True))
    return None if rows % 2 or columns % 2 else (rows // 2, columns // 2)


def _padding_reason(convolution: nn.Conv2d) -> str | None:
    if convolution.padding_mode != "zeros":
        return f"padding mode is {convolution.padding_mode!r}, not 'zeros'"
    padding: Any = convolution.padding
    if padding == "same":
        return None
    padding = (0, 0) if padding == "valid" else pair(padding)
    if padding == _same_padding(convolution):
        return None
    filter = Filter(*pair(convolution.kernel_size), *pair(convolution.dilation))
    return f"padding {padding} is not 'same' for kernel size {filter}"


def _dtype_reason(convolution: nn.Conv2d) -> str | None:
    if convolution.weight.is_floating_point():
        return None
    return f"dtype {convolution.weight.dtype} is not a floating dtype"
