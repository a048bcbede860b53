"""Loss, top-1, top-5 and confusion of a model over images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convmixer.config.settings import Config
from convmixer.training.distributed import Processes
from convmixer.training.environment import autocast
from convmixer.training.loaders import Batch

Views = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Scores:
    """Results over a set of images; accuracies in percent."""

    images: int
    loss: float
    top1: float
    top5: float
    confusion: Tensor
    """Counts, int64 (n_classes, n_classes): rows are the true class, columns the predicted."""


def _only_image(images: Tensor) -> list[Tensor]:
    return [images]


def augmented_views(flip: bool) -> Views:
    """Return the views of test-time augmentation, whose probabilities are averaged.

    The image itself, the image one pixel further up, down, left and right (its border repeated),
    and the mirror images of these five where training flips images.
    """

    def views(images: Tensor) -> list[Tensor]:
        height, width = images.shape[2:]
        padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
        corners = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
        shifted = [padded[:, :, top : top + height, left : left + width] for top, left in corners]
        return shifted + [view.flip(3) for view in shifted] if flip else shifted

    return views


@torch.no_grad()
def score(
    model: nn.Module,
    batches: Iterable[Batch],
    config: Config,
    processes: Processes,
    views: Views = _only_image,
) -> Scores:
    """Evaluate `model` over the images of all processes, in evaluation mode, without smoothing.

    Top-5 counts all classes where there are fewer than five.
    """
    n_classes, device = config.model.n_classes, processes.device
    top = min(5, n_classes)
    confusion = torch.zeros(n_classes, n_classes, dtype=torch.int64, device=device)
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # images, loss, right in top-5
    was_training = model.training
    model.eval()
    for images, labels in batches:
        images = images.to(device, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        if config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast(config, device):
            outputs = [model(view) for view in views(images)]
        log_probabilities = (
            torch.stack([output.float().softmax(1) for output in outputs]).mean(0).log()
            if len(outputs) > 1
            else outputs[0].float().log_softmax(1)
        )
        ranked = log_probabilities.topk(top, dim=1).indices
        confusion += torch.bincount(
            labels * n_classes + ranked[:, 0], minlength=n_classes**2
        ).reshape(n_classes, n_classes)
        loss = F.nll_loss(log_probabilities, labels, reduction="sum")
        right_in_top = (ranked == labels[:, None]).any(1).sum()
        sums += torch.stack([torch.full_like(loss, len(labels)), loss, right_in_top]).double()
    model.train(was_training)
    count, loss_sum, in_top = processes.total(sums).tolist()
    confusion = processes.total(confusion).cpu()
    return Scores(
        images=int(count),
        loss=loss_sum / count,
        top1=100.0 * float(confusion.diagonal().sum()) / count,
        top5=100.0 * in_top / count,
        confusion=confusion,
    )
