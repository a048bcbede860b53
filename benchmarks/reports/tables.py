"""The tables of a report, from records."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.lib.arithmetic import Ceilings, speedup
from benchmarks.lib.shapes import BLOCK_OPERATIONS, LAYOUTS, OPERATIONS, REFERENCE, work_of
from benchmarks.reports.formats import (
    NOTHING,
    aligned,
    digits,
    markdown,
    percent,
    rate,
    seconds,
    times,
)
from benchmarks.reports.records import Key, Record, Run, best_pytorch, fastest

TITLES = {
    "forward": "Forward",
    "input_gradient": "Input gradient",
    "weight_gradient": "Weight gradient",
    "inference": "Block in inference",
    "training_forward": "Block in training, forward",
    "training": "Block in training, forward and backward",
    "backward": "Block in training, backward by difference",
}
# The keys are kinds of records.
SWEPT = {"depthwise": OPERATIONS, "block": BLOCK_OPERATIONS}
KERNELS = ("cuda", "triton")
_THROUGHPUT = ("best of PyTorch", "`cuda`", "`triton`", "faster of these over PyTorch")
# A time is the host's if queueing takes this share of it or more.
_HOST_BOUND = 0.9
# In the name of a way that a graph replays.
_GRAPH = "CUDA graph"


def focus(records: Iterable[Record], along: str) -> dict[str, Any] | None:
    """The setting with the most values of `along`, the largest of those with equally many."""
    values: dict[Key, set[Any]] = defaultdict(set)
    others = ("images", "channels", "plane", "kernel_size", "dtype")
    for each in records:
        setting = tuple((name, each.subject[name]) for name in others if name != along)
        values[setting].add(each.subject[along])
    if not values:
        return None

    def rank(setting: Key) -> tuple[int, int]:
        named = dict(setting)
        size = named["images"] * named["channels"] * named.get("plane", 1) ** 2
        return len(values[setting]), size

    return dict(sorted(values, key=rank)[-1])


def matching(records: Iterable[Record], wanted: dict[str, Any]) -> list[Record]:
    return [
        each
        for each in records
        if all(each.subject.get(name) == value for name, value in wanted.items())
    ]


def sweep_table(records: list[Record], operation: str, along: str, title: str) -> str:
    """Time, share of the copy bandwidth and ratio to PyTorch's best, by what stands `along`."""
    setting = focus(records, along)
    if setting is None:
        return ""
    listed = matching(records, {**setting, "operation": operation})
    if not listed:
        return ""
    best = best_pytorch(listed)
    columns = _kernel_columns(listed)
    header = [title, "best of PyTorch", *(f"`{kernel}`, {layout}" for kernel, layout in columns)]
    rows = []
    for value in sorted({each.subject[along] for each in listed}):
        found = matching(listed, {along: value})
        baseline = best.get(found[0].task)
        ours = [fastest(matching(found, {"peer": who, "layout": how})) for who, how in columns]
        compiled = any(each.subject["peer"].startswith("torch.compile") for each in found)
        cells = [_kernel_cell(mine, baseline) for mine in ours]
        rows.append([str(value), _baseline_cell(baseline, compiled), *cells])
    return markdown(header, rows)


def _kernel_columns(records: list[Record]) -> list[tuple[str, str]]:
    """Kernels and layouts that were measured."""
    present = {(each.subject["peer"], each.subject["layout"]) for each in records}
    columns = [(kernel, layout) for kernel in KERNELS for layout in LAYOUTS]
    return [column for column in columns if column in present]


def ratio_table(records: list[Record], operations: Sequence[str], *, terminal: bool = False) -> str:
    """Speed-ups over the best of PyTorch in any layout, by kernel size and layout.

    At the focus of the kernel sizes, with the geometric mean of each line. Empty where nothing of
    ours was measured beside PyTorch.
    """
    setting = focus(records, "kernel_size")
    listed = matching(records, setting) if setting else []
    best = best_pytorch(listed)
    rows, sizes = [], sorted({each.subject["kernel_size"] for each in listed})
    for operation in operations:
        for kernel, layout in _kernel_columns(listed):
            wanted = {"operation": operation, "peer": kernel, "layout": layout}
            mine = {each.subject["kernel_size"]: each for each in matching(listed, wanted)}
            ratios = {
                size: speedup(each.seconds, best[each.task].seconds)
                for size, each in mine.items()
                if each.task in best
            }
            if ratios:
                mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
                cells = [times(ratios[size]) if size in ratios else NOTHING for size in sizes]
                rows.append([f"{TITLES[operation]}, {kernel}, {layout}", *cells, times(mean)])
    if not rows:
        return ""
    header = ["", *(f"k = {size}" for size in sizes), "geometric mean"]
    return "\n".join(aligned(header, rows)) if terminal else markdown(header, rows)


def _baseline_cell(baseline: Record | None, compiled: bool) -> str:
    if baseline is None:
        return NOTHING
    # Compilers fuse what surrounds a convolution, not what is in it.
    mark = "" if compiled or baseline.kind != "block" else "‡"
    return f"{_time_cell(baseline)} {baseline.who}{mark}"


def _kernel_cell(mine: Record | None, baseline: Record | None) -> str:
    if mine is None:
        return NOTHING
    cell = _time_cell(mine)
    if baseline is None:
        return cell
    return f"{cell} **{times(speedup(mine.seconds, baseline.seconds))}**"


def _time_cell(found: Record) -> str:
    """Time and share of the copy; of training steps, the memory that they take as well."""
    share = found.info.get("share_of_copy")
    peak = found.info.get("peak_memory_bytes") if found.operation == "training" else None
    notes = [] if share is None else [percent(share)]
    notes += [] if peak is None else [f"{peak / 2**20:,.0f} MiB"]
    return f"{seconds(found.median)} ({', '.join(notes)})" if notes else seconds(found.median)


def pytorch_table(records: list[Record], operations: Sequence[str]) -> str:
    """Every configuration of PyTorch at the focus of the kernel sizes, and the kernels it ran."""
    setting = focus(records, "kernel_size")
    if setting is None:
        return ""
    rows = []
    listed = [each for each in matching(records, setting) if each.is_pytorch]
    for operation in operations:
        found = matching(listed, {"operation": operation})
        for each in sorted(found, key=lambda each: (each.subject["kernel_size"], each.median)):
            # A bar would end the cell.
            names = [name.replace("|", "/")[:90] for name in each.info["kernels"]]
            rows.append(
                [
                    f"{TITLES[operation]}, k = {each.subject['kernel_size']}",
                    each.who,
                    ", ".join(f"`{name}`" for name in names) or "not seen by the profiler",
                    f"wrong: {each.wrong}" if each.wrong else seconds(each.median),
                ]
            )
    header = ["", "configuration", "kernels, longest first", "median"]
    return markdown(header, rows, left=3)


def ceiling_table(ceilings: Ceilings | None) -> str:
    if ceilings is None:
        return ""
    rows = [
        ["fastest copy, read plus written", f"{ceilings.bytes_per_second / 1e9:,.0f} GB/s"],
        [
            f"dense {ceilings.dtype} matrix product",
            rate(ceilings.operations_per_second),
        ],
    ]
    return markdown(["ceiling, measured in the same run", "rate"], rows)


def network_table(run: Run, rows: Sequence[Any]) -> str:
    """Images a second beside the paper's; `rows` are those of networks.py that were measured."""
    named = [(f"{row.label}, {row.recipe}" if row.recipe else row.label, row) for row in rows]
    lines = [
        [label, f"{row.images_per_second:,}", *throughput_cells(run.of("inference"), row.network)]
        for label, row in named
    ]
    return _without_empty_columns(["network", f"paper, {rows[0].gpu}", *_THROUGHPUT], lines)


def small_table(run: Run, names: Sequence[str]) -> str:
    """Images a second of networks that are in no table of the paper."""
    rows = [[name, *throughput_cells(run.of("inference"), name)] for name in names]
    return _without_empty_columns(["network", *_THROUGHPUT], rows)


def _without_empty_columns(header: list[str], rows: list[list[str]]) -> str:
    kept = [at for at in range(len(header)) if any(row[at] != NOTHING for row in rows)]
    return markdown([header[at] for at in kept], [[row[at] for at in kept] for row in rows])


def throughput_cells(records: Iterable[Record], network: str) -> list[str]:
    """Best of PyTorch, cuda, triton, and the better of these over PyTorch."""
    found = matching(records, {"network": network})
    baseline = fastest(each for each in found if each.is_pytorch)
    ours = [_of_kernel(found, kernel) for kernel in KERNELS]
    best = fastest(each for each in ours if each)
    ratio = speedup(best.seconds, baseline.seconds) if best and baseline else None
    return [
        _throughput(baseline, with_name=True),
        *(
            _throughput(each) + _in_a_graph(found, kernel)
            for each, kernel in zip(ours, KERNELS, strict=True)
        ),
        NOTHING if ratio is None else f"**{times(ratio)}**",
    ]


def _of_kernel(found: list[Record], kernel: str, graphed: bool = False) -> Record | None:
    """The fastest way of a kernel: launched one by one, as PyTorch is timed, or in a CUDA graph."""
    ways = (each for each in found if each.subject["way"].split(",")[0] == kernel)
    return fastest(each for each in ways if is_graphed(each) == graphed)


def is_graphed(found: Record) -> bool:
    """True for a network that a CUDA graph replayed."""
    return _GRAPH in found.subject["way"]


def _in_a_graph(found: list[Record], kernel: str) -> str:
    graphed = _of_kernel(found, kernel, graphed=True)
    return "" if graphed is None else f" ({_throughput(graphed)} in a {_GRAPH})"


def _throughput(found: Record | None, with_name: bool = False) -> str:
    if found is None:
        return NOTHING
    mark = "†" if is_host_bound(found) else ""
    speed = digits(found.info["images_per_second"]) + mark
    return f"{speed} {found.who}" if with_name else speed


def is_host_bound(found: Record) -> bool:
    """True where Python took as long to queue the batches as the GPU to run them."""
    share = found.info["host_share"]
    return share is not None and share >= _HOST_BOUND


def training_table(run: Run, names: Sequence[str]) -> str:
    """Images a second and peak memory of training steps."""
    header = ["network", *_THROUGHPUT, "memory, PyTorch", "memory, `cuda`", "memory, `triton`"]
    rows = []
    for name in names:
        found = matching(run.of("training"), {"network": name})
        baseline = fastest(each for each in found if each.is_pytorch)
        holders = [baseline, *(_of_kernel(found, kernel) for kernel in KERNELS)]
        rows.append([name, *throughput_cells(found, name), *map(_memory, holders)])
    return _without_empty_columns(header, rows)


def _memory(found: Record | None) -> str:
    peak = found.info["peak_memory_bytes"] if found else None
    return NOTHING if peak is None else f"{peak / 2**30:.1f} GiB"


def headline(run: Run) -> str:
    """The few numbers for the front page: of those, what was measured."""
    shape = " x ".join(map(str, REFERENCE))
    rows = []
    for operation in OPERATIONS:
        for kernel_size in (7, 9, 15):
            rows.append(_headline_row(run.of("depthwise"), operation, kernel_size))
    rows += [_headline_row(run.of("block"), operation, 9) for operation in BLOCK_OPERATIONS]
    for kind, label in (("inference", "images/s"), ("training", "images/s in training")):
        cells = throughput_cells(run.of(kind), "convmixer_1536_20")[:-1]
        rows.append([f"ConvMixer-1536/20, {label}", *cells])
    measured = [row for row in rows if any(cell != NOTHING for cell in row[1:])]
    header = [f"{shape}, float16", "best of PyTorch", "`cuda`", "`triton`"]
    return _without_empty_columns(header, measured)


def _headline_row(records: list[Record], operation: str, kernel_size: int) -> list[str]:
    images, channels, plane, _ = REFERENCE
    wanted = {
        "operation": operation,
        "images": images,
        "channels": channels,
        "plane": plane,
        "kernel_size": kernel_size,
        "dtype": "float16",
    }
    found = matching(records, wanted)
    baseline = fastest(each for each in found if each.is_pytorch)
    ours = (fastest(matching(found, {"peer": kernel})) for kernel in KERNELS)
    cells = [seconds(baseline.median) if baseline else NOTHING]
    cells += [_kernel_cell(mine, baseline) for mine in ours]
    return [f"{TITLES[operation].lower()}, k = {kernel_size}", *cells]


def terminal(records: list[Record], ceilings: Ceilings | None, kind: str) -> list[str]:
    """The records of a kind at the focus of the kernel sizes, for the end of a run."""
    listed = [each for each in records if each.kind == kind]
    setting = focus(listed, "kernel_size")
    if setting is None:
        return []
    listed = matching(listed, setting)
    peers = list(dict.fromkeys(each.who for each in listed))
    sizes = sorted({each.subject["kernel_size"] for each in listed})
    shape = f"{setting['images']} x {setting['channels']} x {setting['plane']} x {setting['plane']}"
    lines = [f"{shape}, {setting['dtype']}"]
    for operation in SWEPT[kind]:
        rows = []
        for peer in peers:
            found = {
                each.subject["kernel_size"]: each
                for each in matching(listed, {"operation": operation})
                if each.who == peer
            }
            if found:
                rows.append([peer, *(_short_cell(found.get(size)) for size in sizes)])
        if rows and ceilings:
            bounds = [seconds(floor(setting, operation, size, ceilings)) for size in sizes]
            rows.append(["(copy or matrix product)", *bounds])
        if rows:
            header = [TITLES[operation], *(f"k = {size}" for size in sizes)]
            lines += ["", *aligned(header, rows)]
    return lines


def _short_cell(found: Record | None) -> str:
    if found is None:
        return NOTHING
    return f"wrong: {seconds(found.median)}" if found.wrong else seconds(found.median)


def floor(setting: dict[str, Any], operation: str, kernel_size: int, ceilings: Ceilings) -> float:
    """The time below which no version of an operation goes."""
    plane = setting["plane"]
    shape = (setting["images"], setting["channels"], plane, plane)
    return ceilings.floor_seconds(work_of(operation, shape, kernel_size, setting["dtype"]))
