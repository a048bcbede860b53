"""Parallel depthwise branches that run as one convolution: merge_branches and restore_branches."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from convmixer_kernels import (
    DepthwiseConv2d,
    MergedBranches,
    branches,
    convert_depthwise,
    inference_tables,
    merge_branches,
    restore_branches,
)
from tests.helpers.depthwise_cases import BF16, DEVICE, FP16

CHANNELS = 3


def depthwise(
    size: int | tuple[int, int], dilation: int = 1, bias: bool = False, channels: int = CHANNELS
) -> nn.Conv2d:
    return nn.Conv2d(
        *(channels, channels, size, 1, "same", dilation), groups=channels, bias=bias
    )


def normed(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels))


class Added(nn.Module):
    """The sum of branches, as the code of RepLKNet adds them up."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, image: Tensor) -> Tensor:
        output = self.branches[0](image)
        for branch in self.branches[1:]:
            output += branch(image)
        return output


class Dilated(nn.Module):
    """UniRepLKNet's: convolutions and normalisations side by side, under computed names."""

    def __init__(self) -> None:
        super().__init__()
        self.dilations = (1, 2, 3)
        self.large, self.large_norm = depthwise(7), nn.BatchNorm2d(CHANNELS)
        for dilation in self.dilations:
            setattr(self, f"convolution_{dilation}", depthwise(3, dilation))
            setattr(self, f"norm_{dilation}", nn.BatchNorm2d(CHANNELS, eps=1e-3))

    def forward(self, image: Tensor) -> Tensor:
        output = self.large_norm(self.large(image))
        for dilation in self.dilations:
            convolution = getattr(self, f"convolution_{dilation}")
            output = output + getattr(self, f"norm_{dilation}")(convolution(image))
        return output


class Normalised(nn.Module):
    """RepViT's: branches, one without normalisation, and the image, all normalised together."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = normed(depthwise(5)), depthwise(1, bias=True)
        self.norm = nn.BatchNorm2d(CHANNELS)

    def forward(self, image: Tensor) -> Tensor:
        output: Tensor = self.norm(self.large(image) + self.small(image) + image)
        return output


class Activated(nn.Module):
    """MobileOne's: a normalised image among the branches, and layers after their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.skip = nn.BatchNorm2d(CHANNELS)
        self.convolutions = nn.ModuleList(normed(depthwise(3)) for _ in range(2))
        self.dropped = nn.Identity()
        self.mix, self.activation = nn.Conv2d(CHANNELS, 2, 1), nn.GELU()

    def forward(self, image: Tensor) -> Tensor:
        output = 0
        for convolution in self.convolutions:
            output += convolution(image)
        output = self.dropped(output) + self.skip(image)
        return self.activation(self.mix(output))


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "large and small": lambda: Added(normed(depthwise(9)), normed(depthwise(5))),
    "dilated": Dilated,
    "normalised": Normalised,
    "activated": Activated,
    "crossed": lambda: Added(*(normed(depthwise(size)) for size in ((7, 3), (3, 7), (3, 3)))),
    "even": lambda: Added(normed(depthwise(4)), normed(depthwise(2, 3)), normed(depthwise(3))),
    "without parameters": lambda: Added(
        nn.Sequential(depthwise(3, bias=True), nn.BatchNorm2d(CHANNELS, affine=False)), depthwise(5)
    ),
}


def trained(block: nn.Module) -> nn.Module:
    """Give a block parameters and statistics as training leaves them behind."""
    for each in block.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.running_mean.normal_()
            each.running_var.uniform_(0.5, 2)
            if each.affine:
                nn.init.uniform_(each.weight, 0.5, 2)
                nn.init.normal_(each.bias)
    return block.to(DEVICE)


def pair(name: str = "dilated", impl: str = "auto") -> tuple[nn.Module, nn.Module]:
    """Return a merged block and the same one as it was."""
    plain = trained(BLOCKS[name]())
    merged = copy.deepcopy(plain)
    assert merge_branches(merged, impl).merged == ("",)
    return merged, plain


def images(dtype: torch.dtype = torch.float64, size: tuple[int, int] = (9, 6)) -> Tensor:
    return torch.randn(2, CHANNELS, *size, device=DEVICE, dtype=dtype)


def results(block: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Return the output, all gradients and all buffers after a step."""
    block.zero_grad()
    image = image.clone().requires_grad_()
    output = block(image)
    output.backward(torch.linspace(-1, 1, output.numel()).to(output).view_as(output))
    gradients = {f"d{name}": each.grad for name, each in block.named_parameters()}
    return {"output": output, "dimage": image.grad, **gradients, **dict(block.named_buffers())}


def calls_of_branches(block: nn.Module) -> list[nn.Module]:
    """Return a list that the convolutions of a block are put in whenever one runs by itself."""
    called: list[nn.Module] = []
    for each in block.modules():
        if isinstance(each, nn.Conv2d) and each.groups > 1:
            original = each._conv_forward

            def recorded(*operands, original=original, each=each):
                called.append(each)
                return original(*operands)

            each._conv_forward = recorded
    return called


@pytest.mark.parametrize("mode", ["evaluation", "frozen"])
@pytest.mark.parametrize("name", BLOCKS)
def test_merged_branches_equal_the_branches(name: str, mode: str) -> None:
    """In evaluation, and where everything trains but the statistics."""
    merged, plain = pair(name)
    for block in (merged.double(), plain.double()):
        block.train(mode == "frozen")
        for each in block.modules():
            if isinstance(each, nn.BatchNorm2d):
                each.eval()
    image = images()
    expected = results(plain, image)
    called = calls_of_branches(merged)
    actual = results(merged, image)
    assert called == []
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", BLOCKS)
def test_in_training_mode_branches_run_as_before(name: str) -> None:
    merged, plain = pair(name)
    image = images(torch.float32)
    assert merged.training
    expected = results(plain, image)
    actual = results(merged, image)
    assert all(torch.equal(actual[each], expected[each]) for each in expected)
