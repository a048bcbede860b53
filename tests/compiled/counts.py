"""Count the work of representative passes on the emulated GPU, for counts.csv.

``python -m tests.compiled.counts`` writes the table, for kernels that were changed on purpose.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from convmixer_kernels import emulated_gpu

from .running import gpu_of
from .steps import Case, prepare

TABLE = Path(__file__).with_name("counts.csv")
# Instructions are those of PTX that a warp executes. Sectors are 32 bytes of global memory, counted
# once for each instruction that touches them. A conflict is one more pass over the banks of shared
# memory than the words of an access need.
COLUMNS = (
    *("instructions", "matrix_products", "sectors_read", "sectors_written"),
    *("shared_passes", "shared_conflicts"),
)
_SHARED = ("shared_load_wavefronts", "shared_store_wavefronts", "copy_wavefronts")


def cases() -> Iterator[Case]:
    """Passes of the models: 32x32 planes whole, 56x56 in two row blocks, in both layouts."""
    for layout, channels in (("contiguous", 4), ("channels_last", 16)):
        for operation in ("forward", "weight_gradient", "forward_normalised", "fused_backward"):
            yield Case(operation, (4, channels, 32, 32), 9, torch.float16, layout)
        yield Case("forward_moments", (4, channels, 32, 32), 9, torch.float16, layout)
        yield Case("arranged", (4, 64, 32, 32), 9, torch.float16, layout)
        for operation in ("forward", "weight_gradient"):
            yield Case(operation, (2, channels, 56, 56), 15, torch.bfloat16, layout)


def count(case: Case) -> dict[str, int]:
    """The columns of the table for one run of a case."""
    step, _ = prepare(case)
    with gpu_of(case) as backend:
        emulated_gpu.interpreter().take_counters()
        step(backend)
    counters = emulated_gpu.interpreter().take_counters()
    passes = counters["matrix_passes"] + sum(counters[name] for name in _SHARED)
    ideal = counters["matrices_read"] + sum(counters[f"{name}_ideal"] for name in _SHARED)
    return {
        "instructions": counters["warp_instructions"],
        "matrix_products": counters["mma_k16"] + counters["mma_k8"],
        "sectors_read": counters["global_sectors_read"],
        "sectors_written": counters["global_sectors_written"],
        "shared_passes": passes,
        "shared_conflicts": passes - ideal,
    }


def read_table() -> dict[str, dict[str, int]]:
    """The committed counts, by the text of a case."""
    with TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {row["case"]: {name: int(row[name]) for name in COLUMNS} for row in rows}


def main() -> None:
    os.environ["CONVMIXER_KERNELS_EMULATE"] = "1"
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["case", *COLUMNS])
        for case in cases():
            writer.writerow([str(case), *count(case).values()])


if __name__ == "__main__":
    main()
