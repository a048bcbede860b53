"""The pointwise convolution as one matrix product: values, layouts, and no copies of features."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convmixer.model.pointwise import pointwise_product, pointwise_product_of_inference
from tests.helpers import strided
from tests.helpers.fused_cases import DEVICE

pytestmark = pytest.mark.gpu

LAYOUTS = {"outermost": strided.channels_outermost, "channels_last": strided.channels_last}
COPIES = ("aten::clone", "aten::copy_", "aten::contiguous", "aten::_to_copy")


def random_case(
    shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Features, a weight to as many channels and one, and a gradient."""
    images, channels, height, width = shape
    generator = torch.Generator().manual_seed(0)
    sizes = (shape, (channels + 1, channels, 1, 1), (images, channels + 1, height, width))
    return [torch.randn(size, generator=generator).to(DEVICE, dtype) for size in sizes]


def copies_of(elements: int, function: Callable[[], object]) -> list[str]:
    """The copies of tensors with so many elements that `function` makes."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True, acc_events=True
    ) as profile:
        function()
    return [
        event.name
        for event in profile.events()
        if event.name in COPIES
        and event.input_shapes
        and torch.Size(event.input_shapes[0]).numel() == elements
    ]


@pytest.mark.parametrize("layout", [*LAYOUTS.values(), Tensor.contiguous, Tensor.clone])
@pytest.mark.parametrize(
    "shape", [(3, 4, 5, 7), (1, 4, 5, 7), (3, 1, 5, 7), (3, 4, 1, 1), (0, 4, 5, 7)]
)
def test_equals_the_convolution(layout, shape) -> None:
    features, weight, grad = random_case(shape)
    leaves = [layout(features).requires_grad_(), weight.requires_grad_()]
    product, expected = pointwise_product(*leaves), F.conv2d(*leaves)
    torch.testing.assert_close(product, expected)
    for ours, theirs in zip(
        torch.autograd.grad(product, leaves, grad),
        torch.autograd.grad(expected, leaves, grad),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "layout",
    [
        *LAYOUTS.values(),
        Tensor.contiguous,
        strided.slice_of_channels,
        strided.transposed_planes,
        lambda tensor: strided.channels_outermost(tensor)[:1].expand_as(tensor),
    ],
)
@pytest.mark.parametrize(
    "shape", [(3, 4, 5, 7), (1, 4, 5, 7), (3, 1, 5, 7), (3, 4, 1, 1), (1, 1, 1, 7), (0, 4, 5, 7)]
)
@pytest.mark.parametrize("transposed", [False, True])
def test_inference_takes_the_same_product(layout, shape, transposed) -> None:
    features, weight, _ = random_case(shape)
    features = layout(features) if shape[0] else features
    if transposed:
        weight = weight.transpose(0, 1).contiguous().transpose(0, 1)
    with torch.no_grad():
        product = pointwise_product_of_inference(features, weight)
        expected = pointwise_product(features, weight)
    torch.testing.assert_close(product, expected)
    # Strides along dimensions of one element mean nothing.
    assert [n for n, size in zip(product.stride(), product.shape, strict=True) if size > 1] == [
        n for n, size in zip(expected.stride(), expected.shape, strict=True) if size > 1
    ]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_features_are_never_copied(layout, autocast) -> None:
    features, weight, grad = random_case(
        (6, 9, 5, 7), torch.bfloat16 if autocast else torch.float32
    )
    features, grad = LAYOUTS[layout](features), LAYOUTS[layout](grad)
    weight = weight.float()
    leaves = [features.requires_grad_(), weight.requires_grad_()]

    def train() -> tuple[Tensor, tuple[Tensor, ...]]:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
            product = pointwise_product(*leaves)
        return product, torch.autograd.grad(product, leaves, grad)

    product, (grad_features, _) = train()
    assert product.stride() == grad.stride() and grad_features.stride() == features.stride()
    for tensor in (features, grad):
        assert copies_of(tensor.numel(), train) == []


def test_hidden_copies_are_found() -> None:
    """PyTorch's product of contiguous features makes some."""
    features, weight, grad = random_case((6, 9, 5, 7), torch.float32)
    leaves = [features.requires_grad_(), weight.requires_grad_()]

    def train() -> None:
        product = (weight.flatten(1) @ features.flatten(2)).view(grad.shape)
        torch.autograd.grad(product, leaves, grad)

    assert copies_of(features.numel(), train)
