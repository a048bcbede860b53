"""Programs that draw the metrics of a run: TensorBoard, Weights & Biases."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from convmixer.config.fields import to_dict
from convmixer.config.settings import Config
from convmixer.errors import UsageError


class Tracker(Protocol):
    """A program that takes the metrics of every epoch."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Take a row of `metrics.csv`, and keep nothing of it in memory."""


class _TensorBoard:
    def __init__(self, folder: Path, epoch: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # A continued run writes again what an interruption may have left after its last epoch.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=epoch + 1)

    def write(self, row: Mapping[str, Any]) -> None:
        for name, value in _numbers(row).items():
            self._writer.add_scalar(_title(name), value, row["epoch"])
        self._writer.flush()


class _WeightsAndBiases:
    def __init__(self, folder: Path, config: Config) -> None:
        import wandb

        self._run = wandb.init(
            project="convmixer",
            name=folder.name,
            dir=str(folder),
            config=to_dict(config),
            id=f"{folder.name}-{config.recipe}-{config.seed}",
            resume="allow",
            reinit="finish_previous",
        )

    def write(self, row: Mapping[str, Any]) -> None:
        self._run.log({_title(name): v for name, v in _numbers(row).items()}, step=row["epoch"])


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "epoch"}


def _title(column: str) -> str:
    """Return a column of the metrics as programs group it: `validation/accuracy`."""
    split, underscore, name = column.partition("_")
    return f"{split}/{name}" if split in ("train", "validation", "test") and underscore else column


def check_tracker(config: Config) -> None:
    """Check that the package of the settings' tracker is installed.

    Raises:
        UsageError: it is missing.
    """
    if config.tracker != "none" and importlib.util.find_spec(config.tracker) is None:
        raise UsageError(
            f"tracker: the package {config.tracker} is missing: pip install {config.tracker}"
        )


def open_tracker(config: Config, folder: Path, epoch: int) -> Tracker | None:
    """Return the tracker of the settings, if they name one.

    Args:
        config: the settings.
        folder: the folder of the run.
        epoch: the number of finished epochs of a run that continues.
    """
    if config.tracker == "tensorboard":
        return _TensorBoard(folder, epoch)
    return _WeightsAndBiases(folder, config) if config.tracker == "wandb" else None
