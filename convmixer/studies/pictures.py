"""Pictures of studies: accuracies by row, over numeric fields and parameters, over the epochs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from convmixer.studies.lines import Line
from convmixer.training.plots import (
    COLOURS,
    SEED_COLOURS,
    History,
    new_figure,
    save_figure,
    tidy,
)

MOST_CURVES = 12
"""Curves of more rows than this are not drawn into one picture."""
MOST_NAMES = 32
"""More networks than this have no names in the panel over parameters."""
LARGE_RATIO = 20.0
"""Values that span more than this factor stand on a logarithmic axis."""
MARKERS = "DsvP"


class Network(NamedTuple):
    """A point of the panel over parameters; accuracies are those of its seeds, in percent."""

    name: str
    parameters: float
    accuracies: Sequence[float]


@dataclass(frozen=True)
class Source:
    """Accuracies from one source: measured here, or reported in a publication.

    Attributes:
        title: the source in words.
        panels: the lines over each numeric field.
        networks: ConvMixers with different numbers of parameters.
        peers: other networks.
    """

    title: str
    panels: Mapping[str, Sequence[Line]]
    networks: Sequence[Network] = ()
    peers: Sequence[Network] = ()


def save_rows(
    path: Path,
    *,
    title: str,
    labels: Sequence[str],
    accuracies: Sequence[Sequence[float]],
    measured_on: str,
    reported: Mapping[str, Sequence[float | None]],
    baseline: int | None = None,
) -> None:
    """Draw measured accuracies and reported ones in two panels, each with its own scale.

    Args:
        path: PNG to write.
        title: title of the picture.
        labels: labels of the rows, from the top.
        accuracies: test accuracies of the seeds of every row, in percent; none for a row not run.
        measured_on: title of the left panel.
        reported: the accuracy of every row in percent by the name of its publication.
        baseline: position of the row through which a dashed line goes, if any.
    """
    columns = 2 if reported else 1
    figure = new_figure(6.0 * columns + 1.0, 1.8 + 0.32 * len(labels))
    figure.suptitle(title, fontsize=13)
    panels = figure.subplots(1, columns, sharey=True, squeeze=False)[0]
    measured = panels[0]
    means = [statistics.fmean(values) if values else None for values in accuracies]
    for position, (values, mean) in enumerate(zip(accuracies, means, strict=True)):
        if mean is None:
            measured.annotate(
                "not run",
                (0.02, position),
                xycoords=("axes fraction", "data"),
                va="center",
                color=COLOURS["paper"],
            )
            continue
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        measured.plot(values, [position] * len(values), ".", color="#9ECAE1", zorder=2)
        measured.errorbar(
            mean, position, xerr=deviation, fmt="o", color=COLOURS["train"], capsize=3, zorder=3
        )
    if baseline is not None and means[baseline] is not None:
        _through_baseline(measured, means[baseline])
    if reported:
        printed = panels[1]
        for (source, numbers), marker in zip(reported.items(), MARKERS, strict=False):
            points = [(value, place) for place, value in enumerate(numbers) if value is not None]
            printed.plot(
                *zip(*points, strict=True),
                marker,
                label=source,
                color=COLOURS["paper"] if marker == MARKERS[0] else COLOURS["rate"],
            )
        if baseline is not None:
            _through_baseline(printed, next(iter(reported.values()))[baseline])
        if len(reported) > 1:
            printed.legend(frameon=False)
        names = "reported" if len(reported) > 1 else f"{next(iter(reported))}, as reported"
        tidy(printed, names, "", "top-1 accuracy (%)")
    seeds = max(map(len, accuracies), default=0)
    detail = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    tidy(measured, measured_on, "", f"test accuracy (%), {detail}")
    measured.set_yticks(range(len(labels)), labels)
    measured.set_ylim(len(labels) - 0.5, -0.5)
    save_figure(figure, path)


def _through_baseline(axes: Axes, value: float | None) -> None:
    if value is not None:
        axes.axvline(value, color="#BBBBBB", linestyle="--", linewidth=1.0, zorder=1)


def save_lines(path: Path, title: str, sources: Sequence[Source]) -> bool:
    """Draw accuracy over each numeric field and over the parameters, a row of panels a source.

    Args:
        path: PNG to write.
        title: title of the picture.
        sources: the accuracies; those without lines and networks are left out.

    Returns:
        whether there was anything to draw.
    """
    sources = [source for source in sources if source.panels or source.networks]
    names = list(dict.fromkeys(name for source in sources for name in source.panels))
    parameters = any(source.networks for source in sources)
    columns = len(names) + parameters
    if not columns:
        return False
    # The names of many networks need room.
    size = 1.6 if any(source.peers for source in sources) else 1.0
    figure = new_figure(size * max(4.4 * columns, 6.0), size * 3.6 * len(sources) + 0.4)
    figure.suptitle(title, fontsize=13)
    grid = figure.subplots(len(sources), columns, squeeze=False)
    for source, row in zip(sources, grid, strict=True):
        for axes, name in zip(row, names, strict=False):
            _draw_lines(axes, name, source.panels.get(name, ()))
            tidy(axes, source.title, "accuracy (%)", name)
        if parameters:
            _draw_networks(row[-1], source)
            tidy(row[-1], source.title, "accuracy (%)", "parameters")
    save_figure(figure, path)
    return True


def _draw_lines(axes: Axes, name: str, lines: Sequence[Line]) -> None:
    if not lines:
        axes.set_axis_off()
        return
    for line, colour in zip(lines, SEED_COLOURS * len(lines), strict=False):
        means = [statistics.fmean(values) for values in line.accuracies]
        repeated = any(len(values) > 1 for values in line.accuracies)
        deviations = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in line.accuracies]
        axes.errorbar(
            line.values,
            means,
            yerr=deviations if repeated else None,
            fmt="o-",
            color=colour,
            capsize=3,
            label=line.label,
        )
    values = sorted({value for line in lines for value in line.values})
    positive = [value for value in values if value > 0]
    if positive and positive[-1] / positive[0] > LARGE_RATIO:
        if values[0] > 0:
            axes.set_xscale("log")
        else:
            axes.set_xscale("symlog", linthresh=positive[0])
    axes.xaxis.set_major_locator(FixedLocator(values))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=8)


def _draw_networks(axes: Axes, source: Source) -> None:
    points = [(source.networks, COLOURS["train"], "o"), (source.peers, COLOURS["paper"], "^")]
    # Names that most points share tell nothing.
    different = 3 * len({network.name for network in source.networks}) > len(source.networks)
    named = different and len(source.networks) + len(source.peers) <= MOST_NAMES
    for networks, colour, marker in points:
        for number, network in enumerate(networks):
            mean = statistics.fmean(network.accuracies)
            deviation = statistics.stdev(network.accuracies) if len(network.accuracies) > 1 else 0.0
            place = (network.parameters, mean)
            axes.errorbar(*place, yerr=deviation or None, fmt=marker, color=colour, capsize=3)
            if named:
                # The names of neighbours stand above and below.
                below = networks is source.peers and number % 2 == 1
                axes.annotate(
                    network.name,
                    place,
                    xytext=(4, -8 if below else 4),
                    textcoords="offset points",
                    fontsize=6.5,
                    color=colour,
                )
    if not source.networks:
        axes.set_axis_off()
        return
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: in_words(value)))


def in_words(count: float) -> str:
    """Return a number of parameters with K for thousands and M for millions."""
    for factor, letter in ((1e6, "M"), (1e3, "K")):
        if abs(count) >= factor:
            return f"{count / factor:g}{letter}"
    return f"{count:g}"


def save_curves_of_rows(
    path: Path, title: str, measured_on: str, histories: Mapping[str, Sequence[History]]
) -> bool:
    """Draw training loss and held-out accuracy over the epochs, the mean over seeds for each row.

    Args:
        path: PNG to write.
        title: title of the picture.
        measured_on: the source in words.
        histories: the rows of `metrics.csv` of every seed, by the label of a row.

    Returns:
        whether there was anything to draw: at most `MOST_CURVES` rows fit into a picture.
    """
    if not 0 < len(histories) <= MOST_CURVES:
        return False
    every = [row for runs in histories.values() for history in runs for row in history]
    split = next(
        (s for s in ("validation", "test") if all(f"{s}_accuracy" in row for row in every)), "train"
    )
    figure = new_figure(12.0, 4.4)
    figure.suptitle(f"{title} ({measured_on})", fontsize=13)
    loss, accuracy = figure.subplots(1, 2)
    for number, (label, runs) in enumerate(histories.items()):
        colour = (
            SEED_COLOURS[number]
            if len(histories) <= len(SEED_COLOURS)
            else colormaps["turbo"](number / (len(histories) - 1))
        )
        _draw_mean(loss, runs, "train_loss", colour, label)
        _draw_mean(accuracy, runs, f"{split}_accuracy", colour, label)
    tidy(loss, "Training loss, mixed and augmented images", "cross-entropy")
    images = {
        "train": "training images, mixed and augmented",
        "test": "test images, never chosen by",
    }
    tidy(accuracy, f"Accuracy on {images.get(split, 'validation images')}", "top-1 (%)")
    accuracy.legend(frameon=False, fontsize=8)
    for axes in (loss, accuracy):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    save_figure(figure, path)
    return True


def _draw_mean(axes: Axes, runs: Sequence[History], key: str, colour: object, label: str) -> None:
    """Draw the mean over runs and, for several, a band of one standard deviation."""
    epochs = min(map(len, runs))
    values = [[history[epoch][key] for history in runs] for epoch in range(epochs)]
    means = [statistics.fmean(each) for each in values]
    numbers = range(1, epochs + 1)
    axes.plot(numbers, means, color=colour, label=label, linewidth=1.4, marker="o", markersize=3)
    if len(runs) > 1:
        deviations = [statistics.stdev(each) for each in values]
        low = [m - d for m, d in zip(means, deviations, strict=True)]
        high = [m + d for m, d in zip(means, deviations, strict=True)]
        axes.fill_between(numbers, low, high, color=colour, alpha=0.12, linewidth=0)
