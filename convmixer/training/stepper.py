"""One optimizer step: mixing, forward, backward, clipping, AdamW, moving average."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from convmixer.config.settings import Config
from convmixer.data.augmentation import batch_mixing, soft_targets
from convmixer.model.checkpoints import load_checkpoint
from convmixer.training.distributed import Processes
from convmixer.training.environment import autocast, build_model, effective_amp
from convmixer.training.loaders import Batch
from convmixer.training.metrics import EPOCH_METRICS, Predictions, no_sums, sums_of_batch
from convmixer.training.optimizer import ExponentialMovingAverage, build_optimizer


def shares_statistics(config: Config, processes: Processes) -> bool:
    """Return whether BatchNorm normalises over the images of all processes in every step."""
    on_gpus = processes.world > 1 and processes.device.type == "cuda"
    return on_gpus and config.sync_batch_norm


class Stepper:
    """The model with its optimizer, scaler and moving average.

    Args:
        config: the settings.
        processes: this process among those of the run.
    """

    def __init__(self, config: Config, processes: Processes) -> None:
        self.config, self.processes = config, processes
        device = processes.device
        self.model: nn.Module = build_model(config, device)
        if shares_statistics(config, processes):
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.average = (
            ExponentialMovingAverage(self.model, config.ema_decay) if config.ema_decay else None
        )
        self.parallel: nn.Module = self.model
        if processes.world > 1:
            # Buffers are not broadcast, because `average_statistics` needs those of each process.
            self.parallel = nn.parallel.DistributedDataParallel(self.model, broadcast_buffers=False)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.scaler = GradScaler(device.type, enabled=effective_amp(config, device) == "fp16")
        self.mixing = batch_mixing(config)
        self.gradient_norm = torch.zeros((), device=device)
        """The norm of the gradient of the last step over all parameters, before clipping."""
        self.sums = no_sums(EPOCH_METRICS, device)
        """The sums of the epoch so far in this process; see `convmixer.training.metrics`."""

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated: the moving average of the weights if there is one."""
        return self.model if self.average is None else self.average.module

    def start_from(self, checkpoint: Path) -> None:
        """Start from the weights in a file, which may have other classes or channels.

        Raises:
            FileNotFoundError: there is no such file.
            UsageError: the file is damaged or holds another model.
        """
        load_checkpoint(self.model, checkpoint, other_classes=True, other_channels=True)
        if self.average is not None:
            self.average.module.load_state_dict(self.model.state_dict())

    def step(self, batches: Iterator[Batch], rate: float, number: int) -> float:
        """Take one step of the optimizer.

        Args:
            batches: an iterator over (images, labels), a pair for each accumulation step.
            rate: learning rate.
            number: number of the step in the whole run, from 0.

        Returns:
            the seconds spent waiting for images.
        """
        config, waited = self.config, 0.0
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for part in range(1, config.accumulation_steps + 1):
            started = time.perf_counter()
            images, labels = next(batches)
            waited += time.perf_counter() - started
            with self._gradient_exchange(part == config.accumulation_steps):
                self._accumulate(images, labels)
        self.scaler.unscale_(self.optimizer)
        limit = config.optimizer.clip_grad_norm
        self.gradient_norm = (
            nn.utils.clip_grad_norm_(self.model.parameters(), limit)
            if limit
            else nn.utils.get_total_norm(
                [p.grad for p in self.model.parameters() if p.grad is not None]
            )
        )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.model, number)
        return waited

    def _gradient_exchange(self, wanted: bool) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which the processes exchange gradients only if `wanted`."""
        if wanted or not isinstance(self.parallel, nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        return self.parallel.no_sync()

    def _accumulate(self, images: Tensor, labels: Tensor) -> None:
        """Add the gradients of one part of a batch, and its sums."""
        config, device = self.config, self.processes.device
        images = images.to(device, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        if self.mixing is not None:
            images, targets = self.mixing(images, labels)
        else:
            targets = soft_targets(labels, config.model.n_classes, config.label_smoothing)
        if config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast(config, device):
            outputs = self.parallel(images)
        loss = F.cross_entropy(outputs.float(), targets)
        self.scaler.scale(loss / config.accumulation_steps).backward()
        with torch.no_grad():
            predictions = Predictions(outputs.float(), targets.argmax(1))
            self.sums += sums_of_batch(loss * len(labels), predictions, EPOCH_METRICS)

    def average_statistics(self) -> None:
        """Average the running statistics of BatchNorm over the processes if they differ.

        All processes have to call this before the model is evaluated or saved.
        """
        if shares_statistics(self.config, self.processes):
            return
        models = [self.model] if self.average is None else [self.model, self.average.module]
        buffers = (buffer for model in models for buffer in model.buffers())
        self.processes.average_(buffer for buffer in buffers if buffer.is_floating_point())

    def is_finite(self) -> bool:
        """Return whether all weights and statistics of the model and its average are finite."""
        models = {self.model, self.evaluated}
        tensors = [tensor for model in models for tensor in model.state_dict().values()]
        return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())

    def state(self) -> dict[str, Any]:
        """Return weights, optimizer, scaler and sums; all processes have to call this."""
        return {
            "state_dict": self.model.state_dict(),
            "state_dict_ema": None if self.average is None else self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch_sums": self.processes.total(self.sums).cpu(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken."""
        self.model.load_state_dict(state["state_dict"])
        if self.average is not None:
            self.average.module.load_state_dict(state["state_dict_ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # The state of a run on a CPU is empty.
            self.scaler.load_state_dict(state["scaler"])
        if self.processes.is_main:
            saved = state["epoch_sums"]
            # A metric that was declared after the state was saved has no value for its epoch.
            self.sums.fill_(math.nan if saved[0] else 0.0)
            self.sums[: len(saved)] = saved
