"""Reporting on a run: progress bar, log lines, throughput."""

from __future__ import annotations

import datetime
import itertools
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from convmixer.config.settings import Config
from convmixer.data.sources import Splits
from convmixer.files import naming
from convmixer.terminal import printable, write_line
from convmixer.training.environment import depthwise_implementation, device_name, effective_amp
from convmixer.training.metrics import ACCURACY, EPOCH_METRICS, SPLITS
from convmixer.training.trackers import Tracker

WARMUP_STEPS = 10
"""The throughput of a process leaves out this many optimizer steps at its start."""


class Console:
    """A terminal with lines above a progress bar, a log file that keeps them, and a tracker."""

    def __init__(self, log: Path | None = None, silent: bool = False) -> None:
        self._log = log
        self.silent = silent
        self.tracker: Tracker | None = None

    def line(self, text: str) -> None:
        """Print one line and append it to the log file."""
        if self.silent:
            return
        if self._log is not None:
            with naming(self._log), self._log.open("a", encoding="utf-8") as file:
                file.write(printable(text) + "\n")
        with tqdm.external_write_mode():
            write_line(text)

    def epoch(self, row: Mapping[str, Any], config: Config) -> None:
        """Print the line of a finished epoch, and pass its row of the metrics to the tracker."""
        self.line(epoch_line(row, config))
        if self.tracker is not None:
            self.tracker.write(row)

    def bar(self, steps: int, first: int, title: str) -> tqdm[Any]:
        """Return a progress bar over an epoch; it shows only on a terminal."""
        hidden = self.silent or sys.stderr is None or not sys.stderr.isatty()
        return tqdm(total=steps, initial=first, desc=title, leave=False, disable=hidden)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Throughput:
    """Images a second of the training loop, over all processes.

    Loading, augmentation, forward, backward and optimizer of every step after the first
    `WARMUP_STEPS` of a process count; evaluation and the writing of files do not.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._warmup_left = WARMUP_STEPS
        self._images = 0
        self._seconds = 0.0
        self._started: float | None = None

    def start(self) -> None:
        """Start the clock, at the beginning of an epoch."""
        if self._warmup_left == 0:
            self._started = time.perf_counter()

    def step(self, images: int) -> None:
        """Count one optimizer step."""
        if self._warmup_left:
            self._warmup_left -= 1
            if self._warmup_left == 0:
                synchronize(self._device)
                self._started = time.perf_counter()
        else:
            self._images += images

    def stop(self) -> None:
        """Stop the clock, at the end of an epoch or an interruption."""
        if self._started is not None:
            synchronize(self._device)
            self._seconds += time.perf_counter() - self._started
            self._started = None

    @property
    def mean(self) -> float | None:
        """Images a second so far, or None before the end of the warm-up."""
        running = time.perf_counter() - self._started if self._started is not None else 0.0
        seconds = self._seconds + running
        return self._images / seconds if self._images and seconds > 0 else None

    def state(self) -> dict[str, float]:
        """Return the count and the seconds, which a resumed run carries on."""
        return {"images": self._images, "seconds": self._seconds}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Carry on the count of an interrupted run."""
        self._images, self._seconds = int(state["images"]), float(state["seconds"])


def rounded(value: float | None) -> str:
    """Return a rounded number for a log line, `-` for None."""
    return "-" if value is None else f"{value:.0f}"


def peak_memory(device: torch.device) -> int:
    """Return the most bytes in use so far: of the GPU by PyTorch, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def duration(seconds: float) -> str:
    """Return a time as hours, minutes and seconds: `1:02:03`."""
    return str(datetime.timedelta(seconds=round(seconds)))


def interval_line(
    position: str,
    *,
    loss: float,
    images_per_second: float,
    mean: float | None,
    rate: float,
    gradient_norm: float,
    waiting: float,
    memory: int,
    images_left: int,
) -> str:
    """Return one line on the steps since the last one.

    Args:
        position: epoch and step in words.
        loss: mean loss of the epoch so far.
        images_per_second: since the last line.
        mean: images a second of the run, None before the end of its warm-up.
        rate: learning rate of the last step.
        gradient_norm: of the last step, over all parameters, before clipping.
        waiting: the part of the time since the last line in which the model waited for images.
        memory: the most bytes in use so far.
        images_left: the images until the end of training.
    """
    left = duration(images_left / (mean or images_per_second))
    return (
        f"{position}  loss {loss:.4f}  images/s {images_per_second:.0f} now, {rounded(mean)} mean  "
        f"lr {rate:.3g}  gradient {gradient_norm:.3g}  waiting for data {100 * waiting:.0f}%  "
        f"memory {memory / 2**30:.2f} GiB  left {left}"
    )


def training_accuracy_note(config: Config) -> str | None:
    """Return a line on training accuracies that lie below those of held-out images, if they do."""
    if not config.mixes:
        return None
    return (
        "training accuracy is measured on mixed images (mixup, CutMix), so it may stay far below "
        "the accuracy on held-out images"
    )


def run_line(config: Config, splits: Splits, parameters: int, device: torch.device) -> str:
    """Return one line on a run: model, images, device, precision."""
    model, validation = config.model, splits.validation
    held_out = 0 if validation is None else len(validation.labels)
    precision = effective_amp(config, device).replace("none", "fp32")
    return (
        f"{config.recipe}: ConvMixer-{model.dim}/{model.depth}, {parameters:,} parameters; "
        f"{len(splits.train.labels):,} training, {held_out:,} validation, "
        f"{len(splits.test.labels):,} test images; {device_name(device)}, {precision}, "
        f"depthwise convolution by {depthwise_implementation(config, device)}"
    )


def epoch_line(row: Mapping[str, Any], config: Config) -> str:
    """Return one line on a finished epoch, from its row of the metrics."""
    mixed = " (mixed images)" if config.mixes else ""
    parts = [f"epoch {row['epoch']}/{config.epochs}", f"loss {row['train_loss']:.4f}"]
    for split, metric in itertools.product(SPLITS, EPOCH_METRICS):
        if (value := row.get(f"{split}_{metric.name}")) is not None:
            title = split if metric is ACCURACY else f"{split} {metric.title}"
            parts.append(f"{title} {value:.2f}%{mixed if split == 'train' else ''}")
    return "  ".join([*parts, f"images/s {rounded(row['images_per_second'])}"])


class IntervalClock:
    """The images a second and the share of waiting for data since the last log line."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start an interval."""
        self._started = time.perf_counter()
        self._waited = 0.0
        self._images = 0

    def count(self, images: int, waited: float) -> None:
        """Count the images of one optimizer step and the seconds it waited for them."""
        self._images += images
        self._waited += waited

    def rates(self) -> tuple[float, float]:
        """Return images a second and the part of the time spent waiting for data."""
        seconds = max(time.perf_counter() - self._started, 1e-9)
        return self._images / seconds, self._waited / seconds
