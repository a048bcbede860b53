"""The program of `test_processes.py` under torchrun: each process writes a file `RANK.pt`."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from convmixer.cli import main
from convmixer.config.settings import Config
from convmixer.errors import TrainingDivergedError, TrainingInterruptedError
from convmixer.training import plots
from convmixer.training.distributed import running_processes
from convmixer.training.evaluation import checkpoint_config, evaluate
from convmixer.training.run_state import read_checkpoint
from convmixer.training.runs import train
from convmixer.training.stepper import Stepper
from tests.helpers.training import tiny_config, tiny_options, write_image_folder

EQUAL_TO_ONE = [
    "train", "--recipe", "digits", *tiny_options(), "--norm", "layer", "--mixup", "0",
    "--cutmix", "0", "--epochs", "1", "--lr", "0.001", "--ema_decay", "0.5",
]  # fmt: skip
"""Without BatchNorm and mixing, two processes compute what one computes."""


def statistics_config() -> Config:
    """Constant weights, so that the stem sees in two processes what it sees in one."""
    changes = {"augment__mixup": 0, "augment__cutmix": 0, "optimizer__lr": 0.0}
    return tiny_config(epochs=1, ema_decay=0.5, accumulation_steps=2, **changes)


def _statistics(stepper: Stepper) -> dict[str, Tensor]:
    models = {"model": stepper.model, "average": stepper.average.module}
    return {
        f"{name}.{key}": tensor.clone()
        for name, model in models.items()
        for key, tensor in model.state_dict().items()
        if key.endswith(("running_mean", "running_var"))
    }


def _batch_norm(config: Config, out: Path) -> dict[str, Any]:
    """Running statistics before and after they are averaged, and the scores of a process."""
    average, seen = Stepper.average_statistics, {}

    def recorded(self: Stepper) -> None:
        seen["before"] = _statistics(self)
        average(self)
        seen["after"] = _statistics(self)

    with mock.patch.object(Stepper, "average_statistics", recorded):
        seen["summary"] = train(config, out, silent=True)
    return seen


def _stopped(config: Config, out: Path, rank: int) -> str:
    """Let the second process alone get a signal in its second step; return why this one stops."""
    original, steps = Stepper.step, []

    def step(self: Stepper, *arguments: Any, **keywords: Any) -> None:
        steps.append(None)
        if rank == 1 and len(steps) == 2:
            signal.raise_signal(signal.SIGTERM)
        original(self, *arguments, **keywords)

    return _reason_to_end(config, out, step)


def moving_config() -> Config:
    """Settings with all that is computed over a part of a batch; two epochs of four steps."""
    return tiny_config(ema_decay=0.9, optimizer__lr=0.003)


def _moved(out: Path, rank: int) -> dict[str, dict[str, Any]]:
    """Train in two processes, in one alone from step 3 to 6, and in two again.

    Returns:
        the states of this run and of one that stayed in two processes.
    """
    config, original = moving_config(), Stepper.step

    def train_until(last: int | None, **options: Any) -> None:
        def step(self: Stepper, batch: Any, rate: float, number: int) -> None:
            if number + 1 == last:
                signal.raise_signal(signal.SIGTERM)
            original(self, batch, rate, number)

        stopped = (
            contextlib.nullcontext()
            if last is None
            else contextlib.suppress(TrainingInterruptedError)
        )
        with mock.patch.object(Stepper, "step", step), stopped:
            train(config, out / "moved", silent=True, **options)

    train_until(3)
    if rank == 0:
        with mock.patch.dict(os.environ, WORLD_SIZE="1"):
            train_until(6, resume=True)
    dist.barrier()
    train_until(None, resume=True)
    train(config, out / "stayed", silent=True)
    return {name: read_checkpoint(out / name / "last.pt") for name in ("moved", "stayed")}


def _diverged(config: Config, out: Path, rank: int) -> str:
    """Make the loss of the second process alone infinite; return why this one fails."""
    original = Stepper.step

    def step(self: Stepper, *arguments: Any, **keywords: Any) -> None:
        original(self, *arguments, **keywords)
        if rank == 1:
            self.sums[1] = float("inf")

    return _reason_to_end(config, out, step)


def _reason_to_end(config: Config, out: Path, step: Callable[..., None]) -> str:
    """Train with `step` in place of `Stepper.step` and return why that ends early."""
    with mock.patch.object(Stepper, "step", step):
        try:
            train(config, out, silent=True)
        except (TrainingInterruptedError, TrainingDivergedError) as reason:
            return str(reason)
    return "not ended"


def _mistaken(folder: Path, images: Path) -> tuple[int | str, str]:
    """Exit code and standard error of a run on images that are not there."""

    def wait(_: float) -> None:
        raise SystemExit("waited")

    error, sleep = io.StringIO(), time.sleep
    time.sleep = wait
    code: int | str
    words = ["--source", "images", "--data", str(images), "--out", str(folder / "mistaken")]
    try:
        with contextlib.redirect_stderr(error):
            code = main(["train", "--recipe", "digits", "--device", "cpu", *words])
    except SystemExit as stopped:
        code = str(stopped.code)
    finally:
        time.sleep = sleep
    return code, error.getvalue()


def work(folder: Path, rank: int) -> None:
    """Run every case in this process."""
    plots.save_curves = lambda *_: None  # type: ignore[assignment]
    config = statistics_config()
    seen: dict[str, Any] = {}
    with running_processes("cpu"):
        command = [*EQUAL_TO_ONE, "--accumulation_steps", "2", "--out", str(folder / "two")]
        seen["exit code"] = main(command)
        seen["batch norm"] = _batch_norm(config, folder / "batch-norm")
        seen["stopped"] = _stopped(config, folder / "stopped", rank)
        # Both processes must go on to the next case, or the second waits for ever.
        seen["moved"] = _moved(folder, rank)
        seen["diverged"] = _diverged(config, folder / "diverged", rank)
        checkpoint = folder / "two" / "best.pt"
        seen["wrong folder"] = _mistaken(folder, folder / "none")
        if rank == 0:
            write_image_folder(folder / "images", {"train": 2, "test": 1}, classes=10)
        place = folder / ("images" if rank == 0 else "none")
        seen["wrong folder of one"] = _mistaken(folder, place)
        seen["evaluated"] = evaluate(checkpoint, checkpoint_config(checkpoint), silent=True)
    torch.save(seen, folder / f"{rank}.pt")


if __name__ == "__main__":
    # The other process would wait for one that fails.
    faulthandler.dump_traceback_later(120, exit=True)
    work(Path(sys.argv[1]), int(os.environ["RANK"]))
