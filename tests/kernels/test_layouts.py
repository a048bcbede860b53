"""Copies of images between channels_last and planes, bit by bit against PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from convmixer_kernels import depthwise_conv2d, layout
from convmixer_kernels.backends import cuda
from convmixer_kernels.backends.cuda import layouts
from tests.helpers import emulated, strided
from tests.helpers.depthwise_cases import BF16, DEVICE, FP16, random_case

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]

emulated_only = pytest.mark.skipif(DEVICE == "cuda", reason="asks the emulated GPU")
PIXELS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": strided.channels_last,
    "slice of channels": lambda tensor: strided.slice_of_pixels(tensor, 8, 16),
    "unaligned slice of channels": lambda tensor: strided.slice_of_pixels(tensor, 1, 2),
    "slice of columns": strided.slice_of_channels_last,
    "slice of rows": strided.inner_pixels,
    "slice of images": strided.images_apart,
    "columns first": strided.columns_first,
    "off by one": lambda tensor: strided.off_by(1, tensor.to(memory_format=torch.channels_last)),
}
PLANES: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": Tensor.contiguous,
    "channels outermost": strided.channels_outermost,
    "slice of channels": strided.slice_of_channels,
    "slice of images": strided.slice_of_images,
    "off by one": lambda tensor: strided.off_by(1, tensor),
    "off by four": lambda tensor: strided.off_by(4, tensor),
}
# Whole tiles; planes on boundaries of 16, 8 and 2 bytes; several images in a tile and a tile in two
# images; one channel, row or column; channels left over, of which the last word holds one or two.
SHAPES = [
    (2, 128, 8, 8),
    (3, 72, 14, 14),
    (5, 65, 7, 7),
    (1, 1, 9, 13),
    (70, 3, 1, 3),
    (2, 66, 5, 1),
    (1, 8, 3, 70),
]


def one_pixel(tensor: Tensor) -> Tensor:
    """Return an image of which one pixel stands for all, as the gradient of a sum."""
    return strided.channels_last(tensor)[:, :, :1, :1].expand_as(tensor)


def image(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an image of which the elements have any bits, NaN of every kind among them."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**15), 2**15, shape, generator=generator, dtype=torch.int16)
    return bits.view(dtype).to(DEVICE)


def assert_copied(source: Tensor, channels_last: bool) -> None:
    """Copy an image to another layout as PyTorch does, to the last bit."""
    format = torch.channels_last if channels_last else torch.contiguous_format
    copy = layouts.arranged(source, channels_last)
    assert copy.is_contiguous(memory_format=format)
    assert (copy is source) == source.is_contiguous(memory_format=format)
    assert torch.equal(copy.view(torch.int16), source.contiguous().view(torch.int16))


@pytest.mark.parametrize("dtype", [FP16, BF16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_layout(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    tensor = image(shape, dtype)
    for arrange in PIXELS.values():
        if not layout.is_planar(arrange(tensor)):
            assert_copied(arrange(tensor), False)
    for arrange in PLANES.values():
        if not layout.is_arranged(arrange(tensor), True):
            assert_copied(arrange(tensor), True)


@pytest.mark.parametrize("last", [False, True], ids=["planes", "channels_last"])
@pytest.mark.parametrize("shape", [(0, 8, 5, 5), (3, 8, 1, 1), (2, 1, 4, 4)], ids=str)
def test_layouts_that_are_one_or_none(shape: tuple[int, int, int, int], last: bool) -> None:
    for arrange in (Tensor.contiguous, strided.channels_last, strided.transposed_planes):
        tensor = arrange(image(shape, FP16))
        copy = layouts.arranged(tensor, last)
        assert layout.is_arranged(copy, last) or shape[1] == 1
        assert torch.equal(copy.view(torch.int16), tensor.view(torch.int16))


@pytest.mark.parametrize("name", [*PIXELS, *PLANES, "one pixel"])
@pytest.mark.parametrize("last", [False, True], ids=["planes", "channels_last"])
def test_what_kernels_read_as_it_is_is_not_copied(name: str, last: bool) -> None:
    every = PIXELS | PLANES | {"one pixel": one_pixel}
    tensor = every[name](image((2, 8, 5, 6), FP16))
    assert (layouts.arranged(tensor, last) is tensor) == layout.is_arranged(tensor, last)


@pytest.mark.skipif(DEVICE == "cpu", reason="takes the emulated GPU minutes")
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_more_tiles_than_a_grid_is_high(format: torch.memory_format) -> None:
    tensor = torch.randn(70_000, 65, 8, 8, device=DEVICE).to(FP16, memory_format=format)
    copy = layouts.arranged(tensor, format == torch.contiguous_format)
    assert copy is not tensor and torch.equal(copy, tensor)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.memory
def test_more_than_two_to_the_31_elements() -> None:
    shape = (2**15 + 2, 64, 32, 32)
    if torch.cuda.mem_get_info()[0] < 3 * 2 * 2**32:
        pytest.skip("three tensors of 4.3 GB do not fit")
    tensor = torch.randint(-(2**15), 2**15, shape, dtype=torch.int16, device=DEVICE).view(FP16)
    pixels = layouts.arranged(tensor, True)
    for image in (0, 2**14, 2**15 + 1):
        assert torch.equal(pixels[image].view(torch.int16), tensor[image].view(torch.int16))
    planes = layouts.arranged(pixels, False)
    assert torch.equal(planes.view(torch.int16), tensor.view(torch.int16))


@emulated_only
def test_a_plane_of_too_many_pixels_names_the_shape(tmp_path: Path) -> None:
    # The file has no content: nothing is read or written before the copy is planned.
    shape = (1, 2, 2**16, 2**16)
    file = str(tmp_path / "planes")
    planes = torch.from_file(file, shared=True, size=2**33, dtype=FP16).view(shape)
    with pytest.raises(ValueError, match="1x2x65536x65536 has more pixels in a plane than fit"):
        layouts.arranged(planes, True)


@emulated_only
@pytest.mark.parametrize(
    "order", [("reverse", "late"), ("random", "early"), ("forward", "early")], ids=str
)
def test_every_order(order: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    emulated.use(monkeypatch, warp_order=order[0], copies=order[1], seed=1)
    for shape in SHAPES[:3]:
        tensor = image(shape, FP16)
        assert_copied(strided.channels_last(tensor), False)
        assert_copied(tensor, True)


@emulated_only
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", [(1, 128, 16, 16), (3, 64, 14, 14), (5, 65, 7, 7)], ids=str)
def test_memory_is_accessed_once_and_banks_do_not_conflict(
    shape: tuple[int, int, int, int], format: torch.memory_format
) -> None:
    tensor = image(shape, FP16).to(memory_format=format)
    counters = emulated.count(layouts.arranged, tensor, format == torch.contiguous_format)
    assert counters["global_bytes_read"] == counters["global_bytes_written"] == 2 * tensor.numel()
    if shape == (1, 128, 16, 16):  # whole tiles on 16-byte boundaries
        sectors = 2 * tensor.numel() // 32
        assert counters["global_sectors_read"] == counters["global_sectors_written"] == sectors
    for access in ("load", "store"):
        passes = counters[f"shared_{access}_wavefronts"]
        assert passes == counters[f"shared_{access}_wavefronts_ideal"] > 0


# ---- the passes that need copies -----------------------------------------------------------------


@emulated_only
def test_large_filters_take_a_copy_for_each_image() -> None:
    input, weight, bias, _ = random_case((2, 3, 9, 8, 17), FP16)
    for copies, arrange in ((0, Tensor.contiguous), (2, strided.channels_last)):
        counters = emulated.count(cuda.forward, arrange(input), weight, bias)
        assert counters["launches"] == 1 + copies


@emulated_only
@pytest.mark.parametrize("last", [False, True])
def test_a_gradient_of_another_layout_is_copied_once_for_both_passes(last: bool) -> None:
    input, weight, _, grad_output = random_case((2, 11, 9, 8, 5), FP16)
    like, other = strided.channels_last, Tensor.contiguous
    if not last:
        like, other = other, like
    results = []
    for grad in (like(grad_output), other(grad_output)):
        leaves = [like(input).requires_grad_(), weight.detach().requires_grad_()]
        output = depthwise_conv2d(*leaves, impl="cuda")
        launches = emulated.count(output.backward, grad)["launches"]
        results.append((launches, *(leaf.grad for leaf in leaves)))
    (few, *expected), (more, *actual) = results
    assert more == few + 1
    for one, another in zip(actual, expected, strict=True):
        assert torch.equal(one, another)
