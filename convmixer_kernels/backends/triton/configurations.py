"""Choice of tile sizes for a shape key: plain arithmetic, without Triton and without a GPU.

The choice minimises a model of the time that a launch takes; its terms come from the machine code
of the kernels (`make budget`), not from times on a GPU.
Whoever has one can let `autotuning` measure the best candidates.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from convmixer_kernels.backends.triton.launch_context import LaunchContext
from convmixer_kernels.backends.triton.shape_key import TILE_COLUMNS, ShapeKey
from convmixer_kernels.filters import Filter

_WARP = 32
_BLOCKS_PER_MULTIPROCESSOR = 32
_REGISTERS_PER_MULTIPROCESSOR = 65536
# Columns of the filter whose gradients a program sums in float32.
LARGE_FLOAT32_COLUMNS = 8


@dataclass(frozen=True)
class Configuration:
    """The compile options and the launch of a kernel.

    Args:
        tiles: tiles that a program works on at a time.
        unrolled_rows: rows of the image that an iteration of the main loop takes.
        mask_rows: whether the last iteration goes beyond the image.
        row_blocks: row blocks into which images are cut; 1 leaves them whole.
        block_rows: rows of a row block; of large filters, as many rows of sums are in registers.
        splits: programs that share a channel.
        registers: upper limit for a thread, None for the compiler's choice.
        filter_rows: rows of the filter whose gradients a program sums (weight gradient in float32
            and of large filters).
        cost: modelled time, in no particular unit.
    """

    tiles: int
    unrolled_rows: int
    mask_rows: bool
    row_blocks: int
    block_rows: int
    splits: int
    registers: int | None
    filter_rows: int = 0
    num_warps: int = 1
    num_stages: int = 2
    cost: float = field(default=0.0, compare=False)

    @property
    def cuts_images(self) -> bool:
        return self.row_blocks > 1


def forward(key: ShapeKey, context: LaunchContext) -> Configuration:
    """Return the configuration of the forward pass, or of an input gradient."""
    return forward_candidates(key, context)[0]


def weight_gradient(key: ShapeKey, context: LaunchContext) -> Configuration:
    """Return the configuration of the weight gradient."""
    return weight_gradient_candidates(key, context)[0]


@functools.lru_cache(maxsize=1024)
def forward_candidates(key: ShapeKey, context: LaunchContext) -> tuple[Configuration, ...]:
    """Return every configuration worth considering, the best by the model first."""
    return _ranked(_forward_candidates(key, context))


@functools.lru_cache(maxsize=1024)
def weight_gradient_candidates(key: ShapeKey, context: LaunchContext) -> tuple[Configuration, ...]:
    """Return every configuration worth considering, the best by the model first."""
    return _ranked(_weight_gradient_candidates(key, context))


def for_batch(configuration: Configuration, key: ShapeKey) -> Configuration:
    """Return `configuration`, chosen for `key.of_rounded_batch()`, for the images of `key` itself.

    Programs get as many groups of tiles as they would there, so fewer programs share a channel.
    """
    rounded = key.of_rounded_batch()
    if rounded.images == key.images:
        return configuration
    per_program = math.ceil(_groups(rounded, configuration) / configuration.splits)
    return replace(configuration, splits=math.ceil(_groups(key, configuration) / per_program))


@functools.lru_cache(maxsize=1024)
def large_forward(key: ShapeKey, row_dilation: int) -> Configuration:
    """Return the configuration of the forward pass of large filters, or of an input gradient."""
    # Six output rows take 36 input rows at k = 31; with eight, or six whose elements are addressed
    # one by one, the compiler spills.
    rows = 6 if key.alignment > 1 else 5
    row_blocks = row_dilation * math.ceil(math.ceil(key.height / row_dilation) / rows)
    # Tiles of less alignment take more registers for addresses.
    easy = not key.tensor_cores or _window_alignment(key) == 8
    many = easy and key.images * row_blocks * key.tiles_across >= 32
    return Configuration(
        tiles=32 if many else 16,
        unrolled_rows=rows,
        mask_rows=True,
        row_blocks=row_blocks,
        block_rows=rows,
        splits=1,
        # Without a limit the compiler spills a few bytes to fit in one more program.
        registers=200 if many and key.tensor_cores and key.window > 32 else None,
    )


@functools.lru_cache(maxsize=1024)
def large_weight_gradient(key: ShapeKey, filter: Filter, context: LaunchContext) -> Configuration:
    """Return the configuration of the weight gradient of large filters."""
    rows, unrolled_rows = _large_filter_rows(key, filter.height)
    row_groups = math.ceil(filter.height / rows)
    column_groups = 1
    if not key.tensor_cores:
        column_groups = math.ceil(filter.width / LARGE_FLOAT32_COLUMNS)
    num_warps = 1 if key.tensor_cores else 4
    resident = _resident_programs(context, 168 * num_warps, 16 << 10)
    return _choose_splits(
        key,
        context.multiprocessors * resident // (row_groups * column_groups),
        Configuration(
            tiles=16,
            unrolled_rows=unrolled_rows,
            mask_rows=True,
            row_blocks=1,
            block_rows=key.height,
            splits=1,
            # The compiler spills without a limit, as in the forward pass.
            registers=255 if key.tensor_cores and _window_alignment(key) < 8 else None,
            filter_rows=rows,
            num_warps=num_warps,
        ),
        program_cost=16 * rows,
        group_cost=key.height,
    )


def _large_filter_rows(key: ShapeKey, height: int) -> tuple[int, int]:
    """Return rows of the filter that a program sums, and input rows of an iteration.

    The sums take twelve registers a row. Addresses of less alignment take those of some rows, and
    without any nothing is pipelined, so that an iteration need not replace all rows that it keeps.
    """
    if not key.tensor_cores:
        return min(8, height), 1
    choices = {8: (8, 9, 7), 4: (8, 7), 2: (6,), 1: (6, 5)}[_window_alignment(key)]
    # A group of rows loads as much as another row takes.
    rows = min(choices, key=lambda rows: math.ceil(height / rows) * (rows + 1))
    return min(rows, height), 8 if key.alignment > 1 else 4


def _window_alignment(key: ShapeKey) -> int:
    """Return the largest power of two, in elements and up to 16 bytes, at which windows begin."""
    return math.gcd(key.alignment, key.left)


def _groups(key: ShapeKey, configuration: Configuration) -> int:
    """Return the number of groups of tiles of a channel."""
    tiles = key.images * key.tiles_across * configuration.row_blocks
    return math.ceil(tiles / configuration.tiles)


def _ranked(candidates: Iterator[Configuration]) -> tuple[Configuration, ...]:
    return tuple(sorted(candidates, key=lambda candidate: candidate.cost))


def _forward_candidates(key: ShapeKey, context: LaunchContext) -> Iterator[Configuration]:
    """Yield the candidates of the forward pass."""
    warps = _forward_warps(key)
    for tiles in (16, 32) if key.tensor_cores else (16,):
        for rows, iterations, block_rows in _forward_row_choices(key):
            row_blocks = math.ceil(key.height / block_rows)
            mask_rows = row_blocks > 1 or key.height % rows != 0
            registers = _forward_registers(key, tiles, mask_rows)
            if registers is None:
                continue
            shared = rows * tiles * (48 if key.wide else 32)
            resident = _resident_programs(context, registers * warps, shared)
            overhead = 1.5 if row_blocks > 1 else 1.2 if mask_rows else 1.0
            yield _choose_splits(
                key,
                context.multiprocessors * resident,
                Configuration(
                    tiles=tiles,
                    unrolled_rows=rows,
                    mask_rows=mask_rows,
                    row_blocks=row_blocks,
                    block_rows=block_rows,
                    splits=1,
                    registers=registers,
                    num_warps=warps,
                ),
                program_cost=2 * key.kernel_size,
                group_cost=_group_cost(tiles, iterations, rows, overhead),
            )


def _forward_row_choices(key: ShapeKey) -> Iterator[tuple[int, int, int]]:
    """Yield unrolled rows, iterations and rows of a row block: images whole, then in row blocks."""
    height, halo = key.height, key.kernel_size - 1
    # In wide windows two rows advance together.
    advance = 2 if key.wide else 1
    for rows in range(8, 0, -advance) if key.tensor_cores else (1,):
        if rows <= height + advance - 1:
            yield rows, math.ceil(height / rows), height
    # Row blocks also take the rows around them, so that all of these fill whole iterations.
    rows = 8 if key.tensor_cores else 1
    fewest, most = math.ceil((halo + 1) / rows), math.ceil((height + halo) / rows)
    for iterations in _coarse_range(fewest, most - 1):
        block_rows = iterations * rows - halo
        if block_rows < height:
            yield rows, iterations, block_rows


def _forward_warps(key: ShapeKey) -> int:
    """Return the warps of a program with which nothing spills.

    A second warp takes half of the elements that are addressed one by one, and repeats the matrix
    products: 16 tiles are one. Wide windows need it for an epilogue, or for the largest filter on
    images of several tiles.
    """
    if not (key.tensor_cores and key.wide and key.alignment == 1):
        return 1
    largest = key.kernel_size == 15 and key.width > TILE_COLUMNS
    return 2 if key.fused or largest else 1


def _forward_registers(key: ShapeKey, tiles: int, masked: bool) -> int | None:
    """Return the limit to the registers of a thread with which nothing spills, or None."""
    if not key.tensor_cores:
        return 168
    if key.wide:
        easy = key.kernel_size < 15 and key.alignment == 8 and not masked
        return 255 if tiles == 16 or easy else None
    if tiles == 16:
        return 128 if key.alignment > 1 else 224
    if key.alignment == 8 and not masked:
        registers = 128 if key.kernel_size < 8 else 136
        return registers + 8 if key.fused and key.kernel_size >= 7 else registers
    return 168 if key.alignment >= 4 or (key.alignment == 2 and not masked) else None


def _weight_gradient_candidates(key: ShapeKey, context: LaunchContext) -> Iterator[Configuration]:
    """Yield the candidates of the weight gradient."""
    size, height = key.kernel_size, key.height
    filter_rows, filter_row_groups, num_warps, tiles = 0, 1, 1, 16
    if not key.tensor_cores:
        # Every thread sums every tap: of more than 9 rows only half fit into the registers.
        filter_rows = size if size <= 9 else math.ceil(size / 2)
        filter_row_groups = math.ceil(size / filter_rows)
        rows, num_warps, shared = 1, 4, 0
    else:
        # The compiler pipelines only loops whose iterations replace all the rows they keep, and no
        # accesses of less than four bytes.
        rows = max(8, size - 1) if key.alignment > 1 else 4
        if key.wide:
            # Each warp takes 16 of the 32 columns of the input window.
            num_warps = 2
        shared = rows * tiles * (2 * key.window + 2 * TILE_COLUMNS)
    for iterations in _coarse_range(1, math.ceil(height / rows)):
        row_blocks = math.ceil(height / (iterations * rows))
        mask_rows = height % rows != 0 or row_blocks > 1
        registers, expected = _weight_gradient_registers(key, row_blocks > 1, mask_rows)
        resident = _resident_programs(context, expected * num_warps, shared)
        overhead = 1.3 if row_blocks > 1 else 1.0
        yield _choose_splits(
            key,
            context.multiprocessors * resident // filter_row_groups,
            Configuration(
                tiles=tiles,
                unrolled_rows=rows,
                mask_rows=mask_rows,
                row_blocks=row_blocks,
                block_rows=iterations * rows if row_blocks > 1 else height,
                splits=1,
                registers=registers,
                filter_rows=filter_rows,
                num_warps=num_warps,
            ),
            program_cost=4 * size,
            group_cost=_group_cost(tiles, iterations, rows, overhead) + size,
        )


def _weight_gradient_registers(key: ShapeKey, cut: bool, masked: bool) -> tuple[int | None, int]:
    """Return a limit to the registers of a thread, or None, and how many are expected.

    The compiler does best without a limit, except in cases where it then spills a few bytes to fit
    in one more program: those were found by compiling them all (`make budget`).
    """
    if not key.tensor_cores:
        return None, 208
    scarce = key.alignment <= 2 or key.kernel_size == 13 or (key.wide and cut)
    if scarce:
        return 255, 255
    if key.wide:
        return None, 184
    if key.kernel_size == 8 and not masked:
        return 144, 144
    return None, 152 if key.kernel_size >= 8 else 104


def _coarse_range(first: int, last: int) -> Iterator[int]:
    """Count from `last` down to `first`: every number up to 16, then steps of a sixteenth."""
    number = last
    while number >= first:
        yield number
        number -= max(1, number // 16)


def _group_cost(tiles: int, iterations: int, rows: int, overhead: float) -> float:
    """Return the time of a group of tiles; a row has a latency however many tiles there are."""
    return iterations * (3 + rows * overhead * (1 + tiles / 16))


def _resident_programs(context: LaunchContext, registers: int, shared: int) -> int:
    """Return how many programs of one warp a multiprocessor holds at a time."""
    by_registers = _REGISTERS_PER_MULTIPROCESSOR // (_WARP * registers)
    by_shared = context.shared_bytes // (shared + 1024)
    return max(1, min(by_registers, by_shared, _BLOCKS_PER_MULTIPROCESSOR))


def _choose_splits(
    key: ShapeKey,
    slots: int,
    configuration: Configuration,
    program_cost: float,
    group_cost: float,
) -> Configuration:
    """Choose how many programs share a channel.

    Programs run in waves of `slots`; each costs something before its first group of tiles.
    """
    groups = _groups(key, configuration)
    best_cost, best_splits = math.inf, 1
    for per_program in _coarse_range(1, groups):
        splits = math.ceil(groups / per_program)
        waves = math.ceil(key.channels * splits / max(1, slots))
        cost = waves * (program_cost + per_program * group_cost)
        if cost < best_cost:
            best_cost, best_splits = cost, splits
    return replace(configuration, splits=best_splits, cost=best_cost)
