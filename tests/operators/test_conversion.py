"""Networks of others on the kernels: outputs and gradients as near to float64 as PyTorch's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convmixer_kernels import DepthwiseConv2d, convert_depthwise, restore_depthwise
from convmixer_kernels.megengine import DepthWiseConv2dImplicitGEMM
from tests.helpers.depthwise_cases import DEVICE

pytestmark = pytest.mark.gpu

NARROW = {"dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1)}
# With the initial scale of 1e-6 a block would be lost in the rounding of its residual.
UNSCALED = {**NARROW, "ls_init_value": 1.0}
# Arguments that make a model of timm small, and how many layers of the whole model are converted.
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "convnext_tiny": (UNSCALED, 18),
    "convnextv2_atto": (NARROW, 12),
    "inception_next_atto": (UNSCALED, 36),
    "mobilenetv4_conv_small_035": ({}, 13),
    "repvit_m0_9": ({"embed_dim": (8, 8, 16, 16), "depth": (1, 1, 1, 1)}, 46),
}


def built(name: str, **arguments: Any) -> nn.Module:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=4, **arguments)
    return model


def step(model: nn.Module, image: Tensor, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Output and gradients of a step in training; `dtype` is that of autocast."""
    leaf = image.clone().requires_grad_()
    with torch.autocast(DEVICE, dtype, enabled=dtype is not None):
        output = model(leaf)
    output = output[0] if isinstance(output, tuple) else output
    output.double().square().mean().backward()
    grads = {"input": leaf.grad, **{name: each.grad for name, each in model.named_parameters()}}
    assert [name for name, grad in grads.items() if grad is None] == []
    return {
        "output": output.detach(),
        **{name: grad for name, grad in grads.items() if grad is not None},
    }


def assert_as_near_to_exact(ours: nn.Module, plain: nn.Module, size: int) -> None:
    """Compare a step in bfloat16 with one in float64: at most twice as far from it as PyTorch."""
    image = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    exact = step(copy.deepcopy(plain).double(), image.double())
    actual, of_pytorch = (step(model, image, torch.bfloat16) for model in (ours, plain))
    largest = max(tensor.norm().item() for tensor in exact.values())
    compared = 0
    for name, wanted in exact.items():
        # The gradient of a bias before batch normalisation is nothing but rounding.
        if (length := wanted.norm().item()) > 1e-6 * largest:
            own, limit = ((each[name] - wanted).norm() / length for each in (actual, of_pytorch))
            assert own <= 2 * limit + torch.finfo(torch.bfloat16).eps, name
            compared += 1
    assert compared > len(exact) / 2


@pytest.mark.parametrize("name", MODELS)
def test_converted_models_of_timm(name: str) -> None:
    plain = built(name, **MODELS[name][0]).to(DEVICE)
    ours = copy.deepcopy(plain)
    assert convert_depthwise(ours, "cuda")
    assert_as_near_to_exact(ours, plain, 64)


@pytest.mark.parametrize("name", MODELS)
def test_whole_models_of_timm_are_converted_and_restored(name: str) -> None:
    """On the meta device a kernel computes shapes."""
    with torch.device("meta"):
        model = built(name).half()
        before = repr(model)
        image = torch.empty(2, 3, 64, 64, dtype=torch.float16)
        expected = model(image)
        report = convert_depthwise(model, "cuda")
        output = model(image)
    if isinstance(output, tuple):
        output, expected = output[0], expected[0]
    assert len(report.converted) == MODELS[name][1], str(report)
    assert output.shape == expected.shape
    output.sum().backward()
    layers = [layer for layer in model.modules() if isinstance(layer, DepthwiseConv2d)]
    assert all(layer.weight.grad is not None for layer in layers)
    assert restore_depthwise(model) == report.converted
    assert repr(model) == before


# ---- RepLKNet ------------------------------------------------------------------------------------

Layer = Callable[[int, int, bool], nn.Module]


def of_pytorch(channels: int, size: int, bias: bool) -> nn.Module:
    return nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels, bias=bias)


def of_megengine(channels: int, size: int, bias: bool) -> nn.Module:
    return (
        DepthWiseConv2dImplicitGEMM(channels, size, bias=bias)
        if size > 5
        else of_pytorch(channels, size, bias)
    )


class LargeKernel(nn.Module):
    """A large filter beside one of 5 x 5, each normalised; merged they are one with a bias."""

    def __init__(self, channels: int, size: int, layer: Layer) -> None:
        super().__init__()
        self.layer = layer
        self.large = nn.Sequential(layer(channels, size, False), nn.BatchNorm2d(channels))
        self.small = nn.Sequential(layer(channels, 5, False), nn.BatchNorm2d(channels))
        self.merged: nn.Module | None = None

    def forward(self, image: Tensor) -> Tensor:
        if self.merged is not None:
            return self.merged(image)
        output: Tensor = self.large(image)
        output += self.small(image)
        return output

    @torch.no_grad()
    def merge(self) -> None:
        """Reads of a layer what RepLKNet's own code reads: its weight and its kernel size."""
        size = self.large[0].kernel_size[0]
        filters, bias = folded(*self.large)
        small_filters, small_bias = folded(*self.small)
        merged = self.layer(len(bias), size, True).to(bias.device)
        merged.weight.data = filters + F.pad(small_filters, [(size - 5) // 2] * 4)
        merged.bias.data = bias + small_bias
        self.merged = merged


def folded(convolution: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Filters and bias of a convolution with the batch normalisation behind it."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return convolution.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


class Block(nn.Module):
    def __init__(self, channels: int, size: int, layer: Layer) -> None:
        super().__init__()
        self.large = LargeKernel(channels, size, layer)
        self.branch = nn.Sequential(
            nn.BatchNorm2d(channels),
            *(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()),
            *(self.large, nn.ReLU()),
            *(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)),
        )

    def forward(self, image: Tensor) -> Tensor:
        output: Tensor = image + self.branch(image)
        return output


def replknet(size: int, layer: Layer) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, stride=4), Block(8, size, layer), Block(8, size, layer)
    ).to(DEVICE)


@pytest.mark.parametrize("size", [13, 15])
def test_blocks_of_replknet(size: int) -> None:
    ours, plain = replknet(size, of_megengine), replknet(size, of_pytorch)
    plain.load_state_dict(ours.state_dict())
    layers = [layer for layer in ours.modules() if isinstance(layer, DepthWiseConv2dImplicitGEMM)]
    assert len(layers) == 2
    for layer in layers:
        layer.impl = "cuda"
    assert_as_near_to_exact(ours, plain, 64)

    image = torch.randn(2, 3, 64, 64, device=DEVICE)
    for model in (ours, plain):
        model.eval()
    expected = plain(image)
    for block in (ours[1], ours[2]):
        block.large.merge()
        assert isinstance(block.large.merged, DepthWiseConv2dImplicitGEMM)
    torch.testing.assert_close(ours(image), expected, atol=1e-4, rtol=1e-4)
