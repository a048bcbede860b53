"""Faults to plant in copies of the CUDA sources, each of which the tests must catch."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutation:
    """One statement of a kernel, changed: where `text` stands for the `nth` time, from 0."""

    what: str
    file: str
    text: str
    replacement: str = ""
    nth: int = 0


FORWARD, GRADIENT = "depthwise_forward.cuh", "depthwise_weight_gradient.cuh"
STAGING, CORE = "staging_contiguous.cuh", "toeplitz.cuh"
PIXELS_FORWARD = "depthwise_forward_channels_last.cuh"
PIXELS_GRADIENT = "depthwise_weight_gradient_channels_last.cuh"
PIXELS_STAGING = "staging_channels_last.cuh"
BACKWARD, STREAMS = "depthwise_backward.cuh", "batch_norm.cuh"
EPILOGUE = "epilogue.cuh"
WARP, BLOCK = "__syncwarp();", "__syncthreads();"
ROW_INSIDE = "unsigned(y) < unsigned(shape.height)"
HALO_ROW_OFF = Mutation(
    "halo one row off", PIXELS_STAGING, "item.top(tiling) - pad", "item.top(tiling)"
)

# Where kernels are instantiated for bfloat16.
SECOND_TYPE = {
    "launch.cuh": "launch(__nv_bfloat16(), step, tiles, is_whole)",
    "launch_channels_last.cuh": "launch(__nv_bfloat16(), step, tiles)",
    "batch_norm.cu": "launch_for<which, __nv_bfloat16>(p, channels_last, plan, on)",
}

# By the kernel that has the fault and the sanitizer that it is run under.
MUTATIONS = {
    ("forward", "thread"): [
        Mutation("no barrier after the copies", FORWARD, WARP, nth=1),
        Mutation("no barrier between sums and stores", FORWARD, WARP, nth=3),
        Mutation("no barrier before the bands", CORE, WARP),
        Mutation("wait for too few copies", FORWARD, "? 2 : 1>", "? 2 : 2>"),
        Mutation("no zeros around planes", FORWARD, "clear(input, input_elements, lane);"),
        Mutation("halo one row off", STAGING, "item.top(tiling) - Pad", "item.top(tiling)"),
        Mutation(
            "more rows written than there are", STAGING, ", shape.height - top);", ", 1 << 20);"
        ),
    ],
    ("forward", "address"): [
        Mutation(
            "more images read than there are",
            STAGING,
            "image < span.existing ? shape.height : 0",
            "shape.height",
        ),
    ],
    ("weight_gradient", "thread"): [
        Mutation("no barrier after zeros", GRADIENT, WARP),
        Mutation("no barrier after the copies", GRADIENT, WARP, nth=1),
        Mutation("no barrier before the next copies", GRADIENT, WARP, nth=2),
        Mutation("no barrier before diagonals", CORE, WARP, nth=2),
        Mutation("seams counted twice", GRADIENT, "item.first_tile() > 0", "false"),
    ],
    ("channels_last_forward", "thread"): [
        Mutation("no barrier after the filters", PIXELS_FORWARD, BLOCK),
        Mutation("no barrier after the copies", PIXELS_FORWARD, BLOCK, nth=4),
        Mutation("no barrier after transposing", PIXELS_FORWARD, BLOCK, nth=5),
        Mutation("no barrier between sums and stores", PIXELS_FORWARD, BLOCK, nth=6),
        Mutation("no barrier before sums replace inputs", PIXELS_FORWARD, WARP),
        Mutation("wait for too few copies", PIXELS_FORWARD, "copy_wait<0>", "copy_wait<1>", nth=1),
        Mutation("no zeros around planes", PIXELS_FORWARD, "clear_together(planes,", "(void)(0,"),
        HALO_ROW_OFF,
    ],
    ("channels_last_forward", "address"): [
        Mutation("more channels read than there are", PIXELS_STAGING, "if (channels <= 0) return;"),
        Mutation(
            "more images read than there are", PIXELS_STAGING, "chunk.present < missing;", "true;"
        ),
        Mutation("more rows written than there are", PIXELS_STAGING, ROW_INSIDE, "y >= 0"),
    ],
    ("channels_last_weight_gradient", "thread"): [
        Mutation("no barrier after the copies", PIXELS_GRADIENT, BLOCK, nth=1),
        Mutation("no barrier after transposing", PIXELS_GRADIENT, BLOCK, nth=2),
        Mutation("no barrier before diagonals", PIXELS_GRADIENT, WARP),
        Mutation("wait for too few copies", PIXELS_GRADIENT, "copy_wait<0>", "copy_wait<1>"),
        Mutation("seams counted twice", PIXELS_STAGING, "q >= section.first_tile", "true"),
        HALO_ROW_OFF,
    ],
    ("fused_forward", "thread"): [
        Mutation("residual from another row", FORWARD, "Rows::at(pad + row", "Rows::at(row"),
        Mutation("moments of missing images", EPILOGUE, "if (exists[job]) see", "see"),
        Mutation("nothing added", FORWARD, "if (added && number >= first)", "if (false)"),
        Mutation("no barrier before what is added", FORWARD, WARP),
        Mutation("no barrier after what is added", FORWARD, WARP, nth=2),
        Mutation("no wait for what is added", FORWARD, "copy_wait<1>", "copy_wait<2>"),
    ],
    ("channels_last_fused_forward", "thread"): [
        Mutation("nothing added", PIXELS_FORWARD, "residual || added", "residual"),
        Mutation("no wait for what is added", PIXELS_FORWARD, "copy_wait<0>", "copy_wait<1>"),
        Mutation("no barrier before what is added", PIXELS_FORWARD, BLOCK, nth=2),
        Mutation("no barrier after what is added", PIXELS_FORWARD, BLOCK, nth=3),
        Mutation("no barrier before sums replace inputs", PIXELS_FORWARD, WARP),
    ],
    ("backward", "thread"): [
        Mutation("no barrier after the copies", BACKWARD, WARP),
        Mutation("no barrier after the gradient of the value", BACKWARD, WARP, nth=1),
        Mutation("no barrier after it is stored", BACKWARD, WARP, nth=2),
        Mutation("no barrier between sums and stores", BACKWARD, WARP, nth=3),
        Mutation("no barrier before the next copies", BACKWARD, WARP, nth=4),
        Mutation("wait for too few copies", BACKWARD, "copy_wait<1>", "copy_wait<2>"),
        Mutation("gradients of missing images", BACKWARD, "image < left", "true"),
        Mutation("filter not turned back", BACKWARD, "store<true>", "store<false>"),
    ],
    ("batch_norm", "thread"): [
        Mutation("no barrier before merging", STREAMS, BLOCK),
        Mutation("a lane left out", STREAMS, "lane < Place::lanes", "lane < Place::lanes - 1"),
        Mutation("planes not followed", STREAMS, "inner -= inner_count, ++outer", "++outer"),
    ],
}


def copy_sources(csrc: Path, copy: Path, mutation: Mutation | None = None) -> Path:
    """A copy of `csrc` with the mutation, for half alone and with no more barriers than it takes.

    Raises:
        LookupError: the sources have changed so that the mutation does not apply any more.
    """
    shutil.copytree(csrc, copy, ignore=shutil.ignore_patterns("build_tools", "__pycache__"))
    # It limits what ptxas does early. In the emulation it would stand in for missing barriers.
    _apply(Mutation("", CORE, "load_no_further() { __syncwarp(); }", "load_no_further() {}"), copy)
    for file, call in SECOND_TYPE.items():
        _apply(Mutation("", file, call, "cudaErrorInvalidValue"), copy)
    if mutation is not None:
        _apply(mutation, copy)
    return copy


def _apply(mutation: Mutation, folder: Path) -> None:
    path = folder / mutation.file
    pieces = path.read_text().split(mutation.text)
    if len(pieces) < mutation.nth + 2:
        raise LookupError(
            f"{mutation.file} does not hold {mutation.text!r} {mutation.nth + 1} times any more: "
            "bring tests/mutations.py up to date"
        )
    before, after = pieces[: mutation.nth + 1], pieces[mutation.nth + 1 :]
    path.write_text(mutation.text.join(before) + mutation.replacement + mutation.text.join(after))
