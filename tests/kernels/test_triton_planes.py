"""Copies of images between channels_last and planes, and how many of them operations take."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from convmixer_kernels import layout
from convmixer_kernels.backends import triton as backend
from convmixer_kernels.filters import Filter
from convmixer_kernels.operands import Epilogue, FusedBackward
from tests.helpers import strided
from tests.helpers.depthwise_cases import BF16, DEVICE, FP16, FP32

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]

_REASON = backend.unavailable(torch.device(DEVICE))
needs_kernels = pytest.mark.skipif(_REASON is not None, reason=str(_REASON))

# Odd planes; one, three and 65 channels; single rows and columns; several tiles of a plane.
SHAPES = [(2, 65, 7, 7), (2, 1, 5, 16), (3, 3, 2, 3), (2, 8, 1, 9), (1, 70, 9, 1), (1, 16, 8, 17)]
LAYOUTS = (
    strided.channels_last,
    strided.slice_of_channels_last,
    strided.inner_pixels,
    strided.images_apart,
    strided.columns_first,
)


def random_images(shape: tuple[int, ...], dtype: torch.dtype = FP16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)


def inside_wider_pixels(tensor: Tensor) -> Tensor:
    return strided.slice_of_pixels(tensor, 0, 3)


@needs_kernels
@pytest.mark.parametrize("dtype", [FP16, BF16, FP32])
@pytest.mark.parametrize("arrange", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_copies_keep_every_bit(
    shape: tuple[int, ...], arrange: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    from convmixer_kernels.backends.triton import planes

    images = random_images(shape, dtype)
    source = arrange(images)
    copy = planes.planar(source)
    assert layout.is_planar(copy) and torch.equal(copy, images)
    output = planes.arranged_like(images, source)
    assert output.stride() == layout.empty_like_input(source).stride()
    assert torch.equal(output, images)


@needs_kernels
@pytest.mark.parametrize("arrange", [torch.Tensor.contiguous, strided.images_apart])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_take_the_layout_of_the_image(
    shape: tuple[int, ...], arrange: Callable[[Tensor], Tensor]
) -> None:
    images = random_images(shape)
    for grad in (arrange(images), strided.channels_last(images)):
        for channels_last in (False, True):
            found = backend.arranged(grad, channels_last)
            assert torch.equal(found, images)
            assert found.stride() == layout.arranged(grad, channels_last).stride()


@needs_kernels
@pytest.mark.parametrize("shape", [(2, 65, 7, 7), (1, 8, 4, 8), (2, 3, 3, 5)], ids=str)
def test_nothing_is_written_around_the_copy(shape: tuple[int, ...]) -> None:
    from convmixer_kernels.backends.triton import planes

    images = random_images(shape)
    memory = torch.full((images.numel() + 256,), 7.0, dtype=FP16, device=DEVICE)
    target = memory[128:-128].view(shape)
    planes._transpose(strided.channels_last(images), target, to_planes=True)
    assert torch.equal(target, images)
    assert (memory[:128] == 7).all() and (memory[-128:] == 7).all()
    pixels = torch.full((shape[0], *shape[2:], shape[1] + 24), 7.0, dtype=FP16, device=DEVICE)
    target = pixels.permute(0, 3, 1, 2)[:, 8:-16]
    planes._transpose(target, images, to_planes=False)
    assert torch.equal(target, images)
    assert (pixels[..., :8] == 7).all() and (pixels[..., -16:] == 7).all()


@needs_kernels
def test_planes_are_not_copied() -> None:
    from convmixer_kernels.backends.triton import planes

    for arrange in (Tensor.contiguous, strided.channels_outermost, strided.slice_of_channels):
        images = arrange(random_images((2, 3, 4, 5)))
        assert planes.planar(images) is images
        assert planes.arranged_like(images, images) is images


@needs_kernels
def test_other_layouts_become_planes() -> None:
    from convmixer_kernels.backends.triton import planes

    images = random_images((2, 3, 4, 5))
    for arrange in (strided.transposed_planes, strided.slice_of_rows_and_columns):
        copy = planes.planar(arrange(images))
        assert copy.is_contiguous() and torch.equal(copy, images)


@pytest.mark.memory
@needs_kernels
def test_more_elements_than_32_bits_count() -> None:
    """Images, rows and pixels more than 2**31 elements apart, with strides of fewer."""
    from convmixer_kernels.backends.triton import planes

    torch.use_deterministic_algorithms(False)  # filling the gaps with NaN would need the memory
    far = 2**30
    images = random_images((3, 3, 3, 3))
    for strides in ((far, 1, 64, 8), (64, 1, far, 8), (32, 1, 8, far)):
        extent = 1 + sum(2 * stride for stride in strides)
        try:
            storage = torch.empty(extent, dtype=FP16, device=DEVICE)
        except RuntimeError:
            pytest.skip(f"no address space for {2 * extent} bytes")
        pixels = torch.as_strided(storage, images.shape, strides)
        planes._transpose(pixels, images, to_planes=False)
        assert torch.equal(pixels, images)
        assert torch.equal(planes.planar(pixels), images)
        del storage, pixels


@needs_kernels
def test_batch_sizes_share_compiled_copies() -> None:
    from convmixer_kernels.backends.triton import planes

    compiled = set()
    for images in (*range(1, 70), 100_000):
        pixels = torch.empty((images, 24, 7, 7), dtype=FP16, device="meta")
        launch = planes.plan(strided.channels_last(pixels), to_planes=True)
        assert launch.grid == (images,)
        compiled.add(tuple(launch.options.items()))
    assert len(compiled) == 1


@needs_kernels
@pytest.mark.parametrize(
    ("shape", "dtype", "arrange", "expected"),
    [
        ((2, 24, 8, 8), FP16, strided.channels_last, (8, 8)),
        ((2, 24, 8, 8), FP32, strided.channels_last, (4, 4)),
        ((2, 12, 7, 14), FP16, strided.channels_last, (4, 2)),
        ((2, 65, 7, 7), FP16, strided.channels_last, (1, 1)),
        ((2, 24, 7, 8), FP16, strided.inner_pixels, (8, 8)),
        ((2, 24, 8, 7), FP16, strided.inner_pixels, (8, 1)),
        ((1, 24, 9, 1), FP16, strided.channels_last, (8, 1)),
        ((2, 24, 8, 8), FP16, inside_wider_pixels, (1, 8)),
    ],
)
def test_vectors_are_those_of_all_strides(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    arrange: Callable[[Tensor], Tensor],
    expected: tuple[int, int],
) -> None:
    """Channels of a vector, and positions."""
    from convmixer_kernels.backends.triton import planes

    pixels = arrange(torch.empty(shape, dtype=dtype, device="meta"))
    options = planes.plan(pixels, to_planes=True).options
    assert (options["CHANNEL_ALIGNMENT"], options["POSITION_ALIGNMENT"]) == expected


@needs_kernels
def test_strides_along_a_dimension_of_one_are_ignored() -> None:
    from convmixer_kernels.backends.triton import planes

    image = torch.empty_strided((1, 24, 8, 8), (77, 1, 192, 24), dtype=FP16, device="meta")
    dense = strided.channels_last(torch.empty((1, 24, 8, 8), dtype=FP16, device="meta"))
    assert planes.plan(image, True) == planes.plan(dense, True)
    # A column of an image is a run of its own.
    column = strided.channels_last(torch.empty((2, 24, 9, 5), dtype=FP16, device="meta"))[..., :1]
    launch = planes.plan(column, True)
    assert launch.grid == (2,)
    assert launch.sizes[:3] == (24, 1, 9) and launch.sizes[-1] == 5 * 24


@pytest.fixture
def directions(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Record the copies in order: True for one to planes."""
    from convmixer_kernels.backends.triton import planes

    found: list[bool] = []
    transpose = planes._transpose

    def recorded(pixels: Tensor, target: Tensor, to_planes: bool) -> None:
        found.append(to_planes)
        transpose(pixels, target, to_planes)

    monkeypatch.setattr(planes, "_transpose", recorded)
    return found


@needs_kernels
@pytest.mark.parametrize("size", [3, 17])
def test_only_channels_last_operands_are_copied(size: int, directions: list[bool]) -> None:
    images = random_images((1, 3, 2, 3))
    last = strided.channels_last(images)
    weight = torch.ones((3, 1, size, size), dtype=FP16, device=DEVICE)
    backend.forward(images, weight, None)
    backend.input_gradient(images, weight)
    assert directions == []
    backend.forward(last, weight, None)
    backend.input_gradient(last, weight)
    assert directions == [True, False] * 2
    directions.clear()
    backend.weight_gradient(images, last, Filter(size, size), with_bias=True)
    assert directions == [True]
    backend.weight_gradient(last, last.clone(), Filter(size, size), with_bias=True)
    assert directions == [True] * 3


@needs_kernels
@pytest.mark.parametrize("residual", [True, False])
def test_fused_operations_copy_a_tensor_once(residual: bool, directions: list[bool]) -> None:
    last = strided.channels_last(random_images((2, 3, 4, 5)))
    weight = torch.ones((3, 1, 3, 3), dtype=FP16, device=DEVICE)
    table = torch.ones((5, 3), device=DEVICE)
    backend.forward_normalised(last, weight, None, Epilogue(table, "gelu", residual))
    assert directions == [True, False]
    directions.clear()
    sums = torch.ones((2, 3), device=DEVICE)
    grad = last.clone()
    call = FusedBackward(last, weight, last, grad, table, sums, "gelu", residual, 3, False)
    backend.fused_backward(call)
    # Those of the value, the residual and the input, and the gradient of the input.
    assert sorted(directions) == [False] + [True] * (3 if residual else 2)


@needs_kernels
def test_an_empty_batch_is_not_copied(directions: list[bool]) -> None:
    empty = strided.channels_last(random_images((1, 3, 4, 5)))[:0]
    for size in (3, 17):
        weight = torch.ones((3, 1, size, size), dtype=FP16, device=DEVICE)
        output = backend.forward(empty, weight, None)
        assert output.shape == empty.shape
        assert output.stride() == layout.empty_like_input(empty).stride()
        backend.weight_gradient(empty, empty, Filter(size, size), with_bias=True)
    assert directions == []
