"""Puts the kernels of this package under the depthwise convolutions of any model."""

from __future__ import annotations

from torch import nn

from convmixer_kernels import dispatch
from convmixer_kernels.modules import DepthwiseConv2d, why_ineligible


def convert_depthwise(module: nn.Module, impl: str = "auto") -> list[str]:
    """Replaces, in place, every depthwise convolution inside `module` that the kernels can serve.

    Eligible is a plain `nn.Conv2d` with as many groups as input and output channels, stride 1,
    dilation 1, a square kernel and 'same' zero padding. Its replacement shares its parameters and
    hooks, so state dicts, optimizers and results stay what they were. A `DepthwiseConv2d` found in
    `module` is given `impl`.

    Args:
        module: any model; a lone convolution has no parent to be replaced in, use
            `DepthwiseConv2d.from_conv2d` for it.
        impl: as in `depthwise_conv2d`.

    Returns:
        The names of the layers that now run under `impl`, in the order of `module.named_modules()`.
        `convmixer_kernels.convert.unconverted_convolutions` tells why the others do not.

    Raises:
        ValueError: `impl` is unknown, or `module` is itself a convolution.
    """
    dispatch.check_name(impl)
    if isinstance(module, nn.Conv2d):
        raise ValueError(
            "module: got a lone convolution, which cannot be replaced in place; "
            "use DepthwiseConv2d.from_conv2d(module)"
        )
    names: list[str] = []
    # A layer used under two names stays one layer.
    replacements: dict[nn.Conv2d, DepthwiseConv2d] = {}
    for name, child in list(module.named_modules(remove_duplicate=False)):
        if not isinstance(child, nn.Conv2d) or why_ineligible(child) is not None:
            continue
        names.append(name)
        if isinstance(child, DepthwiseConv2d):
            child.impl = impl
            continue
        if child not in replacements:
            replacements[child] = DepthwiseConv2d.from_conv2d(child, impl)
        parent, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(parent), attribute, replacements[child])
    return names


def unconverted_convolutions(module: nn.Module) -> dict[str, str]:
    """Every `nn.Conv2d` in `module` that `convert_depthwise` leaves alone, by name, and why.

    Args:
        module: any model, before or after its conversion.

    Returns:
        A line of reason for each name, in the order of `module.named_modules()`.
    """
    return {
        name: reason
        for name, child in module.named_modules(remove_duplicate=False)
        if isinstance(child, nn.Conv2d) and (reason := why_ineligible(child)) is not None
    }
