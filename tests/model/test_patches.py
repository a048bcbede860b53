"""The patch embedding as one matrix product: values, layouts, and the modules it stands in for."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from convmixer.model import fused_block, layers
from convmixer.model.layers import PatchStem, make_patch_stem
from convmixer.model.patches import patch_product
from tests.helpers import oracle, strided
from tests.helpers.depthwise_cases import BF16, DEVICE, FP16, FP32
from tests.model.test_pointwise import copies_of

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]

CONTIGUOUS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def random_case(images: tuple[int, ...], filters: int, patch: tuple[int, int]) -> list[Tensor]:
    """Images, filters, and a gradient of the output."""
    count, channels, height, width = images
    output = (count, filters, height // patch[0], width // patch[1])
    return [random(*images), random(filters, channels, *patch, seed=1), random(*output, seed=2)]


def results(
    function: Callable[[Tensor, Tensor], Tensor], images: Tensor, weight: Tensor, grad: Tensor
) -> list[Tensor]:
    """Output, gradient of the images, gradient of the filters."""
    leaves = [images.detach().requires_grad_(), weight.detach().requires_grad_()]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def convolution(images: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(images, weight, stride=weight.shape[2:])  # type: ignore[arg-type]


def expanded(tensor: Tensor) -> Tensor:
    return tensor[:1].expand_as(tensor)


@pytest.mark.parametrize(
    "layout",
    [
        Tensor.contiguous,
        strided.channels_last,
        strided.slice_of_rows_and_columns,
        strided.inner_pixels,
        strided.transposed_planes,
        expanded,
    ],
)
@pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST])
@pytest.mark.parametrize("dtype", [FP32, FP16])
@pytest.mark.parametrize(
    ("size", "patch"),
    [
        ((3, 3, 5, 7), (1, 1)),
        ((3, 3, 13, 11), (2, 2)),
        ((2, 3, 23, 37), (7, 7)),
        ((1, 1, 14, 14), (14, 14)),
        ((2, 2, 17, 31), (4, 2)),
        ((0, 3, 14, 14), (7, 7)),
    ],
    ids=str,
)
def test_equals_the_convolution(size, patch, dtype, memory_format, layout) -> None:
    images, weight, grad = (tensor.to(dtype) for tensor in random_case(size, 5, patch))
    images, weight = layout(images), weight.to(memory_format=memory_format)
    actual = results(patch_product, images, weight, grad)
    pytorch = results(convolution, images, weight, grad)
    exact = results(convolution, images.double(), weight.double(), grad.double())
    terms = (weight[0].numel(), 1, grad[:, 0].numel())
    names = ("output", "gradient of images", "gradient of filters")
    for name, ours, wanted, theirs, count in zip(names, actual, exact, pytorch, terms, strict=True):
        assert ours.dtype == dtype
        oracle.assert_close(name, ours, wanted, theirs, count)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("of_weight", [CONTIGUOUS, CHANNELS_LAST])
@pytest.mark.parametrize("of_images", [CONTIGUOUS, CHANNELS_LAST])
def test_strides(of_images, of_weight, patch, channels) -> None:
    """Channels_last for what PyTorch's convolution makes channels_last, and otherwise CNHW."""
    images, weight, grad = random_case((3, channels, 9, 7), 5, (patch, patch))
    images = images.to(memory_format=of_images)
    weight = weight.to(memory_format=of_weight)
    output, _, grad_weight = results(patch_product, images, weight, grad)
    height, width = output.shape[2:]
    # A filter of a single value has the same strides in both formats.
    channels_last = CHANNELS_LAST in (of_images, of_weight if channels * patch > 1 else of_images)
    outermost = (height * width, 3 * height * width, width, 1)
    innermost = (5 * height * width, 1, 5 * width, 5)
    assert output.stride() == (innermost if channels_last else outermost)
    assert grad_weight.stride() == weight.stride()


def test_images_of_another_dtype_are_cast() -> None:
    images, weight, grad = random_case((2, 3, 15, 14), 5, (7, 7))
    weight, grad = weight.half(), grad.half()
    actual = results(patch_product, images, weight, grad)
    wanted = results(patch_product, images.half(), weight, grad)
    assert [tensor.dtype for tensor in actual] == [FP16, FP32, FP16]
    for ours, theirs in zip(actual, wanted, strict=True):
        assert torch.equal(ours, theirs.to(ours.dtype))


# ---- in the stem ---------------------------------------------------------------------------------


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtypes of the products that stems take."""
    dtypes: list[torch.dtype] = []

    def recorded(images: Tensor, weight: Tensor) -> Tensor:
        dtypes.append(weight.dtype)
        return patch_product(images, weight)

    monkeypatch.setattr(layers, "patch_product", recorded)
    return dtypes


def make_stem(dw_impl: str = "cuda", patch_size: int = 7) -> PatchStem:
    torch.manual_seed(0)
    stem = make_patch_stem(3, 5, patch_size, activation="gelu", norm="batch", dw_impl=dw_impl)
    return stem.to(DEVICE)


def step(stem: PatchStem, images: Tensor) -> list[Tensor]:
    """The output of a step, then the gradients of images and parameters."""
    images = images.detach().requires_grad_()
    output = stem(images)
    grad = random(*output.shape, seed=3).to(output.dtype)
    return [output, *torch.autograd.grad(output, [images, *stem.parameters()], grad)]


@pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_step_of_the_stem(autocast, memory_format, products) -> None:
    """Bias and strides too; beside PyTorch at the same precision."""
    stem = make_stem().to(memory_format=memory_format)  # type: ignore[call-overload]
    images = random(3, 3, 16, 25).to(memory_format=memory_format)
    if not autocast:
        stem, images = stem.half(), images.half()
    plain = copy.deepcopy(stem)
    plain.impl = "torch"
    exact = step(copy.deepcopy(plain).double(), images.double())
    with torch.autocast(DEVICE, FP16, enabled=autocast):
        actual, pytorch = step(stem, images), step(plain, images)
    assert products == [FP16]
    names = ["output", "images", *(name for name, _ in stem.named_parameters())]
    for name, ours, wanted, theirs in zip(names, actual, exact, pytorch, strict=True):
        assert ours.dtype == theirs.dtype, name
        scale = wanted.norm().item()
        error, allowed = ((t.double() - wanted).norm().item() / scale for t in (ours, theirs))
        # Normalisation takes away what the bias adds, up to rounding.
        assert error <= 2 * allowed + 2e-3, name
    for ours, parameter in zip(actual[2:], stem.parameters(), strict=True):
        assert ours.stride() == parameter.stride()


@pytest.mark.parametrize("dw_impl", ["torch", "auto"])
def test_pytorch_runs_its_own_convolution(dw_impl, products) -> None:
    """Kernels serve neither `impl="torch"` nor, under "auto", float32."""
    make_stem(dw_impl)(random(2, 3, 14, 14))
    assert products == []


def test_nothing_is_prepared_for_pytorch() -> None:
    """Under autocast the filters are cast once, by the convolution."""
    stem = make_stem("torch")
    with torch.autocast(DEVICE, BF16):
        casts = copies_of(stem[0].weight.numel(), lambda: stem(random(2, 3, 14, 14)))
    assert casts.count("aten::_to_copy") == 1


def hook_forward(stem: PatchStem) -> None:
    stem[0].register_forward_hook(lambda *args: 2 * args[-1])


def hook_backward(stem: PatchStem) -> None:
    stem[0].register_full_backward_pre_hook(lambda _, grads: (2 * grads[0],))


def patch_forward(stem: PatchStem) -> None:
    original = stem[0].forward
    stem[0].forward = lambda images: 2 * original(images)


def parametrise(stem: PatchStem) -> None:
    parametrizations.weight_norm(stem[0])


def prune_weights(stem: PatchStem) -> None:
    prune.l1_unstructured(stem[0], "weight", 0.5)


class Doubled(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def another_class(stem: PatchStem) -> None:
    stem[0] = Doubled(3, 5, 7, 7)


def another_convolution(**options: object) -> Callable[[PatchStem], None]:
    def change(stem: PatchStem) -> None:
        stem[0] = nn.Conv2d(**{"in_channels": 3, "out_channels": 6, "kernel_size": 7, **options})  # type: ignore[arg-type]
        stem[2] = nn.BatchNorm2d(6)

    return change


def pad_in_a_circle(stem: PatchStem) -> None:
    """The layer has computed at its construction how much it pads."""
    another_convolution(stride=7, padding=2, padding_mode="circular")(stem)
    stem[0].padding = (0, 0)


@pytest.mark.parametrize(
    "change",
    [
        hook_forward,
        hook_backward,
        patch_forward,
        parametrise,
        prune_weights,
        another_class,
        another_convolution(stride=6),
        another_convolution(stride=7, padding=2),
        pad_in_a_circle,
        another_convolution(stride=7, dilation=2),
        another_convolution(stride=7, groups=3),
    ],
)
def test_other_modules_run_as_they_are(change, products, monkeypatch) -> None:
    stem = make_stem("auto")
    change(stem)
    stem = stem.to(DEVICE)
    expected = step(stem, random(3, 3, 22, 23))
    monkeypatch.setattr(layers, "runs_kernels", lambda *_: True)
    # The fused operation runs in PyTorch, after the module.
    actual = step(stem, random(3, 3, 22, 23))
    assert products == []
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "images",
    [
        random(2, 3, 6, 14),
        random(2, 3, 14, 6),
        random(2, 4, 14, 14),
        random(3, 14, 14)[:, None].expand(3, 2, 14, 14),
        random(2, 3, 14, 14).double(),
        torch.ones(2, 3, 14, 14, dtype=torch.uint8),
    ],
    ids=lambda images: f"{tuple(images.shape)} {images.dtype}",
)
@pytest.mark.parametrize("autocast", [False, True])
def test_what_the_convolution_refuses_it_refuses_itself(images, autocast) -> None:
    embedding = make_stem()[0]
    with torch.autocast(DEVICE, FP16, enabled=autocast):
        assert fused_block.patch_operands(embedding, images.to(DEVICE)) is None
