"""The CUDA kernels give the same bits in whatever order threads run and copies land."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch

from convmixer_kernels import emulated_gpu
from tests.helpers import emulated
from tests.helpers.depthwise_cases import BF16, FP16, check, random_case, run
from tests.kernels import test_channels_last, test_depthwise

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="orders of the emulated GPU")

ORDERS = [
    ("forward", "early"),
    ("reverse", "late"),
    ("reverse", "early"),
    ("random", "late"),
    ("random", "early"),
]


def cases() -> Iterator[object]:
    """Yield, for either layout, the shapes of its own tests."""
    for layout, shapes in (
        ("contiguous", test_depthwise.SHAPES),
        ("channels_last", test_channels_last.SHAPES),
        ("channels_last_on_sm_86", test_channels_last.WIDE_SHAPES),
    ):
        for index, shape in enumerate(shapes):
            for dtype in (FP16, BF16):
                # Orders concern both element types alike.
                repeats = dtype != (FP16, BF16)[index % 2]
                name = f"{layout}-{'x'.join(map(str, shape))}-{str(dtype)[6:]}"
                marks = [pytest.mark.repeats] if repeats else []
                yield pytest.param(layout, shape, dtype, id=name, marks=marks)


@pytest.mark.parametrize(("layout", "shape", "dtype"), list(cases()))
def test_every_order(
    layout: str,
    shape: tuple[int, int, int, int, int],
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seed = sum(shape)
    input, weight, bias, grad_output = random_case(shape, dtype, seed)
    if layout == "channels_last_on_sm_86":
        emulated.pretend(monkeypatch, (8, 6))
    if layout != "contiguous":
        input = test_channels_last.channels_last(input)
        grad_output = test_channels_last.channels_last(grad_output)
    case = input, weight, bias, grad_output
    first = check("cuda", *case)
    for order, copies in ORDERS:
        emulated.use(monkeypatch, warp_order=order, copies=copies, seed=seed)
        again = run("cuda", *case)
        assert torch.equal(first.output, again.output), (order, copies)
        assert torch.equal(first.grad_input, again.grad_input), (order, copies)
        assert torch.equal(first.grad_weight, again.grad_weight), (order, copies)
        assert first.grad_bias is not None and again.grad_bias is not None
        assert torch.equal(first.grad_bias, again.grad_bias), (order, copies)


def test_a_launch_leaves_the_settings_of_the_interpreter() -> None:
    before = emulated_gpu.interpreter().settings()
    assert not before["check_absent_copies"]  # launches set it
    run("cuda", *random_case((1, 2, 5, 5, 3), FP16))
    assert emulated_gpu.interpreter().settings() == before


def test_memory_is_not_handed_out_again_within_a_call() -> None:
    """A later kernel of the call would have it with the permission of an earlier one."""
    with emulated_gpu.launching():
        freed = torch.zeros(1)
        kept = weakref.ref(freed)
        emulated_gpu.permit(freed, writable=False)
        del freed
        assert kept() is not None
    assert kept() is None
