"""The metrics of a run, each declared once.

An entry of `METRICS` is enough for a metric: it is summed over images in training and evaluation,
and stands in `metrics.csv`, the lines of a run, `summary.json` and `evaluation.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

SPLITS = ("train", "validation", "test")


class Predictions(NamedTuple):
    """The outputs of the model for a batch of images, and the classes they should name."""

    scores: Tensor
    """(N, n_classes): logits or their logarithms of probabilities."""
    classes: Tensor
    """int64 (N,): the class of each image; of mixed images the one with the larger share."""


@dataclass(frozen=True)
class Metric:
    """A mean over images."""

    name: str
    """Its name in files, after that of the split: `test_accuracy`."""
    title: str
    """Its name in lines for the reader."""
    of_images: Callable[[Predictions], Tensor]
    """Returns the value of each image, (N,)."""
    percent: bool = True
    """Values from 0 to 1 are reported as 0 to 100 %."""
    every_epoch: bool = True
    """Reported after every epoch, not only in the final test and by `convmixer evaluate`."""

    def text(self, value: float) -> str:
        """Return a value of the metric for a line."""
        return f"{value:.2f}%" if self.percent else f"{value:.4f}"


def in_top(count: int) -> Callable[[Predictions], Tensor]:
    """Return the function that marks the images whose class is among the `count` best scores.

    All classes count where there are fewer.
    """

    def marks(predictions: Predictions) -> Tensor:
        scores, classes = predictions
        best = scores.topk(min(count, scores.shape[1]), dim=1).indices
        return (best == classes[:, None]).any(1)

    return marks


def is_right(predictions: Predictions) -> Tensor:
    """Mark the images whose class has the best score."""
    return predictions.scores.argmax(1) == predictions.classes


ACCURACY = Metric("accuracy", "top-1", is_right)
METRICS = (
    ACCURACY,
    Metric("accuracy_top5", "top-5", in_top(5), every_epoch=False),
)
EPOCH_METRICS = tuple(metric for metric in METRICS if metric.every_epoch)

EPOCH_COLUMNS = tuple(
    f"{split}_{name}"
    for split in SPLITS
    for name in ("loss", *(metric.name for metric in EPOCH_METRICS))
)
"""The columns of loss and metrics in `metrics.csv`."""


class Means(NamedTuple):
    """The loss and metrics of a number of images."""

    images: int
    loss: float
    metrics: dict[str, float]
    """By the name of the metric."""

    def columns(self, split: str) -> dict[str, float]:
        """Return loss and metrics under their names in files."""
        named = {"loss": self.loss, **self.metrics}
        return {f"{split}_{name}": value for name, value in named.items()}


# The sums of images are float64 tensors: how many there are, their loss, and each of the metrics.


def no_sums(metrics: Sequence[Metric], device: torch.device) -> Tensor:
    """Return the sums of no images."""
    return torch.zeros(2 + len(metrics), dtype=torch.float64, device=device)


def sums_of_batch(loss: Tensor, predictions: Predictions, metrics: Sequence[Metric]) -> Tensor:
    """Return the sums of a batch.

    Args:
        loss: the sum of the losses of its images, a scalar.
        predictions: of its images.
        metrics: those to sum.
    """
    count = torch.full_like(loss, len(predictions.classes))
    values = [metric.of_images(predictions).sum() for metric in metrics]
    return torch.stack([count, loss, *values]).double()


def means(sums: Tensor, metrics: Sequence[Metric]) -> Means:
    """Return the means over the images of `sums`, of which there is at least one."""
    images, loss, *values = sums.tolist()
    scaled = {
        metric.name: (100.0 if metric.percent else 1.0) * value / images
        for metric, value in zip(metrics, values, strict=True)
    }
    return Means(int(images), loss / images, scaled)
