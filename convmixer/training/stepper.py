"""One optimizer step: forward, backward, clipping, AdamW, moving average."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from convmixer.config.settings import Config
from convmixer.errors import UsageError
from convmixer.model.checkpoints import load_checkpoint
from convmixer.training.cuda_graphs import replayed
from convmixer.training.distributed import Processes
from convmixer.training.environment import (
    autocast,
    build_model,
    effective_amp,
    memory_format,
    replays_cuda_graphs,
)
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
        parts: parts of a batch that this process computes one after another; None for those of the
            settings.
        stands_for: number of processes whose parts these are, in turn.

    Raises:
        UsageError: the model cannot work, or CUDA graphs with these processes.
    """

    def __init__(
        self,
        config: Config,
        processes: Processes,
        parts: int | None = None,
        stands_for: int = 1,
    ) -> None:
        self.config, self.processes = config, processes
        self.parts = config.accumulation_steps if parts is None else parts
        self._stands_for = stands_for
        device = processes.device
        if replays_cuda_graphs(config, device):
            _check_one_process(max(processes.world, stands_for))
        self.model: nn.Module = build_model(config, device)
        if shares_statistics(config, processes):
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.average = (
            ExponentialMovingAverage(self.model, config.ema_decay) if config.ema_decay else None
        )
        self.parallel: nn.Module = self.model
        """The model as training calls it: exchanging gradients, or replayed by CUDA graphs."""
        self._keeps_gradients = False
        if processes.world > 1:
            # Buffers are not broadcast, because `average_statistics` needs those of each process.
            self.parallel = nn.parallel.DistributedDataParallel(self.model, broadcast_buffers=False)
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.scaler = GradScaler(device.type, enabled=effective_amp(config, device) == "fp16")
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

    def capture(self, images: int) -> None:
        """Let CUDA graphs replay the model in all steps to come; its state stays as it is.

        No other thread may use the GPU meanwhile, as those of a `DataLoader` do that pin memory.

        Args:
            images: number of images of each part of a batch.
        """
        config, device = self.config, self.processes.device
        shape = (images, config.model.in_chans, *[config.data.image_size] * 2)
        sample = torch.zeros(shape, device=device)
        with autocast(config, device):
            self.parallel = replayed(
                self.model, sample.contiguous(memory_format=memory_format(config, device))
            )
        if self.parts > 1:
            # Autograd would make the memory of the graphs the gradient of a parameter that has
            # none, and the next part would overwrite it.
            for parameter in self.model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            self._keeps_gradients = True

    def step(self, batch: Iterable[Batch], rate: float, number: int) -> None:
        """Take one step of the optimizer; nothing in it is drawn at random.

        Args:
            batch: the (images, targets) of each of the `parts` of this process.
            rate: learning rate.
            number: number of the step in the whole run, from 0.
        """
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for part, (images, targets) in enumerate(batch):
            with self._gradient_exchange(part == self.parts - 1), self._statistics_of(part):
                self._accumulate(images, targets)
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
        self.optimizer.zero_grad(set_to_none=not self._keeps_gradients)
        if self.average is not None:
            self.average.update(self.model, number)

    def _gradient_exchange(self, wanted: bool) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which the processes exchange gradients only if `wanted`."""
        if wanted or not isinstance(self.parallel, nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        return self.parallel.no_sync()

    @contextlib.contextmanager
    def _statistics_of(self, part: int) -> Iterator[None]:
        """Give the parts of the processes that this one stands for equal weights in the statistics.

        With the momentum m, the mean of the running statistics r of n processes goes to
        (1 - m) r + m (s_1 + ... + s_n) / n, where s_i are the statistics of their parts. So do n
        updates here one after another, the i-th with the momentum (m / n) / (1 - m + i m / n).
        """
        norms = [
            module
            for module in self.model.modules()
            if self._stands_for > 1 and isinstance(module, nn.BatchNorm2d)
        ]
        momenta = [norm.momentum for norm in norms]
        for norm, momentum in zip(norms, momenta, strict=True):
            if momentum is not None:
                share = momentum / self._stands_for
                norm.momentum = share / (1.0 - momentum + (part % self._stands_for + 1) * share)
        yield
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def _accumulate(self, images: Tensor, targets: Tensor) -> None:
        """Add the gradients of one part of a batch, and its sums."""
        config, device = self.config, self.processes.device
        images = images.contiguous(memory_format=memory_format(config, device))
        with autocast(config, device):
            outputs = self.parallel(images)
        loss = F.cross_entropy(outputs.float(), targets)
        self.scaler.scale(loss / self.parts).backward()
        with torch.no_grad():
            predictions = Predictions(outputs.float(), targets.argmax(1))
            self.sums += sums_of_batch(loss * len(targets), predictions, EPOCH_METRICS)

    @property
    def _has_own_statistics(self) -> bool:
        """True if the running statistics of BatchNorm differ between the processes."""
        return self.processes.world > 1 and not shares_statistics(self.config, self.processes)

    def _models(self) -> dict[str, nn.Module]:
        """Return the model and its average by the names of their weights in a state."""
        models = {"state_dict": self.model}
        return models if self.average is None else models | {"state_dict_ema": self.average.module}

    def average_statistics(self) -> None:
        """Average the running statistics of BatchNorm over the processes if they differ.

        All processes have to call this before the model is evaluated.
        """
        if self._has_own_statistics:
            for model in self._models().values():
                self.processes.average_(_statistics(model).values())

    def is_finite(self) -> bool:
        """Return whether weights, statistics and optimizer state are finite in all processes.

        All processes have to call this.
        """
        tensors = [t for model in self._models().values() for t in model.state_dict().values()]
        tensors += [
            value
            for state in self.optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ]
        finite = torch.stack([t.isfinite().all().to(self.processes.device) for t in tensors]).all()
        return not self.processes.any(not finite)

    def state(self) -> dict[str, Any]:
        """Return weights, optimizer, scaler and sums; all processes have to call this.

        The tensors are those of the run, which later steps change. Where each process has running
        statistics of its own, the weights hold their mean, and `statistics` those of each process.
        """
        models = self._models()
        weights = {name: model.state_dict() for name, model in models.items()}
        own = None
        if self._has_own_statistics:
            parts = {name: _statistics(model) for name, model in models.items()}
            own = self.processes.gather(
                {name: {key: t.cpu() for key, t in part.items()} for name, part in parts.items()}
            )
            for name, part in parts.items():
                means = {key: tensor.clone() for key, tensor in part.items()}
                self.processes.average_(means.values())
                weights[name].update(means)
        return {
            "state_dict": weights["state_dict"],
            "state_dict_ema": weights.get("state_dict_ema"),
            "statistics": own,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch_sums": self.processes.total(self.sums).cpu(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken, with the same number of processes or another."""
        for name, model in self._models().items():
            model.load_state_dict(state[name])
        own = state.get("statistics")
        if self._has_own_statistics and own is not None and len(own) == self.processes.world:
            for name, model in self._models().items():
                model.load_state_dict(own[self.processes.rank][name], strict=False)
        # AdamW is fused by the device of this run, and keeps its counters of steps there if it is.
        fused = self.optimizer.defaults["fused"]
        groups = [{**each, "fused": fused} for each in state["optimizer"]["param_groups"]]
        self.optimizer.load_state_dict({**state["optimizer"], "param_groups": groups})
        if state["scaler"]:  # The state of a run on a CPU is empty.
            self.scaler.load_state_dict(state["scaler"])
        if self.processes.is_main:
            saved = state["epoch_sums"]
            # A metric that was declared after the state was saved has no value for its epoch.
            self.sums.fill_(math.nan if saved[0] else 0.0)
            self.sums[: len(saved)] = saved


def _check_one_process(processes: int) -> None:
    """Check that CUDA graphs may replay a step.

    The exchange of gradients overlaps with a backward pass, and the momentum of BatchNorm changes
    from part to part where one process stands for several; a graph has neither.

    Raises:
        UsageError: there are several processes.
    """
    if processes > 1:
        raise UsageError(
            "cuda_graphs true works in a run that was started as one process, got a run of "
            f"{processes} processes: set cuda_graphs false"
        )


def _statistics(model: nn.Module) -> dict[str, Tensor]:
    """Return the running statistics of a model by name."""
    return {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
