"""Ways to run a whole network: whose depthwise kernels, which layout, compiled or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.lib import peers
from benchmarks.lib.measurement import WrongResult
from benchmarks.lib.networks import Network
from benchmarks.lib.shapes import LAYOUTS, Selection
from convmixer.model.layers import PatchStem
from convmixer_kernels import DepthwiseConv2d, available_impls, convert_depthwise

MEMORY_FORMATS = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}


@dataclass(frozen=True)
class Way:
    """One way to run a network.

    Attributes:
        implementation: of its depthwise convolutions; "torch" for PyTorch alone.
        layout: of images and weights.
        compiled: whether torch.compile compiles it, with Inductor's defaults: under max-autotune
            the matrix products of one network take a minute.
        keep_layout: as in `peers.Peer`.
        graphed: whether a CUDA graph replays it, which takes the host out of its time.
    """

    implementation: str
    layout: str
    compiled: bool = False
    keep_layout: bool = False
    graphed: bool = False

    def __str__(self) -> str:
        kernels = [] if self.implementation == "torch" else [self.implementation]
        compiler = ["torch.compile"] if self.compiled else []
        notes = ["layout kept"] if self.keep_layout else []
        notes += ["CUDA graph"] if self.graphed else []
        notes += [] if self.layout == "contiguous" else [self.layout]
        return ", ".join([*(kernels + compiler or ["PyTorch"]), *notes])

    def unavailable(self, device: torch.device) -> str | None:
        """Say why it is not measured on this device; None if it is."""
        if self.implementation == "torch":
            return None
        if device.type == "cpu":
            return peers.needs_gpu(self.implementation)
        return available_impls(device)[self.implementation]

    def judged(self, result: str, error: float, allowed: float) -> dict[str, Any]:
        """The verdict that a record gives, by the relative error of its result.

        Raises:
            WrongResult: the kernels of this project are wrong; a way of PyTorch is recorded so.
        """
        found: dict[str, Any] = {"is_pytorch": self.implementation == "torch"}
        if error <= allowed:  # NaN is not below
            return found
        wrong = f"relative error of the {result} {error:.2e}, allowed {allowed:.2e}"
        if self.implementation != "torch":
            raise WrongResult(f"{self}: {wrong}")
        return {**found, "wrong": wrong}

    def prepare(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """Put `model`, in place, on these kernels and this layout, and return what to call.

        Blocks and stem of a ConvMixer are fused operations on the kernels, and modules of PyTorch
        one by one without them.
        """
        if self.implementation == "torch":
            use_plain_convolutions(model)
        else:
            convert_depthwise(model, self.implementation)
        # Stems have no depthwise convolution to tell them.
        for module in model.modules():
            if isinstance(module, PatchStem):
                module.impl = self.implementation
        model.to(memory_format=MEMORY_FORMATS[self.layout])  # type: ignore[call-overload]
        if not self.compiled:
            return model
        torch.compiler.reset()
        options: dict[str, Any] = {"layout_optimization": not self.keep_layout}
        compiled: Callable[[Tensor], Tensor] = torch.compile(model, dynamic=False, options=options)
        return compiled


def use_plain_convolutions(model: nn.Module) -> None:
    """Put an `nn.Conv2d` with the same parameters in place of every module of this project.

    PyTorch then runs, and torch.compile sees, what it would without this project.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, DepthwiseConv2d):
            channels = module.in_channels
            plain = nn.Conv2d(
                channels,
                channels,
                module.kernel_size,  # type: ignore[arg-type]
                padding="same",
                dilation=module.dilation,  # type: ignore[arg-type]
                groups=channels,
                device="meta",
            )
            plain.weight, plain.bias = module.weight, module.bias
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, plain)


def plain_ways(kernels: bool = True) -> list[Way]:
    """Return the ways without torch.compile, in both layouts: PyTorch and, if `kernels`, ours."""
    names = ("torch", "cuda", "triton") if kernels else ("torch",)
    return [Way(name, layout) for name in names for layout in LAYOUTS]


def ways(network: Network, selection: Selection, training: bool) -> list[Way]:
    """Everything for a ConvMixer; PyTorch for its peers."""
    found = plain_ways(kernels=network.has_depthwise)
    if selection.compiled == "all" and not training:
        found += [
            Way("torch", "contiguous", compiled=True),
            Way("torch", "contiguous", compiled=True, keep_layout=True),
        ]
    return found


def dtype_on(device: torch.device) -> torch.dtype:
    """Half precision as in the paper; PyTorch's CPU convolutions are made for float32."""
    return torch.float16 if device.type == "cuda" else torch.float32
