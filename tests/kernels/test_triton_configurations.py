"""Tile sizes and their choice: plain arithmetic, without Triton's compiler or interpreter."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from convmixer_kernels.backends.triton import configurations, elementwise
from convmixer_kernels.backends.triton.launch_context import LaunchContext
from convmixer_kernels.backends.triton.shape_key import (
    KERNEL_SIZES,
    MOST_EXTENT,
    TILE_COLUMNS,
    ShapeKey,
)
from convmixer_kernels.filters import Filter
from tests.helpers import strided

FP16, FP32 = torch.float16, torch.float32
HOPPER = LaunchContext(capability=(9, 0), multiprocessors=132)


def shape_key(shape: tuple[int, ...], dtype: torch.dtype = FP16) -> ShapeKey:
    tensor = torch.empty(shape[:4], dtype=dtype, device="meta")
    return ShapeKey.of((tensor, tensor), shape[4])


@pytest.mark.parametrize(
    ("width", "dtype", "alignment"),
    [
        (32, FP16, 8),
        (56, FP16, 8),
        (28, FP16, 4),
        (14, FP16, 2),
        (7, FP16, 1),
        (1, FP16, 1),
        (32, FP32, 4),
        (14, FP32, 2),
    ],
)
def test_alignment_of_contiguous_tensors(width: int, dtype: torch.dtype, alignment: int) -> None:
    assert shape_key((2, 3, 5, width, 9), dtype).alignment == alignment


def test_alignment_counts_every_stride_of_both_tensors() -> None:
    tensor = torch.empty((2, 3, 8, 8), dtype=FP16, device="meta")
    assert ShapeKey.of((tensor, tensor), 9).alignment == 8
    assert ShapeKey.of((tensor, strided.channels_outermost(tensor)), 9).alignment == 8
    assert ShapeKey.of((tensor, strided.slice_of_channels(tensor)), 9).alignment == 8
    shifted = torch.empty((2, 3 * 64 + 4), dtype=FP16, device="meta")[:, : 3 * 64]
    assert ShapeKey.of((tensor, shifted.unflatten(1, (3, 8, 8))), 9).alignment == 4
    # A single image has no image stride.
    assert ShapeKey.of((tensor[:1], shifted[:1].unflatten(1, (3, 8, 8))), 9).alignment == 8


def alignment_of_pass(*tensors: Tensor) -> int:
    return elementwise.plan(tensors, reduces=True).constants["ALIGNMENT"]


@pytest.mark.parametrize(
    ("shape", "arrange", "alignment"),
    [
        ((2, 3, 8, 8), Tensor.contiguous, 8),
        ((2, 3, 6, 6), Tensor.contiguous, 4),
        ((2, 3, 7, 7), Tensor.contiguous, 1),
        ((2, 24, 5, 7), strided.channels_last, 8),
        ((2, 12, 5, 7), strided.channels_last, 4),
    ],
)
def test_elementwise_passes_know_their_alignment(
    shape: tuple[int, int, int, int], arrange: Callable[[Tensor], Tensor], alignment: int
) -> None:
    tensor = arrange(torch.empty(shape, dtype=FP16, device="meta"))
    assert alignment_of_pass(tensor) == alignment


def test_alignment_of_a_pass_counts_every_stride_of_all_tensors() -> None:
    tensor = torch.empty((2, 3, 8, 8), dtype=FP16, device="meta")
    shifted = torch.empty((2, 3 * 64 + 4), dtype=FP16, device="meta")[:, : 3 * 64]
    shifted = shifted.unflatten(1, (3, 8, 8))
    assert alignment_of_pass(tensor, tensor) == 8
    assert alignment_of_pass(tensor, shifted) == alignment_of_pass(shifted, tensor) == 4


def test_strides_along_a_dimension_of_one_are_ignored() -> None:
    tensor = torch.empty((2, 3, 1, 1), dtype=FP16, device="meta")
    odd = torch.empty_strided((2, 3, 1, 1), (3, 1, 77, 99), dtype=FP16, device="meta")
    assert ShapeKey.of((odd, tensor), 9) == ShapeKey.of((tensor, tensor), 9)


def every_shape_key() -> Iterator[ShapeKey]:
    generator = random.Random(0)
    for size in KERNEL_SIZES:
        for dtype in (FP16, FP32):
            for _ in range(12):
                images, channels = (
                    generator.choice((1, 7, 64, 1000)),
                    generator.choice((1, 96, 1536)),
                )
                height = generator.choice((1, 2, 7, 8, 14, 31, 32, 100, 1024))
                width = generator.choice((1, 7, 8, 14, 32, 100, 2048))
                yield shape_key((images, channels, height, width, size), dtype)


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_configurations_are_consistent(capability: tuple[int, int]) -> None:
    context = LaunchContext(capability, 108)
    for each in every_shape_key():
        for find in (configurations.forward_candidates, configurations.weight_gradient_candidates):
            assert find(each, context)
            for candidate in find(each, context):
                groups = math.ceil(
                    each.images * each.tiles_across * candidate.row_blocks / candidate.tiles
                )
                assert 1 <= candidate.splits <= groups
                assert candidate.row_blocks * candidate.block_rows >= each.height
                assert (candidate.row_blocks - 1) * candidate.block_rows < each.height
                if each.tensor_cores and candidate.cuts_images:
                    halo = each.kernel_size - 1
                    walked = candidate.block_rows
                    if find is configurations.forward_candidates:
                        walked += halo
                    assert walked % candidate.unrolled_rows == 0
                if not candidate.mask_rows and not candidate.cuts_images:
                    assert each.height % candidate.unrolled_rows == 0
            costs = [candidate.cost for candidate in find(each, context)]
            assert costs == sorted(costs)


def test_the_reference_shape() -> None:
    reference = shape_key((64, 1536, 32, 32, 9))
    forward = configurations.forward(reference, HOPPER)
    assert (forward.tiles, forward.unrolled_rows, forward.row_blocks, forward.mask_rows) == (
        32,
        8,
        1,
        False,
    )
    gradient = configurations.weight_gradient(reference, HOPPER)
    assert (gradient.tiles, gradient.unrolled_rows, gradient.row_blocks) == (16, 8, 1)


@pytest.mark.parametrize("images", [1, 64])
@pytest.mark.parametrize("width", [5, 7, 8, 17, 18])
@pytest.mark.parametrize("size", KERNEL_SIZES)
def test_two_warps_share_the_addresses_of_single_elements(
    size: int, width: int, images: int
) -> None:
    """One warp would spill with an epilogue, or with several tiles and the largest filter."""
    for dtype in (FP16, FP32):
        plain = shape_key((images, 8, 24, width, size), dtype)
        fused = dataclasses.replace(plain, fused=True)
        single = dtype == FP16 and size > 9 and width % 2 == 1
        largest = size == 15 and width > 8
        for each, two in ((plain, single and largest), (fused, single)):
            for candidate in configurations.forward_candidates(each, HOPPER):
                assert candidate.num_warps == (2 if two else 1)


def test_few_images_are_cut_into_row_blocks() -> None:
    for find in (configurations.forward, configurations.weight_gradient):
        assert find(shape_key((1, 64, 64, 64, 9)), HOPPER).row_blocks > 1
        assert find(shape_key((64, 1536, 32, 32, 9)), HOPPER).row_blocks == 1


def test_small_channel_counts_are_shared_among_programs() -> None:
    for find in (configurations.forward, configurations.weight_gradient):
        few = find(shape_key((256, 4, 32, 32, 9)), HOPPER)
        assert few.splits * 4 >= HOPPER.multiprocessors


def test_large_filters_leave_out_no_row() -> None:
    for each in every_shape_key():
        for filter in (Filter(31, 31), Filter(17, 17), Filter(1, 17), Filter(7, 5, 4, 2)):
            forward = configurations.large_forward(each, filter.row_dilation)
            blocks = forward.row_blocks // filter.row_dilation
            assert forward.row_blocks == blocks * filter.row_dilation
            reached = blocks * forward.block_rows * filter.row_dilation
            assert each.height <= reached < each.height + forward.block_rows * filter.row_dilation
            gradient = configurations.large_weight_gradient(each, filter, HOPPER)
            assert 1 <= gradient.filter_rows <= filter.height
            # The compiler pipelines loops that replace all the rows they keep.
            if each.tensor_cores and each.alignment > 1:
                assert gradient.unrolled_rows >= gradient.filter_rows - 1
            assert forward.unrolled_rows >= forward.block_rows - 1
            groups = math.ceil(each.images * each.tiles_across / gradient.tiles)
            assert 1 <= gradient.splits <= groups


def test_the_window_of_a_tile_holds_every_tap() -> None:
    for size in range(1, MOST_EXTENT + 1):
        each = shape_key((1, 1, 8, 8, size))
        above, below = (size - 1) // 2, size // 2
        assert each.left % 4 == 0 and each.window % 16 == 0
        assert each.left >= below >= above
        assert each.left + TILE_COLUMNS + below <= each.window < each.left + below + 24
    assert shape_key((1, 1, 8, 8, 25)).window == 32
    assert shape_key((1, 1, 8, 8, 31)).window == 48


@pytest.mark.parametrize("operation", ["forward", "weight_gradient"])
def test_batch_sizes_of_large_filters_share_compiled_kernels(operation: str) -> None:
    from convmixer_kernels.backends.triton import large_filters, launching

    compiled = set()
    for images in range(1, 130):
        each = shape_key((images, 384, 32, 32, 31))
        if operation == "forward":
            configuration = configurations.large_forward(each, 1)
            constants = large_filters.forward_constants(each, configuration, False)
        else:
            configuration = configurations.large_weight_gradient(each, Filter(31, 31), HOPPER)
            constants = large_filters.weight_gradient_constants(each, configuration)
        options = launching.options(configuration)
        compiled.add((*constants.items(), *options.items()))
    assert len(compiled) <= 2


@pytest.mark.parametrize("operation", ["forward", "weight_gradient"])
def test_batch_sizes_and_heights_share_compiled_kernels(operation: str) -> None:
    from convmixer_kernels.backends.triton import (
        depthwise_forward,
        depthwise_weight_gradient,
        launching,
    )

    compiled = set()
    for images in range(1, 130):
        each = shape_key((images, 384, 32, 32, 9))
        if operation == "forward":
            configuration = configurations.forward(each, HOPPER)
            constants = depthwise_forward.constants(each, configuration, False, "identity")
        else:
            configuration = configurations.weight_gradient(each, HOPPER)
            constants = depthwise_weight_gradient.constants(each, configuration)
        options = launching.options(configuration)
        compiled.add((*constants.items(), *options.items()))
    assert len(compiled) <= 4
