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
    """The outputs of the model for a batch of images, and the true classes."""

    scores: Tensor
    """Logits or log-probabilities, float32 (N, n_classes)."""
    classes: Tensor
    """The class of each image, int64 (N,); for mixed images the class with the larger share."""


@dataclass(frozen=True)
class Metric:
    """A mean over images of a value from 0 to 1, reported in percent."""

    name: str
    """The name in files, after that of the split: `test_accuracy`."""
    title: str
    """The name in lines for the reader."""
    of_images: Callable[[Predictions], Tensor]
    """The function that returns the value of each image, (N,)."""
    every_epoch: bool = True
    """False leaves the metric to the final test and `convmixer evaluate`."""


def in_top(count: int) -> Callable[[Predictions], Tensor]:
    """Return a function that marks the images whose class has one of the `count` best scores."""

    def marks(predictions: Predictions) -> Tensor:
        scores, classes = predictions
        # If there are at most `count` classes, all of them have one of the best scores.
        best = scores.topk(min(count, scores.shape[1]), dim=1).indices
        return (best == classes[:, None]).any(1)

    return marks


def is_right(predictions: Predictions) -> Tensor:
    """Mark the images whose class has the best score."""
    return predictions.scores.argmax(1) == predictions.classes


ACCURACY = Metric("accuracy", "top-1", is_right)
# A saved run holds sums in this order, so new metrics go to the end.
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
    """Mean loss and metrics over a number of images."""

    images: int
    loss: float
    metrics: dict[str, float]
    """The mean of each metric by its name, in percent."""

    def columns(self, split: str) -> dict[str, float]:
        """Return loss and metrics under their names in files."""
        named = {"loss": self.loss, **self.metrics}
        return {f"{split}_{name}": value for name, value in named.items()}


# The sums over images are a float64 tensor: the number of images, the sum of their losses, and the
# sum of each metric in order.


def no_sums(metrics: Sequence[Metric], device: torch.device) -> Tensor:
    """Return the sums over no images."""
    return torch.zeros(2 + len(metrics), dtype=torch.float64, device=device)


def sums_of_batch(loss: Tensor, predictions: Predictions, metrics: Sequence[Metric]) -> Tensor:
    """Return the sums over the images of a batch.

    Args:
        loss: the sum of the losses of the images, a scalar.
        predictions: outputs and true classes of the images.
        metrics: the metrics to sum.
    """
    count = torch.full_like(loss, len(predictions.classes))
    values = [metric.of_images(predictions).sum() for metric in metrics]
    return torch.stack([count, loss, *values]).double()


def means(sums: Tensor, metrics: Sequence[Metric]) -> Means:
    """Return the means over the images of `sums`, of which there has to be at least one."""
    images, loss, *values = sums.tolist()
    percent = {
        metric.name: 100.0 * value / images for metric, value in zip(metrics, values, strict=True)
    }
    return Means(int(images), loss / images, percent)
