"""Faults planted in copies of the CUDA sources, which are compiled and run as those are."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

import cuda_build
import toolchain
from convmixer_kernels import emulated_gpu

from .faults import first_problem
from .steps import Case

BF16 = torch.bfloat16
FORWARD, STAGING = "kernels/forward.cu", "core/staging_contiguous.cuh"
EPILOGUE, TOEPLITZ = "core/epilogue.cuh", "core/toeplitz.cuh"
PIXELS_STAGING = "core/staging_channels_last.cuh"
PIXELS_FORWARD = "kernels/forward_channels_last.cu"
LAYOUTS = "kernels/layouts.cu"
HALO = ("item.top(tiling) - pad", "item.top(tiling)")
# Kernels are compiled for bfloat16 alone, in half the time: the first text of each file has
# them compiled for float16 too, and the second takes its place.
OTHER_TYPE = {
    "host/launch.h": ("visit(__half(), ElementType::half);", ""),
    "kernels/elementwise.cu": ("with_element(__half())", "cudaErrorInvalidValue"),
}


# Several row and column blocks; several images in an item, one of them missing; channels left over.
PLANES = ((2, 2, 40, 44), (5, 3, 7, 7), (9, 2, 14, 14), (2, 2, 20, 70))
PIXELS = ((2, 8, 40, 44), (5, 24, 7, 7), (1, 11, 18, 20), (3, 3, 5, 5), (1, 8, 20, 70))
VALUES = ((9, 3, 16, 16), (19, 2, 5, 7), (4, 9, 5, 1))
WHOLE = ((19, 3, 8, 8), (9, 3, 16, 16))


@dataclass(frozen=True)
class SourceFault:
    """One statement changed, and the cases of which one must notice."""

    what: str
    cases: tuple[Case, ...]
    family: str  # of kernels: a file, compiled for the size of the cases if it takes one
    file: str
    text: str
    replacement: str = ""


def _of(
    operation: str,
    shapes: tuple[tuple[int, int, int, int], ...],
    layout: str,
    family: str,
    *faults: tuple[str, ...],
) -> list[SourceFault]:
    cases = tuple(Case(operation, shape, 9, BF16, layout) for shape in shapes)
    return [SourceFault(fault[0], cases, family, *fault[1:]) for fault in faults]


FAULTS = [
    *_of(
        *("forward", PLANES, "contiguous", "forward"),
        ("no zeros around planes", FORWARD, "clear(input, input_elements, lane);"),
        ("halo one row off", STAGING, "item.top(tiling) - Pad", "item.top(tiling)"),
        ("more rows written than there are", STAGING, ", shape.height - top);", ", 1 << 20);"),
        (
            *("more images read than there are", STAGING),
            *("image < span.existing ? shape.height : 0", "shape.height"),
        ),
    ),
    *_of(
        *("weight_gradient", PLANES, "contiguous", "weight_gradient"),
        (
            *("seams counted twice", "kernels/weight_gradient.cu"),
            *("item.first_tile() > 0", "false"),
        ),
    ),
    *_of(
        *("forward", PIXELS, "channels_last", "forward_channels_last"),
        ("no zeros around planes", PIXELS_FORWARD, "clear_together(planes,", "(void)(0,"),
        ("halo one row off", PIXELS_STAGING, *HALO),
        ("more images read", PIXELS_STAGING, "chunk.present < missing;", "true;"),
        ("more rows written", PIXELS_STAGING, "unsigned(y) < unsigned(shape.height)", "y >= 0"),
        ("more channels read than there are", PIXELS_STAGING, "if (channels <= 0) return;"),
    ),
    *_of(
        *("forward_normalised", PIXELS, "channels_last", "forward_channels_last"),
        (
            *("outputs in the place of residuals that are still to be read", EPILOGUE),
            *("        __syncwarp();\n      }\n      store_acc", "      }\n      store_acc"),
        ),
    ),
    *_of(
        *("weight_gradient", PIXELS, "channels_last"),
        "weight_gradient_channels_last",
        ("seams counted twice", PIXELS_STAGING, "q >= section.first_tile", "true"),
    ),
    *_of(
        *("forward_normalised", PLANES, "contiguous", "forward"),
        ("residual from another row", FORWARD, "Rows::at(pad + row", "Rows::at(row"),
        ("residual from another column", TOEPLITZ, "between_chunks ? 4 : 0", "0"),
        ("mean not subtracted", EPILOGUE, "-__ldg(normalisation.mean() + channel)", "0.f"),
        ("bias not added", EPILOGUE, "bias ? __ldg(bias + channel) : 0.f", "0.f"),
    ),
    *_of(
        *("forward_moments", WHOLE, "contiguous", "forward"),
        ("moments of missing images", EPILOGUE, "if (exists[group]) gather", "gather"),
    ),
    *_of(
        *("fused_backward", PLANES, "contiguous", "forward"),
        ("nothing added", FORWARD, "if (added && number >= first)", "if (false)"),
    ),
    *_of(
        *("fused_backward", WHOLE, "contiguous", "backward"),
        ("gradients of missing images", "kernels/backward.cu", "image < left", "true"),
        ("filter not turned back", "kernels/backward.cu", "store<true>", "store<false>"),
    ),
    *_of(
        *("arranged", PIXELS, "slice_of_channels_last", "layouts"),
        (
            *("a tile written before all of it is read", LAYOUTS),
            *("__syncthreads();\n    with_vector", "with_vector"),
        ),
        ("more channels written than there are", LAYOUTS, "column + 1 < columns", "true"),
        ("one channel of two written twice", LAYOUTS, "0x5410", "0x7632"),
        ("rows without a distance of their own", LAYOUTS, "at / p.row", "0"),
    ),
    *_of(
        *("statistics", VALUES, "contiguous", "elementwise"),
        (
            "planes not followed",
            "kernels/elementwise.cu",
            "inner -= inner_count, ++outer",
            "++outer",
        ),
    ),
    *_of(
        *("statistics", VALUES, "channels_last", "elementwise"),
        (
            "a lane left out",
            "kernels/elementwise.cu",
            "lane < Position::lanes",
            "lane < Position::lanes - 1",
        ),
    ),
]


def notice(fault: SourceFault) -> str:
    """The first sign of a fault, in a line; empty if there is none.

    Raises:
        LookupError: the sources have changed, and the fault does not apply any more.
    """
    with tempfile.TemporaryDirectory() as folder:
        csrc = Path(folder, "csrc")
        ignored = shutil.ignore_patterns("build_tools", "interpreter")
        shutil.copytree(emulated_gpu.CSRC, csrc, ignore=ignored)
        for file, change in OTHER_TYPE.items():
            _change(csrc / file, *change)
        _change(csrc / fault.file, fault.text, fault.replacement)
        changed = Path(folder, "changed.ptx")
        unit = _unit(fault)
        cuda_build.compile_to_ptx(toolchain.find_toolkit(), unit, csrc, changed)
        return first_problem(fault.cases, changed.name, changed.read_text())


def _unit(fault: SourceFault) -> cuda_build.Unit:
    """Compiles what `fault` needs and no other filter size."""
    source = cuda_build.CSRC / "kernels" / f"{fault.family}.cu"
    return cuda_build.Unit(fault.family, source, (f"FIRST_SIZE={fault.cases[0].kernel_size}",))


def _change(path: Path, text: str, replacement: str) -> None:
    before, found, after = path.read_text().partition(text)
    if not found:
        raise LookupError(
            f"{path.name} does not hold {text!r} any more: bring tests/compiled/source_faults.py "
            "up to date"
        )
    path.write_text(before + replacement + after)
