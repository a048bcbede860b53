"""Write docs/models.md from the depthwise convolutions of networks: `make models`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.lib import large_kernel_networks as networks
from convmixer_kernels import convert_depthwise, merge_branches
from convmixer_kernels.filters import Filter

PAGE = Path(__file__).with_name("models.md")
HEAD = """\
# Models

`make models` writes this page. It counts the multiplications of each network's depthwise
convolutions, as it is trained, for an image of 224 x 224, and the share of them that
`convert_depthwise(model, impl)` puts on the kernels. Convolutions that are left have a stride of
2, or filters that reach too far, and run in PyTorch. A share says nothing of time. The last column
counts the blocks that `merge_branches(model, "cuda")` runs as one convolution in evaluation.

| model | depthwise filters | `"cuda"` | `"triton"` | left by `"cuda"` | merged |
| --- | --- | ---: | ---: | --- | --- |
"""
TAIL = """
ConvMixer, ConvNeXt, InceptionNeXt and MobileNetV4 are timm's; the others are
[built after their descriptions](../benchmarks/lib/large_kernel_networks.py).
"""
Build = Callable[[], nn.Module]


def _timm(name: str) -> Build:
    def build() -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(name)
        return model

    return build


MODELS: dict[str, Build] = {
    "ConvMixer-1536/20": _timm("convmixer_1536_20"),
    "ConvNeXt-T": _timm("convnext_tiny"),
    "InceptionNeXt-T": _timm("inception_next_tiny"),
    "MobileNetV4 small": _timm("mobilenetv4_conv_small"),
    "RepLKNet-31B": networks.rep_lk_net_31b,
    "UniRepLKNet-T": networks.uni_rep_lk_net_tiny,
    "VAN-B2": networks.van_b2,
    "MogaNet-S": networks.moga_net_small,
    "SLaK-T": networks.slak_tiny,
}


class Layer(NamedTuple):
    """A depthwise convolution: its filter, its stride and its multiplications for an image."""

    filter: Filter
    stride: int
    products: int

    def __str__(self) -> str:
        return f"{self.filter}" + (f", stride {self.stride}" if self.stride > 1 else "")


def layers(model: nn.Module) -> dict[str, Layer]:
    """Count the depthwise convolutions of a model on the meta device, by name."""
    found: dict[str, Layer] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(layer: nn.Conv2d, _: object, output: torch.Tensor) -> None:
            height, width = layer.kernel_size
            filter = Filter(height, width, *layer.dilation)
            found[name] = Layer(filter, layer.stride[0], output[0].numel() * filter.taps)

        return hook

    hooks = [
        layer.register_forward_hook(record(name))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1
    ]
    with torch.device("meta"):
        model(torch.empty(1, 3, 224, 224))
    for hook in hooks:
        hook.remove()
    return found


def row(name: str, build: Build) -> str:
    """Return the line of a model."""
    with torch.device("meta"):
        model = build().eval()
    all_layers = layers(model)
    total = sum(layer.products for layer in all_layers.values())
    shares = []
    for impl in ("triton", "cuda"):
        reasons = convert_depthwise(model, impl).left
        left = [layer for name, layer in all_layers.items() if name in reasons]
        shares.append(1 - sum(layer.products for layer in left) / total)
    merged = Counter(
        sum(name.startswith(f"{block}.") for name in all_layers)
        for block in merge_branches(model, "cuda").merged
    )
    filters = Counter(str(layer) for layer in all_layers.values())
    triton, cuda = (f"{100 * share:.1f} %" for share in shares)
    listed = ", ".join(f"{count} of {filter}" for filter, count in filters.most_common())
    others = ", ".join(dict.fromkeys(map(str, left)))
    blocks = ", ".join(f"{count} of {branches} filters" for branches, count in merged.items())
    return f"| {name} | {listed} | {cuda} | {triton} | {others} | {blocks} |\n"


def page() -> str:
    """Return the text of the page."""
    return HEAD + "".join(row(name, build) for name, build in MODELS.items()) + TAIL


if __name__ == "__main__":
    PAGE.write_text(page())
