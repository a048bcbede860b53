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

from .faults import FAMILIES, in_a_process_of_its_own
from .running import SETTINGS, run
from .steps import Case

BF16 = torch.bfloat16
FORWARD, STAGING = "depthwise_forward.cuh", "staging_contiguous.cuh"
PIXELS_STAGING, PIXELS_FORWARD = "staging_channels_last.cuh", "depthwise_forward_channels_last.cuh"
HALO = ("item.top(tiling) - pad", "item.top(tiling)")
# Kernels are compiled for bfloat16 alone, which takes half the time.
OTHER_TYPE = {
    "launch.cuh": ("launch(__half(), step, tiles, is_whole)", "cudaErrorInvalidValue"),
    "launch_channels_last.cuh": ("launch(__half(), step, tiles)", "cudaErrorInvalidValue"),
}


@dataclass(frozen=True)
class SourceFault:
    """One statement changed, where `text` stands for the `nth` time, from 0."""

    what: str
    case: Case
    instantiation: str  # the file that is compiled
    file: str
    text: str
    replacement: str = ""
    nth: int = 0


def _of(family: str, instantiation: str, *faults: tuple[str, ...]) -> list[SourceFault]:
    case = FAMILIES[family]
    return [SourceFault(fault[0], case, instantiation, *fault[1:4]) for fault in faults]  # type: ignore[arg-type]


GRADIENT_OF_SUM = Case("fused_backward", (9, 2, 20, 20), 9, BF16)
FAULTS = [
    *_of(
        "forward",
        "instantiations/forward_9.cu",
        ("no zeros around planes", FORWARD, "clear(input, input_elements, lane);"),
        ("halo one row off", STAGING, "item.top(tiling) - Pad", "item.top(tiling)"),
        ("more rows written than there are", STAGING, ", shape.height - top);", ", 1 << 20);"),
        (
            "more images read than there are",
            STAGING,
            "image < span.existing ? shape.height : 0",
            "shape.height",
        ),
    ),
    SourceFault(
        "seams counted twice",
        Case("weight_gradient", (2, 2, 20, 70), 9, BF16),
        "instantiations/weight_gradient_9.cu",
        "depthwise_weight_gradient.cuh",
        "item.first_tile() > 0",
        "false",
    ),
    *_of(
        "channels_last forward",
        "instantiations/channels_last_forward_9.cu",
        ("no zeros around planes", PIXELS_FORWARD, "clear_together(planes,", "(void)(0,"),
        ("halo one row off", PIXELS_STAGING, *HALO),
        ("more images read", PIXELS_STAGING, "chunk.present < missing;", "true;"),
        (
            "more rows written",
            PIXELS_STAGING,
            "unsigned(y) < unsigned(shape.height)",
            "y >= 0",
        ),
    ),
    SourceFault(
        "more channels read than there are",
        Case("forward", (1, 11, 18, 20), 9, BF16, "channels_last"),
        "instantiations/channels_last_forward_9.cu",
        PIXELS_STAGING,
        "if (channels <= 0) return;",
    ),
    SourceFault(
        "seams counted twice",
        Case("weight_gradient", (1, 8, 20, 70), 9, BF16, "channels_last"),
        "instantiations/channels_last_weight_gradient_9.cu",
        PIXELS_STAGING,
        "q >= section.first_tile",
        "true",
    ),
    *_of(
        "fused forward",
        "instantiations/fused_forward_9.cu",
        ("residual from another row", FORWARD, "Rows::at(pad + row", "Rows::at(row"),
    ),
    *_of(
        "moments forward",
        "instantiations/fused_forward_9.cu",
        ("moments of missing images", "epilogue.cuh", "if (exists[job]) see", "see"),
    ),
    SourceFault(
        "nothing added",
        GRADIENT_OF_SUM,
        "instantiations/fused_forward_9.cu",
        FORWARD,
        "if (added && number >= first)",
        "if (false)",
    ),
    *_of(
        "backward",
        "instantiations/backward_9.cu",
        ("gradients of missing images", "depthwise_backward.cuh", "image < left", "true"),
        ("filter not turned back", "depthwise_backward.cuh", "store<true>", "store<false>"),
    ),
    *_of(
        "batch norm",
        "batch_norm.cu",
        (
            "a lane left out",
            "batch_norm.cuh",
            "lane < Place::lanes",
            "lane < Place::lanes - 1",
        ),
        (
            "planes not followed",
            "batch_norm.cuh",
            "inner -= inner_count, ++outer",
            "++outer",
        ),
    ),
]


def notice(fault: SourceFault) -> str:
    """How a fault shows, in a line; empty if it does not.

    Raises:
        LookupError: the sources have changed, and the fault does not apply any more.
    """
    with tempfile.TemporaryDirectory() as folder:
        csrc = Path(folder, "csrc")
        ignored = shutil.ignore_patterns("build_tools", "interpreter")
        shutil.copytree(emulated_gpu.CSRC, csrc, ignore=ignored)
        for file, (text, replacement) in OTHER_TYPE.items():
            _change(csrc / file, text, replacement)
        _change(csrc / fault.file, fault.text, fault.replacement, fault.nth)
        changed = Path(folder, "changed.ptx")
        source = csrc / fault.instantiation
        cuda_build.compile_to_ptx(toolchain.find_toolkit(), source, changed)
        # The extension's own kernels are loaded when first launched; the changed ones last.
        run(fault.case, SETTINGS[:1])
        return in_a_process_of_its_own(fault.case, changed.name, changed.read_text())


def _change(path: Path, text: str, replacement: str, nth: int = 0) -> None:
    pieces = path.read_text().split(text)
    if len(pieces) < nth + 2:
        raise LookupError(
            f"{path.name} does not hold {text!r} {nth + 1} times any more: bring "
            "tests/compiled/source_faults.py up to date"
        )
    before, after = pieces[: nth + 1], pieces[nth + 1 :]
    path.write_text(text.join(before) + replacement + text.join(after))
