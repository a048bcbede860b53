"""The pictures of a report. Each returns its name if there is something to draw, else None."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from benchmarks.lib.arithmetic import Ceilings
from benchmarks.lib.shapes import LAYOUTS, OPERATIONS
from benchmarks.reports import formats
from benchmarks.reports.records import Record, Run, fastest
from benchmarks.reports.tables import SWEPT, TITLES, floor, focus, is_graphed, matching
from convmixer.training.plots import tidy

# Okabe and Ito's colours, which stay apart for colour-blind readers.
COLOURS = {
    "PyTorch": "#8C8C8C",
    "torch.compile": "#CC79A7",
    "cuda": "#0072B2",
    "triton": "#E69F00",
}
_SIZE_COLOURS = ("#56B4E9", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#444444")
_STYLES: dict[str, Literal["-", "--"]] = {"contiguous": "-", "channels_last": "--"}
_FLOOR = "#333333"


def _figure(run: Run, width: float, height: float, title: str) -> Figure:
    """A figure on its own canvas whose title ends with the machine."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    machine = run.machine["device"] if run.on_gpu else f"the CPU {run.machine['device']}"
    figure.suptitle(f"{title}, on {machine}", fontsize=12.5, x=0.01, ha="left")
    return figure


def _logarithmic(axes: Axes, plain: Callable[[float], str]) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _plain_time(value: float) -> str:
    """Ticks are round numbers: 50 µs, not 50.0 µs."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= 0.999 * scale:
            return f"{value / scale:g} {unit}"
    return f"{value * 1e6:g} µs"


def _subject(setting: dict[str, Any]) -> str:
    parts = [f"{setting['images']} images", f"{setting['channels']} channels"]
    if "plane" in setting:
        parts.append(f"{setting['plane']} x {setting['plane']} pixels")
    if "kernel_size" in setting:
        parts.append(f"k = {setting['kernel_size']}")
    return ", ".join([*parts, setting["dtype"]])


def _series(records: list[Record], layout: str) -> Iterable[tuple[str, list[Record]]]:
    """The fastest record of each task in a layout, for everybody who has a colour."""
    listed = matching(records, {"layout": layout})
    tasks = dict.fromkeys(each.task for each in listed)
    for name in COLOURS:
        mine = [each for each in listed if _name_of(each) == name]
        best = (fastest(each for each in mine if each.task == task) for task in tasks)
        yield name, [each for each in best if each is not None]


def _lines(axes: Axes, records: list[Record], along: str, value: Callable[[Record], float]) -> None:
    for layout in LAYOUTS:
        for name, found in _series(records, layout):
            points = sorted((each.subject[along], value(each)) for each in found)
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    color=COLOURS[name],
                    linestyle=_STYLES[layout],
                    marker="o" if layout == "contiguous" else "s",
                    markersize=4.5,
                    markerfacecolor=COLOURS[name] if layout == "contiguous" else "white",
                    linewidth=1.8,
                )
    axes.set_xticks(sorted({each.subject[along] for each in records}))


def _name_of(found: Record) -> str:
    """ "PyTorch" or the kernel, without layout and settings.

    What surrounds a convolution can be fused: for blocks torch.compile stands apart.
    """
    name = found.who.split(",")[0]
    if found.kind == "block" and name == "torch.compile":
        return name
    return "PyTorch" if found.is_pytorch else name


def _who(records: list[Record]) -> list[Line2D]:
    """The colours of those that are there."""
    present = {_name_of(each) for each in records}
    apart = "torch.compile" in present
    labels = {"PyTorch": "PyTorch, eager" if apart else "PyTorch, fastest of its ways"}
    return [
        Line2D([], [], color=colour, linewidth=3, label=labels.get(name, name))
        for name, colour in COLOURS.items()
        if name in present
    ]


def _legend(figure: Figure, records: list[Record], floor: str) -> None:
    """Colours for who, line styles for the layout, below all panels."""
    handles = _who(records)
    handles += [
        Line2D(
            [],
            [],
            color="#666666",
            linestyle=_STYLES[layout],
            marker="o" if layout == "contiguous" else "s",
            markerfacecolor="#666666" if layout == "contiguous" else "white",
            label=layout,
        )
        for layout in LAYOUTS
    ]
    handles.append(Line2D([], [], color=_FLOOR, linestyle=":", linewidth=1.8, label=floor))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)


class _Panels(NamedTuple):
    """A figure with panels side by side, and the records of the one setting that it shows."""

    figure: Figure
    axes: Sequence[Axes]
    setting: dict[str, Any]
    records: list[Record]


def _panels(
    run: Run, records: list[Record], along: str, title: str, count: int, height: float = 4.4
) -> _Panels | None:
    """Begin a figure along `along`; return None where that was not measured."""
    setting = focus(records, along)
    if setting is None:
        return None
    figure = _figure(run, 12.5, height, f"{title}: {_subject(setting)}")
    axes = figure.subplots(1, count, sharey=True)
    return _Panels(figure, axes, setting, matching(records, setting))


def kernel_sizes(run: Run, kind: str, path: Path) -> str | None:
    """Draw time against kernel size, a panel an operation, above what the ceilings allow."""
    panels = _panels(run, run.of(kind), "kernel_size", "Time by kernel size", len(SWEPT[kind]))
    if panels is None:
        return None
    for axes, operation in zip(panels.axes, SWEPT[kind], strict=True):
        found = matching(panels.records, {"operation": operation})
        _lines(axes, found, "kernel_size", lambda each: each.median)
        sizes = sorted({each.subject["kernel_size"] for each in found})
        if run.ceilings:
            floors = [floor(panels.setting, operation, size, run.ceilings) for size in sizes]
            axes.plot(sizes, floors, color=_FLOOR, linestyle=":", linewidth=1.8)
        tidy(axes, TITLES[operation], "", "kernel size")
    _logarithmic(panels.axes[0], _plain_time)
    panels.axes[0].set_ylabel("median time of a call")
    _legend(panels.figure, panels.records, "ceilings of this machine (copy, matrix product)")
    panels.figure.savefig(path)
    return path.name


def planes(run: Run, path: Path) -> str | None:
    """Draw the share of the copy bandwidth against the size of the planes."""
    panels = _panels(
        run, run.of("depthwise"), "plane", "Bandwidth by height and width", len(OPERATIONS)
    )
    if panels is None or run.ceilings is None:
        return None
    for axes, operation in zip(panels.axes, OPERATIONS, strict=True):
        found = matching(panels.records, {"operation": operation})
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.tick_params(axis="x", labelsize=8)
        _lines(axes, found, "plane", lambda each: 100 * each.info["share_of_copy"])
        axes.axhline(100, color=_FLOOR, linestyle=":", linewidth=1.8)
        tidy(axes, TITLES[operation], "", "height and width")
    panels.axes[0].set_ylim(bottom=0)
    panels.axes[0].set_ylabel("share of the copy bandwidth (%)")
    _legend(panels.figure, panels.records, "a copy of input to output")
    panels.figure.savefig(path)
    return path.name


def roofline(run: Run, path: Path) -> str | None:
    """Draw the rate of the forward pass against operations a byte, below the measured ceilings."""
    records = matching(run.of("depthwise"), {"operation": "forward"})
    title = "Roofline of the forward pass"
    panels = _panels(run, records, "kernel_size", title, len(LAYOUTS), height=5.0)
    if panels is None or run.ceilings is None:
        return None
    for axes, layout in zip(panels.axes, LAYOUTS, strict=True):
        _roof(axes, run.ceilings, panels.records)
        for name, found in _series(panels.records, layout):
            points = sorted((_intensity(each), _rate(each)) for each in found)
            if points:
                axes.plot(*zip(*points, strict=True), "o-", color=COLOURS[name], markersize=5)
        tidy(axes, layout, "", "operations a byte")
        _kernel_size_axis(axes, panels.records)
    _logarithmic(panels.axes[0], _plain_rate)
    panels.axes[0].set_ylabel("operations a second")
    rates = (
        f"copy {run.ceilings.bytes_per_second / 1e9:,.0f} GB/s, dense {run.ceilings.dtype} matrix "
        f"product {formats.rate(run.ceilings.operations_per_second)}"
    )
    handles = [Line2D([], [], color=_FLOOR, linewidth=1.6, label=rates)]
    handles = [*_who(panels.records), *handles]
    panels.figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    panels.figure.savefig(path)
    return path.name


def _intensity(found: Record) -> float:
    return float(found.info["operations"] / found.info["bytes"])


def _rate(found: Record) -> float:
    return float(found.info["operations"] / found.median)


def _plain_rate(value: float) -> str:
    unit, scale = ("TFLOP/s", 1e12) if value >= 0.999e12 else ("GFLOP/s", 1e9)
    return f"{value / scale:g} {unit}"


def _roof(axes: Axes, ceilings: Ceilings, listed: Sequence[Record]) -> None:
    memory, compute = ceilings.bytes_per_second, ceilings.operations_per_second
    ridge = compute / memory
    left = 0.7 * min(ridge, *map(_intensity, listed))
    right = 1.4 * max(ridge, *map(_intensity, listed))
    axes.plot([left, ridge, right], [left * memory, compute, compute], color=_FLOOR, linewidth=1.6)


def _kernel_size_axis(axes: Axes, listed: Sequence[Record]) -> None:
    """Kernel sizes along the top, where their intensities lie."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    sizes = dict(sorted((each.subject["kernel_size"], _intensity(each)) for each in listed))
    top = axes.secondary_xaxis("top")
    top.set_xticks(list(sizes.values()), [f"{size}" for size in sizes])
    top.xaxis.set_minor_locator(NullLocator())
    top.tick_params(labelsize=8, length=2, color="#AAAAAA", labelcolor="#555555")
    top.set_xlabel("kernel size", fontsize=8, color="#555555")
    top.spines["top"].set_visible(False)


def throughput(run: Run, rows: Sequence[Any], path: Path) -> str | None:
    """Images a second of each network that was measured, fastest first; `rows` of networks.py.

    All are launched one by one, as PyTorch is; what a CUDA graph replays is in the tables.
    """
    found = [each for each in run.of("inference") if not each.wrong and not is_graphed(each)]
    names = list(dict.fromkeys(each.subject["network"] for each in found))
    if not names:
        return None
    printed = {row.network: row for row in rows}
    lines = []
    for name in names:
        best = {
            who: speed
            for who in COLOURS
            if (speed := _best_speed(matching(found, {"network": name}), who)) is not None
        }
        lines.append((max(best.values()), name, best))
    lines.sort()
    first = found[0].subject
    batch = f"batches of {first['batch']} images, {first['dtype']}"
    height = 1.9 + 0.27 * len(lines)
    figure = _figure(run, 10.5, height, f"Inference, {batch}")
    axes = figure.subplots()
    for position, (fastest_speed, name, best) in enumerate(lines):
        axes.plot([min(best.values()), fastest_speed], [position] * 2, color="#CCCCCC", zorder=1)
        for who, speed in best.items():
            axes.plot(speed, position, "o", color=COLOURS[who], markersize=7, zorder=3)
        if name in printed:
            paper = printed[name].images_per_second
            axes.plot(paper, position, "D", color="white", markeredgecolor="#555555", markersize=5)
        text = f"  {formats.digits(fastest_speed)}"
        ours = max((speed for who, speed in best.items() if who != "PyTorch"), default=None)
        if ours and "PyTorch" in best:
            text += f", {formats.times(ours / best['PyTorch'])}"
        axes.annotate(text, (fastest_speed, position), va="center", fontsize=8)
    labels = [printed[name].label if name in printed else name for _, name, _ in lines]
    axes.set_yticks(range(len(lines)), labels, fontsize=8.5)
    axes.set_ylim(-0.7, len(lines) - 0.3)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.1)
    handles = _who(found)
    versus = "; times as fast as PyTorch" if len(handles) > 1 else ""
    tidy(axes, "", "", f"images a second, each in its faster layout{versus}")
    if any(name in printed for name in names):
        handles.append(
            Line2D(
                [],
                [],
                color="none",
                marker="D",
                markerfacecolor="white",
                markeredgecolor="#555555",
                label="the paper's figure (RTX 8000; V100 in tables 3 and 5)",
            )
        )
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(path)
    return path.name


def _best_speed(found: Iterable[Record], who: str) -> float | None:
    best = fastest(each for each in found if _name_of(each) == who)
    return None if best is None else float(best.info["images_per_second"])


def input_sizes(run: Run, kernel_sizes: Sequence[int], path: Path) -> str | None:
    """Figure 4 of the paper: inference time against input size, PyTorch beside the kernels."""
    found = [each for each in run.of("input_size") if each.subject["kernel_size"] in kernel_sizes]
    if not found:
        return None
    first = found[0].subject
    title = f"Inference, {first['network']}, batches of {first['batch']}, {first['dtype']}"
    figure = _figure(run, 11.0, 4.6, title)
    ours = fastest(each for each in found if not each.is_pytorch)
    sides = {"PyTorch": "PyTorch, fastest of its ways"}
    if ours:
        sides[_name_of(ours)] = f"{_name_of(ours)}, faster layout"
    panels = figure.subplots(1, len(sides), sharex=True, sharey=True, squeeze=False)[0]
    ends: list[dict[str, tuple[float, float, str]]] = []
    for axes, (who, label) in zip(panels, sides.items(), strict=True):
        side = [each for each in found if _name_of(each) == who]
        ends.append({})
        for colour, kernel_size in zip(_SIZE_COLOURS, kernel_sizes, strict=False):
            points = input_size_points(matching(side, {"kernel_size": kernel_size}))
            if points:
                xs, ys = zip(*points, strict=True)
                axes.plot(xs, [1e3 * y for y in ys], "o-", color=colour, markersize=4)
                ends[-1][f"k = {kernel_size}"] = (1e3 * ys[-1], xs[-1], colour)
        tidy(axes, label, "", "height and width of the images")
        axes.set_xticks(sorted({each.subject["size"] for each in found}))
    panels[0].set_ylim(bottom=0)
    for axes, labels in zip(panels, ends, strict=True):
        _label_ends(axes, labels)
    panels[0].set_ylabel("mean time of a batch (ms)")
    figure.savefig(path)
    return path.name


def _label_ends(axes: Axes, ends: dict[str, tuple[float, float, str]]) -> None:
    """Names lines at their right ends, moved up where they would cover each other."""
    lowest, highest = axes.get_ylim()
    for text, (height, right, colour) in sorted(ends.items(), key=lambda end: end[1][0]):
        at = max(height, lowest)
        lowest = at + 0.05 * highest
        axes.annotate(
            f"  {text}", (right, at), va="center", fontsize=9, color=colour, annotation_clip=False
        )


def input_size_points(records: Iterable[Record]) -> list[tuple[int, float]]:
    """Image size and mean seconds of the fastest way."""
    best: dict[int, float] = {}
    for each in records:
        size = each.subject["size"]
        best[size] = min(each.seconds, best.get(size, each.seconds))
    return sorted(best.items())
