"""Evaluating a model over images: loss, metrics, confusion."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convmixer.config.settings import Config
from convmixer.errors import UsageError
from convmixer.training.distributed import Processes
from convmixer.training.environment import autocast, memory_format
from convmixer.training.loaders import Batch
from convmixer.training.metrics import (
    ACCURACY,
    METRICS,
    Means,
    Predictions,
    means,
    no_sums,
    sums_of_batch,
)
from convmixer.training.run_state import lost_workers_named

Views = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Scores:
    """Results over a set of images."""

    means: Means
    """The loss and all of `METRICS`."""
    confusion: Tensor
    """Counts, int64 (n_classes, n_classes): rows are the true class, columns the predicted."""

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy in percent."""
        return self.means.metrics[ACCURACY.name]


def _only_image(images: Tensor) -> list[Tensor]:
    return [images]


def augmented_views(flip: bool) -> Views:
    """Return the function that makes the views of test-time augmentation.

    The views are the image, the image moved by one pixel up, down, left and right with its border
    repeated, and with `flip` the mirror images of these five.
    """

    def views(images: Tensor) -> list[Tensor]:
        height, width = images.shape[2:]
        padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
        corners = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
        shifted = [padded[:, :, top : top + height, left : left + width] for top, left in corners]
        return shifted + [view.flip(3) for view in shifted] if flip else shifted

    return views


@torch.no_grad()
def log_probabilities(
    model: nn.Module,
    batches: Iterable[Batch],
    config: Config,
    processes: Processes,
    views: Views = _only_image,
) -> Iterator[Batch]:
    """Yield log-probabilities, float32 (N, n_classes), and labels of every batch.

    The model is in evaluation mode. Several `views` of an image count by the mean of their
    probabilities.
    """
    device = processes.device
    was_training = model.training
    model.eval()
    for images, labels in batches:
        images = images.to(device, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        images = images.contiguous(memory_format=memory_format(config, device))
        with autocast(config, device):
            outputs = [model(view) for view in views(images)]
        yield (
            (
                torch.stack([output.float().softmax(1) for output in outputs]).mean(0).log()
                if len(outputs) > 1
                else outputs[0].float().log_softmax(1)
            ),
            labels,
        )
    model.train(was_training)


@lost_workers_named()
def score(
    model: nn.Module,
    batches: Iterable[Batch],
    config: Config,
    processes: Processes,
    views: Views = _only_image,
) -> Scores:
    """Evaluate `model` over the images of all processes, in evaluation mode, without smoothing.

    Several `views` of an image count by the mean of their probabilities.

    Raises:
        LostWorkerError: a process that loads images is gone.
        UsageError: there are no images.
    """
    n_classes, device = config.model.n_classes, processes.device
    confusion = torch.zeros(n_classes, n_classes, dtype=torch.int64, device=device)
    sums = no_sums(METRICS, device)
    for outputs, labels in log_probabilities(model, batches, config, processes, views):
        cells = labels * n_classes + outputs.argmax(1)
        confusion += torch.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)
        loss = F.nll_loss(outputs, labels, reduction="sum")
        sums += sums_of_batch(loss, Predictions(outputs, labels), METRICS)
    sums = processes.total(sums)
    if sums[0] == 0:
        raise UsageError("there is no image to evaluate on that can be read")
    return Scores(means(sums, METRICS), processes.total(confusion).cpu())
