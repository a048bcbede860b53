"""The training loop: epochs, evaluation, checkpoints and interruptions."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from convmixer.config.fields import check_same_run, from_dict, to_dict
from convmixer.config.settings import Config
from convmixer.data.augmentation import evaluation_transform, training_transform
from convmixer.data.sources import Images, Splits
from convmixer.errors import TrainingDivergedError, UsageError, one_line
from convmixer.model.checkpoints import save_checkpoint
from convmixer.terminal import few
from convmixer.training.distributed import Processes
from convmixer.training.loaders import (
    EpochBatches,
    EvaluationLoader,
    TrainingImages,
    TrainingLoader,
    evaluation_loader,
    worker_count,
)
from convmixer.training.metrics import EPOCH_COLUMNS, EPOCH_METRICS, Means, means
from convmixer.training.optimizer import learning_rate
from convmixer.training.reporting import (
    Console,
    IntervalClock,
    Throughput,
    interval_line,
    peak_memory,
    synchronize,
)
from convmixer.training.run_folder import RunFolder
from convmixer.training.run_state import (
    StopRequest,
    random_states,
    read_checkpoint,
    restore_random_states,
    seed_everything,
)
from convmixer.training.scoring import Scores, score
from convmixer.training.stepper import Stepper, shares_statistics

STATE = frozenset(
    {
        "state_dict", "state_dict_ema", "optimizer", "scaler", "epoch_sums", "random", "epoch",
        "step", "epoch_seconds", "history", "best_accuracy", "best_epoch", "throughput", "config",
    }
)  # fmt: skip
"""The entries of `last.pt`."""


def check_values_per_channel(config: Config, images_at_once: int, world: int) -> None:
    """Check that BatchNorm has at least two values per channel, without which it has no variance.

    Args:
        config: the settings.
        images_at_once: images that one process takes through the model together.
        world: number of processes.

    Raises:
        UsageError: there is one value; the message names the settings that change this.
    """
    positions = (config.data.image_size // config.model.patch_size) ** 2
    if config.model.norm == "batch" and images_at_once * positions == 1:
        raise UsageError(
            "BatchNorm needs more than one value per channel, and one image of data.image_size "
            f"{config.data.image_size} has one position: with accumulation_steps "
            f"{config.accumulation_steps} and {world} processes, set batch_size to "
            f"{2 * config.accumulation_steps * world} or more"
        )


class Trainer:
    """A run and its progress.

    Args:
        config: the settings.
        splits: the images.
        folder: the folder of the run.
        processes: this process among those of the run.
        console: the reader of lines.

    Raises:
        UsageError: settings and images do not fit together.
    """

    def __init__(
        self,
        config: Config,
        splits: Splits,
        folder: RunFolder,
        processes: Processes,
        console: Console,
    ) -> None:
        self.config, self.splits, self.folder = config, splits, folder
        self.processes, self.console = processes, console
        with processes.together():
            self._check_splits()
        seed_everything(config.seed)
        self.stepper = Stepper(config, processes)
        self.loader = self._training_loader()
        self.test_loader = self._evaluation_loader(splits.test)
        self.validation_loader = (
            None if splits.validation is None else self._evaluation_loader(splits.validation)
        )
        seed_everything(config.seed, processes.rank)

        self.epoch = 0
        self.step = 0
        self.epoch_seconds = 0.0
        self.history: list[dict[str, Any]] = []
        self.best_accuracy = -1.0
        self.best_epoch = 0
        self.throughput = Throughput(processes.device)

    def _check_splits(self) -> None:
        config, splits = self.config, self.splits
        if config.select == "best" and splits.validation is None:
            raise UsageError("select best needs validation images: set data.validation_fraction")
        classes = len(splits.class_names)
        if classes != config.model.n_classes:
            raise UsageError(
                f"the images have {classes} classes ({few(splits.class_names)}), model.n_classes "
                f"is {config.model.n_classes}: set --model.n_classes {classes}"
            )

    def _training_loader(self) -> TrainingLoader:
        config, processes = self.config, self.processes
        batches = EpochBatches(
            len(self.splits.train.labels),
            config.batch_size,
            seed=config.seed,
            parts=config.accumulation_steps,
            rank=processes.rank,
            world=processes.world,
        )
        if self.stepper.mixing is not None and batches.images_at_once % 2:
            raise UsageError(
                "mixup and CutMix mix the images of a batch in pairs: with "
                f"{batches.images_at_once} images at a time, choose an even batch_size"
            )
        if not shares_statistics(config, processes):
            check_values_per_channel(config, batches.images_at_once, processes.world)
        images = TrainingImages(self.splits.train, training_transform(config), config.seed)
        return TrainingLoader(images, batches, worker_count(config.data), processes.device)

    def _evaluation_loader(self, images: Images) -> EvaluationLoader:
        config, processes = self.config, self.processes
        return evaluation_loader(
            images,
            evaluation_transform(config),
            max(1, config.batch_size // (processes.world * config.accumulation_steps)),
            workers=worker_count(config.data),
            device=processes.device,
            rank=processes.rank,
            world=processes.world,
        )

    def _scores(self, loader: EvaluationLoader) -> Scores:
        scores = score(self.stepper.evaluated, loader, self.config, self.processes)
        loss = scores.means.loss
        if not math.isfinite(loss):
            raise TrainingDivergedError(
                f"the loss on held-out images became {loss} {self._remedy()}"
            )
        return scores

    def test(self) -> Scores:
        """Return the scores of the evaluated model on the test images."""
        return self._scores(self.test_loader)

    def state(self) -> dict[str, Any]:
        """Return the state for an exact continuation; all processes have to call this."""
        return self.stepper.state() | {
            "random": self.processes.gather(random_states(self.processes.device)),
            "epoch": self.epoch,
            "step": self.step,
            "epoch_seconds": self.epoch_seconds,
            "history": self.history,
            "best_accuracy": self.best_accuracy,
            "best_epoch": self.best_epoch,
            "throughput": self.throughput.state(),
            "config": to_dict(self.config),
        }

    def continue_from(self, path: Path) -> None:
        """Continue from a saved state.

        Raises:
            UsageError: the file is damaged, or is not the state of this run.
        """
        state = read_checkpoint(path)
        if missing := sorted(STATE - state.keys()):
            raise UsageError(
                f"{path} is not the saved state of a run, for it lacks {few(missing)}; weights "
                "alone start another run with --initial_checkpoint"
            )
        try:
            self.load_state(state)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None
        except Exception as error:  # The entries may hold anything.
            raise UsageError(f"{path} does not fit this run ({one_line(error)[:200]})") from error

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a state of `state`.

        Raises:
            UsageError: the run had other settings, images or processes.
        """
        check_same_run(from_dict(state["config"]), self.config, "this state")
        if state["step"] > self.loader.steps:
            raise UsageError(
                f"the run stopped after step {state['step']} of an epoch, which now has "
                f"{self.loader.steps}: the images are not those of the run"
            )
        processes = self.processes
        if len(state["random"]) != processes.world:
            raise UsageError(
                f"the run had {len(state['random'])} processes and cannot continue exactly with "
                f"{processes.world}"
            )
        self.stepper.load_state(state)
        self.epoch, self.step = state["epoch"], state["step"]
        self.epoch_seconds = state["epoch_seconds"]
        self.history = state["history"]
        self.best_accuracy, self.best_epoch = state["best_accuracy"], state["best_epoch"]
        self.throughput.load_state(state["throughput"])
        restore_random_states(state["random"][processes.rank], processes.device)

    def _save_last(self) -> None:
        state = self.state()
        if self.processes.is_main:
            save_checkpoint(state, self.folder.last)
        self.processes.barrier()

    def _save_best(self, accuracy: float | None) -> None:
        self.best_epoch = self.epoch
        if self.processes.is_main:
            state = {
                "state_dict": self.stepper.evaluated.state_dict(),
                "epoch": self.epoch,
                "validation_accuracy": accuracy,
                "class_names": list(self.splits.class_names),
                "config": to_dict(self.config),
            }
            save_checkpoint(state, self.folder.best)

    def run(self, stop: StopRequest) -> None:
        """Train until the last epoch.

        Raises:
            TrainingInterruptedError: a stop request has ended the run, which has been saved.
            TrainingDivergedError: the loss is no longer finite.
        """
        while self.epoch < self.config.epochs:
            self._train_epoch(stop)
            if self.step == self.loader.steps:
                self._finish_epoch()
            if stop.wanted(self.processes):
                self._save_last()
                raise stop.interruption(f"before {self._position()}; saved {self.folder.last}")
        if self.config.select == "last":
            self._save_best(self.history[-1].get("validation_accuracy"))

    def _train_epoch(self, stop: StopRequest) -> None:
        """Train until the end of the epoch or a stop request."""
        config, steps = self.config, self.loader.steps
        batches = self.loader.epoch(self.epoch, self.step)
        clock = IntervalClock()
        self.stepper.parallel.train()
        self.throughput.start()
        started = time.perf_counter()
        title = f"epoch {self.epoch + 1}/{config.epochs}"
        with self.console.bar(steps, self.step, title) as bar:
            while self.step < steps and not stop.wanted(self.processes):
                rate = learning_rate(config, self.epoch, self.step, steps)
                done = self.epoch * steps + self.step
                clock.count(config.batch_size, self.stepper.step(batches, rate, done))
                self.step += 1
                self.throughput.step(config.batch_size)
                bar.update()
                if config.log_interval and (done + 1) % config.log_interval == 0:
                    self._log_interval(clock, rate)
        synchronize(self.processes.device)
        self.throughput.stop()
        self.epoch_seconds += time.perf_counter() - started
        self.stepper.average_statistics()
        if not self.stepper.is_finite():
            raise TrainingDivergedError(f"weights became infinite or nan {self._remedy()}")

    def _position(self) -> str:
        if self.epoch == self.config.epochs:
            return "the final test"
        return f"epoch {self.epoch + 1}, step {self.step + 1} of {self.loader.steps}"

    def _finish_epoch(self) -> None:
        """Evaluate, keep the best weights, write metrics and checkpoint."""
        trained = self._epoch_means()
        measured = trained.columns("train")
        if self.validation_loader is not None:
            measured |= self._scores(self.validation_loader).means.columns("validation")
        if self.config.monitor_test:
            measured |= self.test().means.columns("test")
        row: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "learning_rate": self.stepper.optimizer.param_groups[0]["lr"],
            **{name: measured[name] for name in EPOCH_COLUMNS if name in measured},
            "images_per_second": trained.images / self.epoch_seconds,
            "seconds": self.epoch_seconds,
        }
        self.history.append(row)
        self.epoch, self.step, self.epoch_seconds = self.epoch + 1, 0, 0.0
        self.stepper.sums.zero_()
        # Of equal epochs the later one is kept: the schedule brought it closer to convergence.
        accuracy = row.get("validation_accuracy", -math.inf)
        if self.config.select == "best" and accuracy >= self.best_accuracy:
            self.best_accuracy = accuracy
            self._save_best(accuracy)
        if self.processes.is_main:
            self.folder.write_metrics(self.history)
        self._save_last()
        self.console.epoch(row, self.config)

    def _log_interval(self, clock: IntervalClock, rate: float) -> None:
        now, waiting = clock.rates()
        steps = self.loader.steps
        steps_left = (self.config.epochs - self.epoch) * steps - self.step
        self.console.line(
            interval_line(
                f"epoch {self.epoch + 1}/{self.config.epochs}  step {self.step}/{steps}",
                loss=self._epoch_means().loss,
                images_per_second=now,
                mean=self.throughput.mean,
                rate=rate,
                gradient_norm=float(self.stepper.gradient_norm),
                waiting=waiting,
                memory=peak_memory(self.processes.device),
                images_left=steps_left * self.config.batch_size,
            )
        )
        clock.reset()

    def _epoch_means(self) -> Means:
        """Return loss and metrics of the epoch so far in all processes.

        Raises:
            TrainingDivergedError: the loss of any process is not finite; all processes raise.
        """
        found = means(self.processes.total(self.stepper.sums), EPOCH_METRICS)
        if not math.isfinite(found.loss):
            raise TrainingDivergedError(f"the loss became {found.loss} {self._remedy()}")
        return found

    def _remedy(self) -> str:
        epoch = min(self.epoch + 1, self.config.epochs)
        return f"in epoch {epoch}: lower --optimizer.lr, or set --optimizer.clip_grad_norm"

    @property
    def parameters(self) -> int:
        """Number of parameters of the model."""
        return sum(p.numel() for p in self.stepper.model.parameters())
