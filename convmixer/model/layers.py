"""The parts of a ConvMixer: normalisation, residual branches, stems and blocks."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from convmixer.model.fused_block import (
    FusedBlock,
    activated_norm,
    forget_tables,
    fused_block,
    patch_operands,
    runs_kernels,
)
from convmixer.model.patches import patch_product
from convmixer_kernels import DepthwiseConv2d, gelu_batch_norm
from convmixer_kernels.modules import one_node


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of each position of (N, C, H, W).

    Mean and variance (eps 1e-5) are those of the C values at one position of one image; scale and
    shift are per channel. The paper leaves the axes open and takes LayerNorm from ViT and
    MLP-Mixer, where every patch is normalised by itself, as here. Normalising over (C, H, W)
    instead would mix all positions in a layer that is not meant to mix any.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, input: Tensor) -> Tensor:
        normalised = F.layer_norm(
            input.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        ).permute(0, 3, 1, 2)
        channels_last = input.is_contiguous(memory_format=torch.channels_last)
        return normalised if channels_last else normalised.contiguous()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}
NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm2d, "layer": LayerNorm2d}


class Residual(nn.Module):
    """A residual branch ``fn(x) + x``; without `skip` ``fn(x)``, with the same state dict."""

    def __init__(self, fn: nn.Module, skip: bool = True) -> None:
        super().__init__()
        self.fn = fn
        self.skip = skip

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.fn(input)
        return output + input if self.skip else output

    def extra_repr(self) -> str:
        return f"skip={self.skip}"


# The names that `nn.Sequential` gives its first modules.
_POSITIONS = tuple(str(position) for position in range(8))


class Chain(nn.Sequential):
    """Modules in sequence, of which `run` computes the first `length` together.

    A chain that lacks one of these modules, such as a slice, runs as a plain `nn.Sequential`.
    Modules appended to the chain run after `run`. Slices keep the `options`.
    """

    length: ClassVar[int]
    options: ClassVar[tuple[str, ...]]

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        if isinstance(index, slice):
            for name in self.options:
                setattr(found, name, getattr(self, name))
        return found

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, torch.fx.Proxy):
            return one_node(self, input)
        # The modules of a slice keep their names, so a slice is known by them.
        if tuple(self._modules)[: self.length] != _POSITIONS[: self.length]:
            plain: Tensor = super().forward(input)
            return plain
        modules = tuple(self._modules.values())
        output = self.run(input, *modules[: self.length])
        for module in modules[self.length :]:
            output = module(output)
        return output

    def run(self, input: Tensor, *modules: nn.Module) -> Tensor:
        """Compute the first `length` modules."""
        raise NotImplementedError


class Block(Chain):
    """Equations 2 and 3: a residual depthwise branch, then pointwise convolution, activation, norm.

    The children have the names of timm's implementation: ``0.fn.*`` for the depthwise branch, ``1``
    for the pointwise convolution and ``3`` for its norm. `pointwise_residual` adds the input of the
    pointwise part to its output. If fused operations can compute the block (see `fused_block`), the
    output is CNHW or, for channels_last input, channels_last.
    """

    length = 4
    options = ("pointwise_residual",)

    def __init__(self, *modules: Any, pointwise_residual: bool = False) -> None:
        super().__init__(*modules)
        self.pointwise_residual = pointwise_residual

    def run(self, input: Tensor, *modules: nn.Module) -> Tensor:
        residual, pointwise, activation, norm = modules
        fused = self._fused(*modules)
        if fused is not None:
            output = fused.infer(input)
            if output is not None:
                return output
            if runs_kernels(input, fused.weight, fused.impl):
                return fused.forward(input)
        spatial: Tensor = residual(input)
        mixed: Tensor = norm(activation(pointwise(spatial)))
        forget_tables(self)
        return mixed + spatial if self.pointwise_residual else mixed

    def _fused(
        self, residual: nn.Module, pointwise: nn.Module, activation: nn.Module, norm: nn.Module
    ) -> FusedBlock | None:
        if type(residual) is not Residual:
            return None
        branch, skip = residual.fn, residual.skip
        return fused_block(
            residual, branch, skip, pointwise, activation, norm, self.pointwise_residual
        )


def make_block(
    dim: int,
    kernel_size: int,
    *,
    activation: str,
    norm: str,
    residual: str,
    stacked: int,
    dw_impl: str,
) -> Block:
    """Return a block of width `dim`; the arguments are those of `ConvMixer`."""
    activate = ACTIVATIONS[activation]
    depthwise: list[nn.Module] = []
    for _ in range(stacked):
        depthwise += [DepthwiseConv2d(dim, kernel_size, impl=dw_impl), activate()]
    return Block(
        Residual(nn.Sequential(*depthwise, NORMS[norm](dim)), skip=residual != "none"),
        nn.Conv2d(dim, dim, kernel_size=1),
        activate(),
        NORMS[norm](dim),
        pointwise_residual=residual == "both",
    )


class PatchStem(Chain):
    """Equation 1: patch embedding, then activation and norm.

    Activation and norm are one fused operation where kernels run them, and an untouched patch
    embedding (see `fused_block`) is one matrix product before it, whose bias that operation adds.
    The output is then CNHW, or channels_last if the images or the filters are.
    """

    length = 3
    options = ("impl",)

    def __init__(self, *modules: Any, impl: str = "auto") -> None:
        super().__init__(*modules)
        self.impl = impl

    def run(self, input: Tensor, *modules: nn.Module) -> Tensor:
        embedding, activation, norm = modules
        fused = activated_norm(activation, norm)
        may_fuse = fused is not None and self.impl != "torch"
        operands = patch_operands(embedding, input) if may_fuse else None
        if fused is not None and operands is not None:
            weight, bias = operands
            # The product has the device and the dtype of the weight, on which the choice depends.
            if runs_kernels(weight, None, self.impl):
                product = patch_product(input, weight)
                return gelu_batch_norm(product, bias=bias, impl=self.impl, **fused.next_batch())
        value: Tensor = embedding(input)
        if fused is not None and runs_kernels(value, None, self.impl):
            return gelu_batch_norm(value, impl=self.impl, **fused.next_batch())
        output: Tensor = norm(activation(value))
        forget_tables(self)
        return output


def make_patch_stem(
    in_chans: int, dim: int, patch_size: int, *, activation: str, norm: str, dw_impl: str
) -> PatchStem:
    """Return a stem from H x W to H // p x W // p; the arguments are those of `ConvMixer`."""
    return PatchStem(
        nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size),
        ACTIVATIONS[activation](),
        NORMS[norm](dim),
        impl=dw_impl,
    )


def make_resnet_stem(
    in_chans: int, dim: int, patch_size: int, *, activation: str, norm: str
) -> nn.Sequential:
    """Return the ResNet-style stem of table 4: strided convolution, norm, activation, max pooling.

    A p x p convolution of stride p / 2 padded by p / 2 leaves n // (p / 2) + 1 of n positions, and
    3 x 3 pooling of stride 2 without padding then leaves n // p, the number of the patch stem.
    """
    half = patch_size // 2
    return nn.Sequential(
        nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=half, padding=half),
        NORMS[norm](dim),
        ACTIVATIONS[activation](),
        nn.MaxPool2d(kernel_size=3, stride=2),
    )


def run_checkpointed(block: nn.Module, input: Tensor) -> Tensor:
    """Run `block` without keeping its activations; the backward pass computes them again.

    Running statistics of BatchNorm are updated once a step, in the forward pass.
    """
    output: Tensor = checkpoint(
        functools.partial(_run_or_recompute, block),
        input,
        use_reentrant=False,
        # Blocks draw no random numbers, and saving the generator's state would synchronise a GPU.
        preserve_rng_state=False,
    )
    return output


def _run_or_recompute(block: nn.Module, input: Tensor) -> Tensor:
    """Run `block`; in the backward pass, leave its running statistics as they are."""
    # A compiler traces the block once and does not replay its updates of buffers.
    in_backward = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
    output: Tensor
    if in_backward:
        with _statistics_kept(block):
            output = block(input)
    else:
        output = block(input)
    return output


@contextlib.contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Let the BatchNorm layers of `module` update copies of their buffers, then drop the copies.

    Without buffers the layers would save fewer tensors for autograd, and recomputation has to save
    exactly as many as the forward pass.
    """
    originals = []
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training:
            originals.append((layer, dict(layer._buffers)))
            for name, buffer in layer._buffers.items():
                layer._buffers[name] = None if buffer is None else buffer.clone()
    try:
        yield
    finally:
        for layer, buffers in originals:
            layer._buffers.update(buffers)
