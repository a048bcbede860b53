"""Conversion of depthwise convolutions of any model to the kernels of this package, and back."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from torch import nn

from convmixer_kernels import dispatch
from convmixer_kernels.filters import Filter, pair
from convmixer_kernels.modules import DepthwiseConv2d, why_ineligible


@dataclass(frozen=True)
class Conversion:
    """The outcome of `convert_depthwise`, by name of the layer, as `module.named_modules()` has it.

    Attributes:
        converted: the layers that run under the implementation that was asked for.
        left: all other convolutions, each with the reason in a line.
    """

    converted: tuple[str, ...]
    left: dict[str, str]

    def __str__(self) -> str:
        """Give a line on what was converted, and one for each reason why others were not."""
        return report("converted", self.converted, self.left)


def report(done: str, names: tuple[str, ...], left: dict[str, str]) -> str:
    """Return a line on what was done, and one for each reason why it was not."""
    lines = [_line(done, names)]
    names_left = defaultdict(list)
    for name, reason in left.items():
        names_left[reason].append(name)
    lines += [_line("left", layers, reason) for reason, layers in names_left.items()]
    return "\n".join(lines)


def _line(done: str, names: list[str] | tuple[str, ...], reason: str = "") -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    line = f"{done} {len(names)}" + (f" ({shown})" if names else "")
    return f"{line}: {reason}" if reason else line


def convert_depthwise(module: nn.Module, impl: str = "auto") -> Conversion:
    """Replace, in place, every depthwise convolution inside `module` that the kernels can serve.

    Eligible is an `nn.Conv2d` with as many groups as input and output channels, stride 1, 'same'
    zero padding, and filters for which `impl` has a kernel (any for ``"torch"``). A subclass is
    eligible that computes what `nn.Conv2d` does. The replacement shares parameters and hooks, so
    state dicts, optimizers and results stay what they were. A `DepthwiseConv2d` found in `module`
    is given `impl`.

    A model that merges its branches for inference (`reparameterize` of RepVGG, RepLKNet, MobileOne
    and others) builds its convolutions anew then: convert it afterwards, or have its branches
    merged by `merge_branches`, which keeps them.

    Args:
        module: any model; a lone convolution has no parent to be replaced in, use
            `DepthwiseConv2d.from_conv2d` for it.
        impl: as in `depthwise_conv2d`.

    Returns:
        Which layers now run under `impl`, and for every other `nn.Conv2d` why it does not; printed,
        a line for each reason. `restore_depthwise` undoes it.

    Raises:
        TypeError: `module` is no `nn.Module`.
        ValueError: `impl` is unknown, or `module` is itself a convolution.
    """
    dispatch.check_name(impl)
    _check_model(module, "DepthwiseConv2d.from_conv2d(module)")
    converted: list[str] = []
    left: dict[str, str] = {}
    replacements: dict[nn.Module, nn.Module] = {}
    for name, layer in module.named_modules(remove_duplicate=False):
        if not isinstance(layer, nn.Conv2d):
            continue
        if reason := why_ineligible(layer) or _filter_reason(layer, impl):
            left[name] = reason
            continue
        converted.append(name)
        if isinstance(layer, DepthwiseConv2d):
            layer.impl = impl
        elif layer not in replacements:
            replacements[layer] = DepthwiseConv2d.from_conv2d(layer, impl)
    _replace(module, replacements)
    return Conversion(tuple(converted), left)


def restore_depthwise(module: nn.Module) -> tuple[str, ...]:
    """Undo `convert_depthwise`, in place: every layer gets back the class that it was built with.

    Parameters, hooks and what was changed since stay. Layers that were built as `DepthwiseConv2d`
    keep the implementation that they have now.

    Args:
        module: any model; for a lone layer, use its method `to_conv2d`.

    Returns:
        The names of the layers, in the order of `module.named_modules()`.

    Raises:
        TypeError: `module` is no `nn.Module`.
        ValueError: `module` is itself a convolution.
    """
    _check_model(module, "module.to_conv2d()")
    restored: list[str] = []
    replacements: dict[nn.Module, nn.Module] = {}
    for name, layer in module.named_modules(remove_duplicate=False):
        if isinstance(layer, DepthwiseConv2d) and layer.converted_from is not None:
            restored.append(name)
            if layer not in replacements:
                replacements[layer] = layer.to_conv2d()
    _replace(module, replacements)
    return tuple(restored)


def check_module(module: nn.Module) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: got {module!r}, expected an nn.Module")


def _check_model(module: nn.Module, remedy: str) -> None:
    check_module(module)
    if isinstance(module, nn.Conv2d):
        raise ValueError(
            f"module: got a lone convolution, which cannot be replaced in place; use {remedy}"
        )


def _filter_reason(layer: nn.Conv2d, impl: str) -> str | None:
    filter = Filter.of(layer.weight, pair(layer.dilation))
    reason = dispatch.unsupported_filter(filter, impl)
    return reason and f"no kernel for its filters: {reason}"


def _replace(module: nn.Module, replacements: dict[nn.Module, nn.Module]) -> None:
    """Set each replacement under every name of the layer that it stands for."""
    for name, layer in list(module.named_modules(remove_duplicate=False)):
        if layer in replacements:
            parent, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, replacements[layer])
