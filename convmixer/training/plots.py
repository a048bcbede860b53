"""Pictures of runs: curves and confusion.

Every picture is drawn on its own Agg canvas, so that a program's own matplotlib backend, figures
and settings stay as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from convmixer.config.settings import Config
from convmixer.files import replacing
from convmixer.terminal import printable

LONGEST_NAME = 30
"""The name of a class in a picture has at most this many characters."""

History = Sequence[Mapping[str, Any]]

# The colours of Okabe and Ito, which colour-blind readers can tell apart.
COLOURS = {
    "train": "#0072B2",
    "validation": "#D55E00",
    "test": "#009E73",
    "rate": "#444444",
    "paper": "#999999",
}
SEED_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of this size in inches on its own canvas."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG in one step; a `$` in its text starts no formula."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_usetex(False)
    with replacing(path) as file, warnings.catch_warnings():
        # The font lacks some characters, for which Matplotlib draws a box and warns.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(file, format="png")


def short_name(name: str) -> str:
    """Return a name in one line of at most `LONGEST_NAME` characters."""
    shown = printable(name)
    return shown if len(shown) <= LONGEST_NAME else f"{shown[: LONGEST_NAME - 1]}…"


def tidy(axes: Axes, title: str, ylabel: str, xlabel: str = "epoch") -> None:
    """Give one panel its title and labels, a light grid, and no frame at the top and right."""
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_ylabel(ylabel)
    axes.set_xlabel(xlabel)
    axes.grid(True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _line(
    axes: Axes, history: History, key: str, colour: str, label: str, *, width: float = 1.6
) -> None:
    """Draw a column of the metrics over the epochs, if the run has it."""
    points = [(row["epoch"], row[key]) for row in history if row.get(key) is not None]
    if points:
        marker = "o" if len(points) < 3 else None
        epochs, values = zip(*points, strict=True)
        axes.plot(epochs, values, color=colour, label=label, linewidth=width, marker=marker)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlim(0.5, len(history) + 0.5)


def _from_zero(axes: Axes) -> None:
    """Start the scale at zero, with room above the largest value."""
    axes.set_ylim(0.0, 1.02 * axes.get_ylim()[1])


def _accuracy_limits(axes: Axes) -> None:
    """Leave room above the best accuracy, up to just over 100 %."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -1.0), min(high + 1.0, 100.5))


def _model_name(config: Config) -> str:
    model = config.model
    return (
        f"ConvMixer-{model.dim}/{model.depth} (kernel {model.kernel_size}, patch "
        f"{model.patch_size})"
    )


def save_curves(path: Path, config: Config, history: History, test_accuracy: float | None) -> None:
    """Draw loss, accuracy and learning rate over the epochs of one run.

    Args:
        path: PNG to write.
        config: settings of the run.
        history: a row an epoch, as in `metrics.csv`.
        test_accuracy: final test accuracy in percent for the title; None for an unfinished run.
    """
    figure = new_figure(12.0, 3.8)
    result = (
        f"test accuracy {test_accuracy:.2f} %"
        if test_accuracy is not None
        else f"stopped after epoch {len(history)} of {config.epochs}"
    )
    figure.suptitle(f"{config.recipe}: {_model_name(config)}, {result}", fontsize=13)
    loss, accuracy, rate = figure.subplots(1, 3)
    labels = {
        "train": f"train ({'mixed and ' if config.mixes else ''}augmented images)",
        "validation": "validation",
        "test": "test (not used for selection)",
    }
    for split, label in labels.items():
        _line(loss, history, f"{split}_loss", COLOURS[split], label)
        _line(accuracy, history, f"{split}_accuracy", COLOURS[split], label)
    _line(rate, history, "learning_rate", COLOURS["rate"], "learning rate")
    tidy(loss, "Loss", "cross-entropy")
    tidy(accuracy, "Accuracy", "top-1 (%)")
    tidy(rate, "Learning rate at the end of the epoch", "learning rate")
    if history:
        _from_zero(loss)
        _from_zero(rate)
        loss.legend(frameon=False)
        accuracy.legend(frameon=False, loc="lower right")
        _accuracy_limits(accuracy)
    save_figure(figure, path)


def save_seed_curves(
    path: Path, config: Config, histories: Mapping[str, History], summary: Mapping[str, Any]
) -> None:
    """Draw training loss and held-out accuracy of several seeds.

    Args:
        path: PNG to write.
        config: the settings that the runs share.
        histories: a name and the rows of `metrics.csv` for every run.
        summary: holds the mean `test_accuracy` and its `test_accuracy_deviation`.
    """
    figure = new_figure(10.0, 3.8)
    figure.suptitle(
        f"{config.recipe}: {_model_name(config)}, test accuracy "
        f"{summary['test_accuracy']:.2f} ± {summary['test_accuracy_deviation']:.2f} % "
        f"({len(histories)} seeds)",
        fontsize=13,
    )
    loss, accuracy = figure.subplots(1, 2)
    rows = [row for history in histories.values() for row in history]
    split = next(
        (s for s in ("validation", "test") if any(f"{s}_accuracy" in row for row in rows)), "train"
    )
    for number, (name, history) in enumerate(histories.items()):
        colour = SEED_COLOURS[number % len(SEED_COLOURS)]
        _line(loss, history, "train_loss", colour, name, width=1.2)
        _line(accuracy, history, f"{split}_accuracy", colour, name, width=1.2)
    tidy(loss, "Training loss", "cross-entropy")
    tidy(accuracy, f"Accuracy on the {split} images", "top-1 (%)")
    _from_zero(loss)
    loss.legend(frameon=False)
    _accuracy_limits(accuracy)
    save_figure(figure, path)


def save_confusion(path: Path, confusion: Tensor, class_names: Sequence[str], title: str) -> None:
    """Draw counts of true against predicted classes; the colour is the share of the true class.

    Args:
        path: PNG to write.
        confusion: counts (n_classes, n_classes), a row for every true class.
        class_names: name of every class.
        title: title of the picture.
    """
    counts = confusion.double()
    share = counts / counts.sum(1, keepdim=True).clamp(min=1.0)
    labels = [short_name(name) for name in class_names]
    size = max(4.5, 1.8 + 0.48 * len(labels) + 0.1 * max(map(len, labels)))
    figure = new_figure(size, size)
    axes = figure.subplots()
    axes.imshow(share.numpy(), cmap="Blues", vmin=0.0, vmax=1.0)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    figure.suptitle(title, fontsize=11)
    for row, column in counts.nonzero().tolist():
        axes.text(
            column,
            row,
            f"{int(counts[row, column])}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if share[row, column] > 0.5 else "#222222",
        )
    save_figure(figure, path)
