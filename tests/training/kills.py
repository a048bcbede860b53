"""Runs that are killed with SIGKILL, continued and compared with a run that was left alone.

The suite kills single processes at chosen calls (`test_kills.py`). This command kills two processes
that train together at random moments:

    python -m tests.training.kills --kills 30
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import pkgutil
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
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
TIMES = ("images_per_second", "seconds")
SECONDS_TO_END = 60.0


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
    context.set_forkserver_preload(["tests.training.kills"])
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
            for name in TIMES:
                del row[name]
        summary = {
            name: value
            for name, value in folder.load_summary().items()
            if name not in ("images_per_second", "training_seconds")
        }
        states.append([state, rows, summary, read_checkpoint(folder.best)])
    assert_same_state(*states)


def _wait(started: Sequence[BaseProcess], seconds: float = SECONDS_TO_END) -> None:
    deadline = time.monotonic() + seconds
    for process in started:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()


def _kill_at_random(
    started: Sequence[BaseProcess], folder: RunFolder, chance: random.Random, longest: float
) -> str:
    """Kill one or all of the processes and return which; the others are ended as by torchrun."""
    size = folder.log.stat().st_size if folder.log.exists() else 0
    while started[0].is_alive() and not (folder.log.exists() and folder.log.stat().st_size > size):
        time.sleep(0.02)
    time.sleep(chance.uniform(0.0, longest))
    chosen = chance.choice(("all", "first", "last"))
    victims = {"all": list(started), "first": [started[0]], "last": [started[-1]]}[chosen]
    for process in victims:
        process.kill()
    for process in started:
        if process not in victims:
            process.join(0.5)
            process.terminate()
    _wait(started)
    return chosen


def main() -> None:
    """Kill runs of two processes until there were enough kills, and compare each with the first."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--longest", type=float, default=3.0, help="seconds until a kill")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as place:
        images = Path(place) / "images"
        config = killed_config(images, 32, epochs=arguments.epochs, data__workers=1)
        reference = RunFolder(Path(place) / "reference")
        _wait(start(config, reference.path, world=2), 600)
        kills, most_lost, runs = 0, 0, 0
        while kills < arguments.kills:
            runs += 1
            folder = RunFolder(Path(place) / f"run-{runs}")
            while not folder.is_finished and kills < arguments.kills:
                started = start(config, folder.path, world=2)
                chosen = _kill_at_random(started, folder, chance, arguments.longest)
                if all(process.exitcode == 0 for process in started):
                    continue
                kills += 1
                done, saved = steps_done(folder), steps_saved(folder)
                most_lost = max(most_lost, done - saved)
                print(f"kill {kills}: {chosen}; step {done}, saved {saved}", flush=True)
            _wait(start(config, folder.path, world=2), 600)
            assert_same_run(reference, folder)
            print(f"run {runs} ended as the one that was left alone", flush=True)
    print(f"{kills} kills in {runs} runs; at most {most_lost} steps lost, saved every {SAVE_EVERY}")


if __name__ == "__main__":
    main()
