"""Checkpoints, random states and stop requests, on which an exact continuation of a run rests."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch

from convmixer.errors import TrainingInterruptedError, UsageError
from convmixer.model.checkpoints import read_file
from convmixer.torchrun import is_first_process
from convmixer.training.distributed import Processes


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


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed Python, NumPy and PyTorch, with another seed for each rank."""
    seed_cpu(seed + rank)
    torch.cuda.manual_seed_all(seed + rank)


def random_states(device: torch.device) -> dict[str, Any]:
    """Return the state of every random number generator, as plain values and tensors."""
    version, python_words, gauss_next = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=True)
    return {
        "python": {"version": version, "words": list(python_words), "gauss_next": gauss_next},
        "numpy": {
            "words": torch.from_numpy(np.asarray(numpy_state[1], dtype=np.int64)),
            "position": int(numpy_state[2]),
            "has_gauss": int(numpy_state[3]),
            "cached_gaussian": float(numpy_state[4]),
        },
        "torch": torch.random.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Set every random number generator to its state in `random_states`."""
    python, numpy_state = states["python"], states["numpy"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss_next"]))
    np.random.set_state(
        (
            "MT19937",
            numpy_state["words"].numpy().astype(np.uint32),
            numpy_state["position"],
            numpy_state["has_gauss"],
            numpy_state["cached_gaussian"],
        )
    )
    torch.random.set_rng_state(states["torch"])
    if device.type == "cuda" and states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"], device)


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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def wanted(self, processes: Processes) -> bool:
        """Return whether any process was asked to stop; all processes have to call this."""
        return processes.any(self._signal_number is not None)

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
