"""The CUDA kernels give the same bits in whatever order threads run and copies land."""

from __future__ import annotations

import pytest
import torch

from .test_depthwise import BF16, FP16, SHAPES, check, random_case, run

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="orders of the emulation")

ORDERS = [
    ("forward", "early"),
    ("reverse", "late"),
    ("reverse", "early"),
    ("shuffle", "late"),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_every_order(
    shape: tuple[int, int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    index = SHAPES.index(shape)
    case = random_case(shape, BF16 if index % 2 else FP16, seed=index)
    monkeypatch.setenv("CONVMIXER_KERNELS_EMULATION_ORDER", "forward")
    monkeypatch.setenv("CONVMIXER_KERNELS_EMULATION_COPIES", "late")
    first = check("cuda", *case)
    for order, copies in ORDERS:
        monkeypatch.setenv("CONVMIXER_KERNELS_EMULATION_ORDER", order)
        monkeypatch.setenv("CONVMIXER_KERNELS_EMULATION_COPIES", copies)
        monkeypatch.setenv("CONVMIXER_KERNELS_EMULATION_SEED", str(index))
        again = run("cuda", *case)
        assert torch.equal(first.output, again.output), (order, copies)
        assert torch.equal(first.grad_input, again.grad_input), (order, copies)
        assert torch.equal(first.grad_weight, again.grad_weight), (order, copies)
        assert first.grad_bias is not None and again.grad_bias is not None
        assert torch.equal(first.grad_bias, again.grad_bias), (order, copies)
