"""A training step of a small ConvMixer under every implementation of its convolutions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convmixer import ConvMixer
from tests.helpers.depthwise_cases import DEVICE, FP16, KERNELS

pytestmark = pytest.mark.gpu


def step(dw_impl: str, dtype: torch.dtype, kernel_size: int) -> dict[str, Tensor]:
    """Loss and gradients of one step; the same weights and images every time."""
    torch.manual_seed(0)
    model = ConvMixer(8, 2, kernel_size, patch_size=2, n_classes=5, dw_impl=dw_impl)
    model = model.to(DEVICE, torch.float64 if dtype == torch.float64 else torch.float32)
    images = torch.randn(3, 3, 22, 26).to(DEVICE, next(model.parameters()).dtype)
    labels = torch.randint(5, (3,)).to(DEVICE)
    with torch.autocast(DEVICE, dtype, enabled=dtype == FP16):
        loss = F.cross_entropy(model(images), labels)
    loss.backward()
    results = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(grad is not None for grad in results.values())
    return {"loss": loss.detach(), **results}  # type: ignore[dict-item]


def distance(actual: Tensor, exact: Tensor) -> float:
    return ((actual.double() - exact).norm() / exact.norm()).item()


def cases() -> Iterator[object]:
    """Yield implementations and kernel sizes; Triton without a GPU is interpreted."""
    for dw_impl, kernel_size in itertools.product(KERNELS, (5, 8, 11)):
        repeats = dw_impl == "triton" and kernel_size != 8
        marks = [pytest.mark.repeats] if repeats else []
        yield pytest.param(dw_impl, kernel_size, marks=marks)


@pytest.mark.parametrize(("dw_impl", "kernel_size"), list(cases()))
def test_a_training_step(dw_impl: str, kernel_size: int) -> None:
    exact = step("torch", torch.float64, kernel_size)
    pytorch = step("torch", FP16, kernel_size)
    actual = step(dw_impl, FP16, kernel_size)
    for name, value in exact.items():
        allowed = 2 * distance(pytorch[name], value) + torch.finfo(FP16).eps
        assert distance(actual[name], value) <= allowed, name
