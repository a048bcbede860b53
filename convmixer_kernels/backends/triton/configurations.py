"""Which tile sizes serve which problem: plain arithmetic, without Triton and without a GPU.

The choice minimises a model of the time a launch takes; its terms come from the machine code of the
kernels (`make budget`). It is modelled, not measured: nothing in it was timed on a GPU. Whoever has
one can let `autotuning` measure the best candidates.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from convmixer_kernels.backends.triton.problem import COLUMNS, Device, Problem

_WARP = 32
_BLOCKS_PER_MULTIPROCESSOR = 32
_REGISTERS_PER_MULTIPROCESSOR = 65536


@dataclass(frozen=True)
class Configuration:
    """How a kernel is compiled and launched.

    Args:
        strips: strips that a program works on at a time.
        rows: rows of the image that a turn of the main loop, and of its pipeline, takes.
        mask_rows: whether the last turn goes beyond the image.
        bands: bands of rows into which images are cut; 1 leaves them whole.
        band_rows: rows of a band.
        programs: programs that share a channel.
        registers: upper limit for a thread, None for the compiler's choice.
        filter_rows: rows of the filter whose gradients a program sums (float32 weight gradient).
        channels: channels that a program works on at a time; more than one in channels_last.
        cost: modelled time, in no particular unit.
    """

    strips: int
    rows: int
    mask_rows: bool
    bands: int
    band_rows: int
    programs: int
    registers: int | None
    filter_rows: int = 0
    channels: int = 1
    num_warps: int = 1
    num_stages: int = 2
    cost: float = field(default=0.0, compare=False)

    @property
    def banded(self) -> bool:
        return self.bands > 1


def forward(problem: Problem, device: Device) -> Configuration:
    """The configuration of the forward pass, or of an input gradient."""
    return forward_candidates(problem, device)[0]


def weight_gradient(problem: Problem, device: Device) -> Configuration:
    return weight_gradient_candidates(problem, device)[0]


@functools.lru_cache(maxsize=1024)
def forward_candidates(problem: Problem, device: Device) -> tuple[Configuration, ...]:
    """Every configuration worth considering, the best by the model first."""
    return _ranked(_forward_candidates(problem, device))


@functools.lru_cache(maxsize=1024)
def weight_gradient_candidates(problem: Problem, device: Device) -> tuple[Configuration, ...]:
    """Every configuration worth considering, the best by the model first."""
    return _ranked(_weight_gradient_candidates(problem, device))


def _ranked(candidates: Iterator[Configuration]) -> tuple[Configuration, ...]:
    return tuple(sorted(candidates, key=lambda candidate: candidate.cost))


def _forward_candidates(problem: Problem, device: Device) -> Iterator[Configuration]:
    if problem.channels_last:
        yield from _channels_last_candidates(problem, device, forward=True)
        return
    size, height, warps = problem.kernel_size, problem.height, _forward_warps(problem)
    if not problem.tensor_cores:
        strips_choices, rows_choices = [16], [1]
    elif problem.wide:
        strips_choices = [16, 32]
        # Two rows advance together.
        rows_choices = [rows for rows in (8, 6, 4, 2) if rows - 1 <= height]
    else:
        strips_choices = [16, 32]
        rows_choices = [rows for rows in range(8, 0, -1) if rows <= height]
    for strips in strips_choices:
        for rows in rows_choices:
            mask_rows = height % rows != 0
            registers = _forward_registers(problem, strips, mask_rows)
            if registers is not None:
                shared = rows * strips * (48 if problem.wide else 32)
                resident = _resident_programs(device, registers * warps, shared)
                turns = math.ceil(height / rows)
                yield _share_strips(
                    problem,
                    device.multiprocessors * resident,
                    Configuration(
                        strips, rows, mask_rows, 1, height, 1, registers, num_warps=warps
                    ),
                    program_cost=2 * size,
                    block_cost=_walk_cost(strips, turns, rows, 1.2 if mask_rows else 1.0),
                )
        # Bands walk over size - 1 more rows, so that those and their own fill whole turns.
        rows = 8 if problem.tensor_cores else 1
        registers = _forward_registers(problem, strips, True)
        if registers is None:
            continue
        shared = rows * strips * (48 if problem.wide else 32)
        slots = device.multiprocessors * _resident_programs(device, registers * warps, shared)
        for turns in _coarse_range(
            math.ceil(size / rows), math.ceil((height + size - 1) / rows) - 1
        ):
            band_rows = turns * rows - (size - 1)
            bands = math.ceil(height / band_rows)
            if bands > 1:
                yield _share_strips(
                    problem,
                    slots,
                    Configuration(
                        strips, rows, True, bands, band_rows, 1, registers, num_warps=warps
                    ),
                    program_cost=2 * size,
                    block_cost=_walk_cost(strips, turns, rows, 1.5),
                )


def _channels_last_candidates(
    problem: Problem, device: Device, forward: bool
) -> Iterator[Configuration]:
    """A warp for each channel; images whole, or in bands of whole turns."""
    size, height = problem.kernel_size, problem.height
    halo = size - 1 if forward else 0
    for rows in (8, 4) if forward and not problem.wide else (4, 2):
        for turns in _coarse_range(math.ceil((halo + 1) / rows), math.ceil((height + halo) / rows)):
            band_rows = turns * rows - halo
            bands = math.ceil(height / band_rows)
            mask_rows = bands > 1 or height % rows != 0
            limits = _channels_last_limits(problem, forward, rows, mask_rows)
            if limits is None:
                continue
            channels, registers = limits
            shared = rows * channels * 16 * 2 * (problem.window + (0 if forward else COLUMNS))
            resident = _resident_programs(device, registers * channels, shared + (8 << 10))
            if bands == 1:
                turns = math.ceil(height / rows)
            yield _share_strips(
                problem,
                device.multiprocessors * resident,
                Configuration(
                    strips=16,
                    rows=rows,
                    mask_rows=mask_rows,
                    bands=bands,
                    band_rows=band_rows if bands > 1 else height,
                    programs=1,
                    registers=registers,
                    channels=channels,
                    num_warps=channels,
                ),
                program_cost=4 * size,
                block_cost=_walk_cost(16, turns, rows, 1.3 if mask_rows else 1.0),
            )


def _channels_last_limits(
    problem: Problem, forward: bool, rows: int, masked: bool
) -> tuple[int, int] | None:
    """Channels of a program and registers of a thread with which nothing spills, or None.

    Sixteen channels fill the sectors of memory, but leave 128 registers for each of their warps.
    Turns of more rows take fewer instructions and more registers.
    """
    if problem.wide:
        return (8, 255) if rows == 4 else None
    if not forward:
        return (16, 128) if rows == 2 or not masked else None
    if rows == 8 and masked:
        return None
    if problem.fused and masked and problem.kernel_size >= 8:
        return 8, 168
    return 16, 128


def _forward_warps(problem: Problem) -> int:
    """The warps of a planar program with which nothing spills.

    A second warp takes half of the elements that are addressed one by one, and repeats the matrix
    products: 16 strips are one. Wide windows need it for an epilogue, or for the largest filter on
    images of several tiles.
    """
    if not (problem.tensor_cores and problem.wide and problem.alignment == 1):
        return 1
    largest = problem.kernel_size == 15 and problem.width > COLUMNS
    return 2 if problem.fused or largest else 1


def _forward_registers(problem: Problem, strips: int, masked: bool) -> int | None:
    """The limit to the registers of a thread with which nothing spills; None if there is none."""
    if not problem.tensor_cores:
        return 168
    if problem.wide:
        easy = problem.kernel_size < 15 and problem.alignment == 8 and not masked
        return 255 if strips == 16 or easy else None
    if strips == 16:
        return 128 if problem.alignment > 1 else 224
    if problem.alignment == 8 and not masked:
        registers = 128 if problem.kernel_size < 8 else 136
        return registers + 8 if problem.fused and problem.kernel_size >= 7 else registers
    return 168 if problem.alignment >= 4 or (problem.alignment == 2 and not masked) else None


def _weight_gradient_candidates(problem: Problem, device: Device) -> Iterator[Configuration]:
    if problem.channels_last:
        yield from _channels_last_candidates(problem, device, forward=False)
        return
    size, height = problem.kernel_size, problem.height
    filter_rows, groups, num_warps, strips = 0, 1, 1, 16
    if not problem.tensor_cores:
        # A sum for every tap in every thread: of more than 9 rows only half fit into the registers.
        filter_rows = size if size <= 9 else math.ceil(size / 2)
        groups = math.ceil(size / filter_rows)
        rows, num_warps, shared = 1, 4, 0
    else:
        # The compiler pipelines only loops whose turns replace all the rows they keep, and no
        # accesses of less than four bytes.
        rows = max(8, size - 1) if problem.alignment > 1 else 4
        if problem.wide:
            # Each warp takes 16 of the 32 columns of the window.
            num_warps = 2
        shared = rows * strips * (2 * problem.window + 2 * COLUMNS)
    for turns in _coarse_range(1, math.ceil(height / rows)):
        bands = math.ceil(height / (turns * rows))
        mask_rows = height % rows != 0 or bands > 1
        registers, expected = _weight_gradient_registers(problem, bands > 1, mask_rows)
        resident = _resident_programs(device, expected * num_warps, shared)
        yield _share_strips(
            problem,
            device.multiprocessors * resident // groups,
            Configuration(
                strips=strips,
                rows=rows,
                mask_rows=mask_rows,
                bands=bands,
                band_rows=turns * rows if bands > 1 else height,
                programs=1,
                registers=registers,
                filter_rows=filter_rows,
                num_warps=num_warps,
            ),
            program_cost=4 * size,
            block_cost=_walk_cost(strips, turns, rows, 1.3 if bands > 1 else 1.0) + size,
        )


def _weight_gradient_registers(
    problem: Problem, banded: bool, masked: bool
) -> tuple[int | None, int]:
    """A limit to the registers of a thread, or None, and how many are expected.

    The compiler does best without a limit, except where it then spills a few bytes to fit in one
    more program: those cases were found by compiling them all (`make budget`).
    """
    if not problem.tensor_cores:
        return None, 208
    scarce = problem.alignment <= 2 or problem.kernel_size == 13 or (problem.wide and banded)
    if scarce:
        return 255, 255
    if problem.wide:
        return None, 184
    if problem.kernel_size == 8 and not masked:
        return 144, 144
    return None, 152 if problem.kernel_size >= 8 else 104


def _coarse_range(first: int, last: int) -> Iterator[int]:
    """From `last` down to `first`: every number up to 16, then steps of a sixteenth."""
    number = last
    while number >= first:
        yield number
        number -= max(1, number // 16)


def _walk_cost(strips: int, turns: int, rows: int, overhead: float) -> float:
    """Time of a block of strips. A row has a latency whatever the number of strips is."""
    return turns * (3 + rows * overhead * (1 + strips / 16))


def _resident_programs(device: Device, registers: int, shared: int) -> int:
    """Programs of one warp that a multiprocessor holds at a time."""
    by_registers = _REGISTERS_PER_MULTIPROCESSOR // (_WARP * registers)
    by_shared = device.shared_bytes // (shared + 1024)
    return max(1, min(by_registers, by_shared, _BLOCKS_PER_MULTIPROCESSOR))


def _share_strips(
    problem: Problem,
    slots: int,
    configuration: Configuration,
    program_cost: float,
    block_cost: float,
) -> Configuration:
    """Chooses among how many programs the strips of a channel are shared.

    Programs run in waves of `slots`; each costs something before its first block.
    """
    blocks = math.ceil(problem.strips_per_band * configuration.bands / configuration.strips)
    groups = math.ceil(problem.channels / configuration.channels)
    best_cost, best_programs = math.inf, 1
    for per_program in _coarse_range(1, blocks):
        programs = math.ceil(blocks / per_program)
        waves = math.ceil(groups * programs / max(1, slots))
        cost = waves * (program_cost + per_program * block_cost)
        if cost < best_cost:
            best_cost, best_programs = cost, programs
    return replace(configuration, programs=best_programs, cost=best_cost)
