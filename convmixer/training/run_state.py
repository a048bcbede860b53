"""Checkpoints, random states and stop requests, on which an exact continuation of a run rests."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from convmixer.errors import LostWorkerError, TrainingInterruptedError, UsageError, one_line
from convmixer.model.checkpoints import read_file
from convmixer.torchrun import is_first_process
from convmixer.training.distributed import Processes

_LOST_WORKER = "DataLoader worker (pid"
"""The beginning of PyTorch's message on a process that loads images and is gone."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the contents of a checkpoint, on the CPU, without running any code in it.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: the file is damaged or no checkpoint.
    """
    try:
        return dict(read_file(path))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def seed_cpu(seed: int) -> None:
    """Seed Python, NumPy and PyTorch's generator of the CPU."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch."""
    seed_cpu(seed)
    torch.cuda.manual_seed_all(seed)


@contextlib.contextmanager
def lost_workers_named() -> Iterator[None]:
    """Turn PyTorch's error about a process that loads images and is gone into one of this package.

    Raises:
        LostWorkerError: such a process was killed or has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith(_LOST_WORKER):
            raise
        raise LostWorkerError(
            f"a process that loads images is gone ({one_line(error)}); if memory is short, lower "
            "--workers"
        ) from error


@contextlib.contextmanager
def lost_workers_met_in_loading() -> Iterator[None]:
    """Let the loss of a process that loads images be met only where its images are taken.

    PyTorch raises the error from a handler of SIGCHLD, which interrupts the main thread anywhere,
    as between the changes of two weights. Without the handler, a loader that waits for images looks
    every five seconds for processes that are gone.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield  # There is no handler.
        return
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)


class StopRequest:
    """A context in which the first SIGINT or SIGTERM asks to save and stop; a second acts at once.

    Python allows handlers of signals in the main thread alone, so other threads set none.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self._signal_number: int | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    @property
    def requested(self) -> bool:
        """True if this process was asked to stop."""
        return self._signal_number is not None

    def wanted(self, processes: Processes) -> bool:
        """Return whether any process was asked to stop; all processes have to call this."""
        return processes.any(self.requested)

    def interruption(self, where: str) -> TrainingInterruptedError:
        """Return the error that ends the command."""
        number = signal.SIGTERM if self._signal_number is None else self._signal_number
        return TrainingInterruptedError(f"interrupted {where}", number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._signal_number = number
        self._restore()
        if is_first_process():
            # os.write, unlike print, is safe in a handler that interrupts another print.
            with contextlib.suppress(OSError):
                os.write(2, b"\nstopping when the run is saved; once more to stop at once\n")

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
