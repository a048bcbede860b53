"""The training loop: epochs, evaluation, checkpoints and interruptions."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convmixer.config.fields import check_same_run, from_dict, to_dict
from convmixer.config.save_interval import SaveInterval, parse_save_interval
from convmixer.config.settings import Config
from convmixer.data.sources import Images, Splits
from convmixer.errors import LostWorkerError, TrainingDivergedError, UsageError, one_line
from convmixer.terminal import few
from convmixer.training.bad_images import check_bad_images
from convmixer.training.checkpoint_writer import CheckpointWriter
from convmixer.training.distributed import Processes
from convmixer.training.environment import replays_cuda_graphs
from convmixer.training.fingerprint import check_same_images, fingerprint
from convmixer.training.loaders import (
    Batch,
    EpochBatches,
    EvaluationLoader,
    TrainingLoader,
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
    lost_workers_met_in_loading,
    lost_workers_named,
    read_checkpoint,
    seed_everything,
)
from convmixer.training.scoring import Scores, score
from convmixer.training.stepper import Stepper, shares_statistics

NEEDED_STATE = frozenset(
    {
        "state_dict", "state_dict_ema", "optimizer", "scaler", "epoch_sums", "epoch", "step",
        "epoch_seconds", "history", "best_accuracy", "best_epoch", "throughput", "config",
    }
)  # fmt: skip
"""The entries of `last.pt` that a continuation needs."""
STATE = NEEDED_STATE | {"statistics", "parts", "processes", "images"}
"""The entries of `last.pt`; earlier versions wrote those of `NEEDED_STATE` alone."""


def read_state(path: Path) -> dict[str, Any]:
    """Return the saved state of a run.

    Raises:
        UsageError: the file is damaged, or holds something else.
    """
    state = read_checkpoint(path)
    if missing := sorted(NEEDED_STATE - state.keys()):
        raise UsageError(
            f"{path} is not the saved state of a run, for it lacks {few(missing)}; weights alone "
            "start another run with --initial_checkpoint"
        )
    return state


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


def parts_per_process(parts: int, config: Config, processes: Processes) -> int:
    """Return the parts of a batch that a process of a continued run computes one after another.

    If the parts with which the run was started can be shared out among the processes, the same
    images are normalised and mixed together on any number of processes.

    Args:
        parts: parts of a batch over accumulation and processes with which the run was started.
        config: the settings.
        processes: those that go on.
    """
    shared, rest = divmod(parts, processes.world)
    return config.accumulation_steps if rest else shared


def processes_stood_for(started_in: int, parts: int, config: Config, processes: Processes) -> int:
    """Return the number of processes whose parts a process of a continued run computes in turn.

    Their parts have equal weights in the running statistics of BatchNorm, as in the mean over these
    processes. It is 1 where the parts, or those processes, cannot be shared out.

    Args:
        started_in: number of processes with which the run was started.
        parts: parts of a batch over accumulation and processes with which the run was started.
        config: the settings.
        processes: those that go on.
    """
    shared_out = parts % processes.world == 0 and started_in % processes.world == 0
    if shares_statistics(config, processes) or not shared_out:
        return 1
    return started_in // processes.world


class Trainer:
    """A run and its progress.

    Args:
        config: the settings.
        splits: the images.
        folder: the folder of the run.
        processes: this process among those of the run.
        console: the reader of lines.
        parts: parts of a batch over accumulation and processes with which the run was started; None
            for a new run.
        started_in: number of processes with which the run was started; None for a new run.

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
        parts: int | None = None,
        started_in: int | None = None,
    ) -> None:
        self.config, self.splits, self.folder = config, splits, folder
        self.processes, self.console = processes, console
        with processes.together():
            self._check_splits()
        seed_everything(config.seed)
        self.parts = parts or config.accumulation_steps * processes.world
        self.started_in = started_in or processes.world
        self.stepper = Stepper(
            config,
            processes,
            parts_per_process(self.parts, config, processes),
            processes_stood_for(self.started_in, self.parts, config, processes),
        )
        self.writer = CheckpointWriter(folder, config.keep)
        self.loader = self._training_loader()
        if replays_cuda_graphs(config, processes.device):
            self.stepper.capture(self.loader.images_at_once)
        self.test_loader = self._evaluation_loader(splits.test)
        self.validation_loader = (
            None if splits.validation is None else self._evaluation_loader(splits.validation)
        )
        self.images = fingerprint(splits) if processes.is_main else None
        self.epoch = 0
        self.step = 0
        self.epoch_seconds = 0.0
        self.history: list[dict[str, Any]] = []
        self.best_accuracy = -1.0
        self.best_epoch = 0
        self.throughput = Throughput(processes.device)
        self._save_interval = SaveInterval()
        if config.save_every is not None:
            self._save_interval = parse_save_interval(config.save_every)
        self._saved_place: tuple[int, int] | None = None
        self._saved_time = time.perf_counter()
        self._has_written_best = False
        self.bad_images: dict[str, None] = {}
        """Lines on the images that any process could not read since it was started, in order."""

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
            parts=self.stepper.parts,
            rank=processes.rank,
            world=processes.world,
        )
        if not shares_statistics(config, processes):
            check_values_per_channel(config, batches.images_at_once, processes.world)
        loader = TrainingLoader(
            self.splits.train,
            config,
            batches,
            workers=worker_count(config.data, trains_on_gpu=processes.device.type == "cuda"),
            device=processes.device,
        )
        if loader.prepare.mixes and batches.images_at_once % 2:
            raise UsageError(
                "mixup and CutMix mix the images of a batch in pairs: with "
                f"{batches.images_at_once} images at a time, choose an even batch_size"
            )
        return loader

    def _evaluation_loader(self, images: Images) -> EvaluationLoader:
        config, processes = self.config, self.processes
        batch_size = max(1, config.batch_size // (processes.world * config.accumulation_steps))
        return EvaluationLoader(
            images, config, batch_size, processes, workers=worker_count(config.data)
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

    def report_bad_images(self) -> None:
        """Print the new images that could not be read; all processes have to call this.

        Raises:
            UsageError: those of all processes are more than the limit.
        """
        loaders = (self.loader, self.validation_loader, self.test_loader)
        own = [
            line for each in loaders if each is not None for line in each.bad_images.unreported()
        ]
        found = dict.fromkeys(itertools.chain(*self.processes.gather(own)))
        for line in found:
            if line not in self.bad_images:
                self.console.line(f"skipped: {line}")
        self.bad_images |= found
        check_bad_images(list(self.bad_images), self.config.data.bad_images)

    def state(self) -> dict[str, Any]:
        """Return the state for an exact continuation; all processes have to call this."""
        return self.stepper.state() | {
            "epoch": self.epoch,
            "step": self.step,
            "epoch_seconds": self.epoch_seconds,
            "history": self.history,
            "best_accuracy": self.best_accuracy,
            "best_epoch": self.best_epoch,
            "throughput": self.throughput.state(),
            "parts": self.parts,
            "processes": self.started_in,
            "images": self.images,
            "config": to_dict(self.config),
        }

    def continue_from(self, path: Path, state: dict[str, Any]) -> None:
        """Continue from the state that `read_state` found in a file.

        Raises:
            UsageError: it is not the state of this run.
        """
        try:
            self.load_state(state)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None
        except Exception as error:  # The entries may hold anything.
            raise UsageError(f"{path} does not fit this run ({one_line(error)[:200]})") from error

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a state of `state`.

        Raises:
            UsageError: the run had other settings or images.
        """
        check_same_run(from_dict(state["config"]), self.config, "this state")
        if self.images is not None and state.get("images") is not None:
            check_same_images(state["images"], self.images)
        if state["step"] > self.loader.steps:
            raise UsageError(
                f"the run stopped after step {state['step']} of an epoch, which now has "
                f"{self.loader.steps}: the images are not those of the run"
            )
        self.stepper.load_state(state)
        self.epoch, self.step = state["epoch"], state["step"]
        self.epoch_seconds = state["epoch_seconds"]
        self.history = state["history"]
        self.best_accuracy, self.best_epoch = state["best_accuracy"], state["best_epoch"]
        self.throughput.load_state(state["throughput"])
        self._saved_place = self._place
        if self.stepper.parts * self.processes.world != self.parts:
            now = self.stepper.parts * self.processes.world
            self.console.line(
                f"batches are computed in {now} parts now and no longer in {self.parts}, for that "
                f"many cannot be shared out among {self.processes.world} processes: the statistics "
                "of BatchNorm, and mixing, are of other images"
            )

    @property
    def _place(self) -> tuple[int, int]:
        return self.epoch, self.step

    @property
    def _steps_done(self) -> int:
        """Optimizer steps of the whole run so far."""
        return self.epoch * self.loader.steps + self.step

    @property
    def _is_saved(self) -> bool:
        """True if what is written, or being written, is the state of now."""
        return self._saved_place == self._place

    def _save(self, best: dict[str, Any] | None = None) -> None:
        """Copy the state and let it be written; all processes have to call this.

        Args:
            best: what `best.pt` is to hold beside the weights, which are those of now; None leaves
                the file as it is.

        Raises:
            TrainingDivergedError: weights or optimizer state are not finite; all processes raise.
            OSError: the writing of the state before failed.
        """
        if not self.stepper.is_finite():
            raise TrainingDivergedError(
                f"weights or the state of the optimizer became infinite or nan {self._remedy()}"
            )
        state = self.state()
        self._saved_place, self._saved_time = self._place, time.perf_counter()
        if not self.processes.is_main:
            return
        files = {self.folder.last: state}
        if best is not None:
            averaged = state["state_dict_ema"]
            weights = state["state_dict"] if averaged is None else averaged
            # The best weights come first, so that last.pt never names an epoch that best.pt lacks.
            files = {self.folder.best: {"state_dict": weights} | best} | files
        with self.processes.alone():
            self.writer.write(files, self._steps_done)

    def _wait_until_saved(self) -> None:
        with self.processes.alone():
            self.writer.wait()
        self.processes.barrier()

    def _best(self, accuracy: float | None) -> dict[str, Any]:
        """Return what `best.pt` holds beside the weights; from now on this epoch is the best."""
        self.best_epoch = self.epoch
        self._has_written_best = True
        return {
            "epoch": self.epoch,
            "validation_accuracy": accuracy,
            "class_names": list(self.splits.class_names),
            "config": to_dict(self.config),
        }

    def run(self, stop: StopRequest) -> None:
        """Train until the last epoch.

        Raises:
            TrainingInterruptedError: a stop request has ended the run, which has been saved.
            TrainingDivergedError: the loss is no longer finite.
            LostWorkerError: a process that loads images is gone; the run has been saved.
            UsageError: an image cannot be read; the run has been saved.
            OSError: the run cannot be saved.
        """
        with self.writer, lost_workers_named():
            while self.epoch < self.config.epochs:
                if self.step < self.loader.steps:
                    self._train_epoch(stop)
                if self.step == self.loader.steps:
                    self._finish_epoch()
                if stop.wanted(self.processes):
                    if not self._is_saved:
                        self._save()
                    self._wait_until_saved()
                    raise stop.interruption(f"before {self.position}; saved {self.folder.last}")
            if self.config.select == "last" and not self._has_written_best:
                self._save(self._best(self.history[-1].get("validation_accuracy")))
            self._wait_until_saved()

    def _train_epoch(self, stop: StopRequest) -> None:
        """Train until the end of the epoch or a stop request.

        Raises:
            LostWorkerError, UsageError: images could not be loaded; the run has been saved.
        """
        config, steps = self.config, self.loader.steps
        batches = self.loader.epoch(self.epoch, self.step)
        clock = IntervalClock()
        failure, failed = None, False
        self.stepper.parallel.train()
        title = f"epoch {self.epoch + 1}/{config.epochs}"
        with (
            self.console.bar(steps, self.step, title) as bar,
            lost_workers_met_in_loading(),
            self._counted(),
        ):
            while self.step < steps:
                started = time.perf_counter()
                batch, failure = self._load(batches)
                waited = time.perf_counter() - started
                stopped, failed, due = self.processes.any_of_each(
                    stop.requested, failure is not None, self._save_is_due()
                )
                if stopped or failed:
                    break
                if due:
                    with self._uncounted():
                        self._save()
                rate = learning_rate(config, self.epoch, self.step, steps)
                self.stepper.step(batch, rate, self._steps_done)
                self.step += 1
                self.throughput.step(config.batch_size)
                clock.count(config.batch_size, waited)
                bar.update()
                if config.log_interval and self._steps_done % config.log_interval == 0:
                    self._log_interval(clock, rate)
        if self.step == steps:
            self.stepper.average_statistics()
        elif failed:
            self._end_unloaded(failure)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Count the time of the block as training."""
        self._start_counting()
        yield
        self._stop_counting()

    @contextlib.contextmanager
    def _uncounted(self) -> Iterator[None]:
        """Leave the time of a block inside `_counted` out."""
        self._stop_counting()
        yield
        self._start_counting()

    def _start_counting(self) -> None:
        self.throughput.start()
        self._started = time.perf_counter()

    def _stop_counting(self) -> None:
        synchronize(self.processes.device)
        self.throughput.stop()
        self.epoch_seconds += time.perf_counter() - self._started

    def _load(self, batches: Iterator[Batch]) -> tuple[list[Batch], Exception | None]:
        """Return the parts of the next batch, or the error that keeps them away."""
        try:
            with lost_workers_named():
                return [next(batches) for _ in range(self.stepper.parts)], None
        except Exception as error:  # Decoders raise errors of any class.
            return [], error

    def _end_unloaded(self, failure: Exception | None) -> None:
        """Save the run, whose next images could not be loaded, and end it in all processes alike.

        Args:
            failure: the error of this process, None if another has met it.
        """
        self._save()
        self._wait_until_saved()
        met = self.processes.gather(
            None if failure is None else (isinstance(failure, LostWorkerError), one_line(failure))
        )
        if failure is not None and not isinstance(failure, (LostWorkerError, UsageError, OSError)):
            raise failure
        lost_worker, reason = next(each for each in met if each is not None)
        kind = LostWorkerError if lost_worker else UsageError
        raise kind(
            f"{reason}; stopped before {self.position}, saved {self.folder.last}"
        ) from failure

    def _save_is_due(self) -> bool:
        """Return whether the time or the number of steps of `save_every` is over."""
        if self._is_saved:
            return False
        interval = self._save_interval
        if interval.steps is not None:
            return self._steps_done > 0 and self._steps_done % interval.steps == 0
        passed = time.perf_counter() - self._saved_time
        return interval.seconds is not None and passed >= interval.seconds

    @property
    def position(self) -> str:
        """The name of the step that the run takes next, for its log."""
        if self.epoch == self.config.epochs:
            return "the final test"
        if self.step == self.loader.steps:
            return f"the evaluation of epoch {self.epoch + 1}"
        return f"epoch {self.epoch + 1}, step {self.step + 1} of {self.loader.steps}"

    def _finish_epoch(self) -> None:
        """Save, evaluate, write metrics, and save again, now with the results."""
        config, trained = self.config, self._epoch_means()
        measured = trained.columns("train")
        if (self.validation_loader is not None or config.monitor_test) and not self._is_saved:
            self._save()
        with self.processes.alone():
            if self.validation_loader is not None:
                measured |= self._scores(self.validation_loader).means.columns("validation")
            if config.monitor_test:
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
        best = None
        if config.select == "best" and accuracy >= self.best_accuracy:
            self.best_accuracy = accuracy
            best = self._best(accuracy)
        elif config.select == "last" and self.epoch == config.epochs:
            best = self._best(row.get("validation_accuracy"))
        if self.processes.is_main:
            with self.processes.alone():
                self.folder.write_metrics(self.history)
        self._save(best)
        self.report_bad_images()
        self.console.epoch(row, config)

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
