"""FLOPs as PyTorch counts them, and the names that its profiler shows."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from convmixer import ConvMixer
from convmixer_kernels import DepthwiseConv2d, depthwise_conv2d_gelu_batch_norm
from tests.helpers.depthwise_cases import KERNELS
from tests.helpers.fused_cases import DEVICE

pytestmark = pytest.mark.gpu

IMAGE = (2, 3, 8, 8)
CONVOLUTION = 2 * 2 * 3 * 8 * 8 * 5 * 5


def counted(function, *arguments) -> tuple[int, object]:
    with FlopCounterMode(display=False) as counter:
        result = function(*arguments)
    return counter.get_total_flops(), result


def image(**options) -> torch.Tensor:
    return torch.randn(*IMAGE, device=DEVICE, dtype=torch.float16, **options)


@pytest.mark.parametrize("impl", KERNELS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_backward_pass_counts_twice_its_forward_pass(impl, bias):
    layer = DepthwiseConv2d(3, 5, bias=bias, impl=impl, device=DEVICE, dtype=torch.float16)
    input = image(requires_grad=True)
    forward, output = counted(layer, input)
    assert forward == CONVOLUTION
    assert counted(output.sum().backward)[0] == 2 * forward
    # PyTorch's own forward pass counts the same.
    plain = nn.Conv2d(3, 3, 5, padding=2, groups=3).to(DEVICE)
    assert counted(plain, input.float())[0] == forward
    layer.weight.requires_grad_(False)
    assert counted(layer(input).sum().backward)[0] == forward
    if bias:
        assert counted(layer(input.detach()).sum().backward)[0] == 0


@pytest.mark.parametrize("impl", KERNELS)
@pytest.mark.parametrize("training", [True, False])
def test_fused_operations(impl, training):
    weight = torch.randn(3, 1, 5, 5, device=DEVICE, dtype=torch.float16, requires_grad=True)
    gamma = torch.ones(3, device=DEVICE, requires_grad=True)
    statistics = torch.zeros(3, device=DEVICE), torch.ones(3, device=DEVICE)

    def run(input, weight):
        return depthwise_conv2d_gelu_batch_norm(
            input, weight, None, gamma, None, *statistics, training=training, impl=impl
        )

    for input, filters, gradients in (
        (image(requires_grad=True), weight, 2),
        (image(), weight, 1),
        (image(), weight.detach(), 0),
    ):
        forward, output = counted(run, input, filters)
        assert forward == CONVOLUTION
        assert counted(output.sum().backward)[0] == gradients * forward


def test_a_model_counts_what_it_counts_in_pytorch():
    """Convolutions of the stem and of depth 2, products of 1 x 1, and the head."""
    counts = []
    for impl in ("torch", KERNELS[0]):
        model = ConvMixer(4, 2, 3, 2, 5, dw_impl=impl).to(DEVICE).eval()
        with torch.no_grad(), torch.autocast(DEVICE, dtype=torch.float16):
            counts.append(counted(model, torch.randn(1, 3, 8, 8, device=DEVICE))[0])
    positions = 4 * 4
    block = 2 * positions * 4 * (3 * 3 + 4)
    assert counts == [2 * (positions * 4 * 3 * 2 * 2 + 4 * 5) + 2 * block] * 2


def test_the_profiler_shows_the_operators():
    layer = DepthwiseConv2d(3, 5, impl=KERNELS[0], device=DEVICE, dtype=torch.float16)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        layer(image()).sum().backward()
    assert {event.key for event in profiler.key_averages()} >= {
        "convmixer_kernels::depthwise_conv2d",
        "convmixer_kernels::depthwise_conv2d_weight_gradient",
    }
