"""Runs in processes of their own, to be killed, continued and compared with one left alone."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pkgutil
import re
import signal
import sys
import tempfile
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch.distributed as dist

from convmixer.config.settings import Config
from convmixer.training import plots
from convmixer.training.run_folder import RunFolder
from convmixer.training.run_state import read_checkpoint
from convmixer.training.runs import train
from tests.helpers.training import assert_same_state, tiny_images_config, write_image_folder

ROOT = Path(__file__).resolve().parents[2]
SAVE_EVERY = 3
"""Optimizer steps between the saves of these runs."""
_TIMES = ("images_per_second", "seconds")


def killed_config(images: Path, training_images: int, **changes: Any) -> Config:
    """Write images, and return settings of a run that has all of the state a run can have.

    Args:
        images: folder for the images.
        training_images: number of images in each of two classes; a step takes eight of both.
        changes: fields that differ, with `__` for the dot.
    """
    write_image_folder(images, {"train": training_images, "val": 4, "test": 4})
    return tiny_images_config(
        images, batch_size=8, ema_decay=0.9, accumulation_steps=2, select="best", log_interval=1,
        monitor_test=True, save_every=f"{SAVE_EVERY} steps", keep=2, **changes,
    )  # fmt: skip


class Trap(NamedTuple):
    """The call at which a process kills itself."""

    function: str
    """The full name of the function."""
    call: int
    """The number of the call, from 1."""


def _set(trap: Trap) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which the call of the trap ends this process."""
    original = pkgutil.resolve_name(trap.function)
    calls = iter(range(1, sys.maxsize))

    def counted(*arguments: Any, **keywords: Any) -> Any:
        if next(calls) == trap.call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keywords)

    return mock.patch(trap.function, counted)


def _work(
    config: Config, out: Path, trap: Trap | None, rank: int, world: int, meeting: Path
) -> None:
    """Train, or continue, in a process of its own."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(out.with_suffix(".err"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    # Processes that load images are copies of this one, as in a run from the command line.
    multiprocessing.set_start_method("fork", force=True)
    plots.save_curves = lambda *_: None  # type: ignore[assignment]
    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=world)
    with contextlib.nullcontext() if trap is None else _set(trap):
        train(config, out, resume=RunFolder(out).holds_run)


def start(
    config: Config, out: Path, *, trap: Trap | None = None, world: int = 1
) -> list[BaseProcess]:
    """Start the processes of a run, which they continue if the folder holds one."""
    meeting = Path(tempfile.mkdtemp(dir=out.parent)) / "meeting"
    # The processes are copies of a server that has imported everything once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    started = [
        context.Process(target=_work, args=(config, out, trap, rank, world, meeting))
        for rank in range(world)
    ]
    with mock.patch.dict(os.environ, PYTHONPATH=str(ROOT)):
        for process in started:
            process.start()
    return list(started)


def steps_done(folder: RunFolder) -> int:
    """Return the optimizer steps of the run so far by its log, in which every step has a line."""
    found = re.findall(r"^epoch (\d+)/\d+  step (\d+)/(\d+)", folder.log.read_text(), re.MULTILINE)
    if not found:
        return 0
    epoch, step, steps = map(int, found[-1])
    return (epoch - 1) * steps + step


def steps_saved(folder: RunFolder) -> int:
    """Return the optimizer steps that the saved state holds."""
    if not folder.last.exists():
        return 0
    state = read_checkpoint(folder.last)
    steps = int(re.findall(r"step \d+/(\d+)", folder.log.read_text())[-1])
    return int(state["epoch"] * steps + state["step"])


def assert_same_run(first: RunFolder, second: RunFolder) -> None:
    """Compare the states, the tested weights and the results of two runs bit for bit."""
    states = []
    for folder in (first, second):
        state = read_checkpoint(folder.last)
        for name in ("throughput", "epoch_seconds"):
            del state[name]
        for row in (rows := folder.load_metrics()) + state["history"]:
            for name in _TIMES:
                del row[name]
        summary = {
            name: value
            for name, value in folder.load_summary().items()
            if name not in ("images_per_second", "training_seconds")
        }
        states.append([state, rows, summary, read_checkpoint(folder.best)])
    assert_same_state(*states)
