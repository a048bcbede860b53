"""Hardware counters of the main kernels, by Nsight Compute; clocks stay as they are."""

from __future__ import annotations

import csv
import shutil
from typing import Any

from benchmarks.lib import facts
from benchmarks.lib.measurement import NotMeasured
from benchmarks.phases.context import Visit, python_tool

_SECTIONS = (
    "SpeedOfLight",
    "MemoryWorkloadAnalysis",
    "WarpStateStats",
    "SchedulerStats",
    "LaunchStats",
    "Occupancy",
    "InstructionStats",
)
# Short names of what a reader asks for first; the file has everything.
_METRICS = {
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed": "dram_percent",
    "dram__bytes.sum.per_second": "dram_bytes_per_second",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "sm_percent",
    "lts__t_sector_hit_rate.pct": "l2_hit_percent",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy_percent",
    "gpu__time_duration.sum": "nanoseconds",
    "launch__registers_per_thread": "registers",
    "launch__shared_mem_config_size": "shared_configuration_bytes",
}
_LONGEST_FILE = 8_000_000
_SECONDS = 85


def counters(visit: Visit) -> None:
    visit.needs_gpu("Nsight Compute")
    if shutil.which("ncu") is None:
        raise NotMeasured("there is no ncu")
    ran = python_tool(
        *("operators", "cuda", "large"),
        seconds=_SECONDS,
        before=[
            *("ncu", "--clock-control", "none", "-k", "regex:depthwise", "--launch-count", "14"),
            *("--csv", "--page", "raw"),
            *(word for section in _SECTIONS for word in ("--section", section)),
        ],
    )
    (visit.folder / "ncu.csv").write_text(ran.stdout[:_LONGEST_FILE])
    if ran.returncode:
        raise RuntimeError(facts.shortened(ran.stdout))
    for row in rows(ran.stdout):
        visit.facts.add("counters", **row)


def rows(output: str) -> list[dict[str, Any]]:
    """The launches in what ncu prints: a header, a line of units, and a line for each launch.

    Its page of raw metrics scales no number: times are nanoseconds, sizes bytes.
    """
    lines = output.splitlines()
    start = next((at for at, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    found = list(csv.DictReader(lines[start:]))[1:]
    return [
        {"kernel": row["Kernel Name"].split("(")[0].removeprefix("void ")}
        | {short: _number(row[name]) for name, short in _METRICS.items() if name in row}
        for row in found
    ]


def _number(text: str) -> float | None:
    """A number with commas between its thousands; None where ncu has none."""
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None
