"""Kill two processes that train together at random moments, continue them, compare the results.

The suite kills single processes at chosen calls (`test_kills.py`), and this command is

    python -m tests.training.kills --kills 30
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from convmixer.training.run_folder import RunFolder
from tests.helpers.killed_runs import (
    SAVE_EVERY,
    assert_same_run,
    killed_config,
    start,
    steps_done,
    steps_saved,
)

SECONDS_TO_END = 900.0
PART_OF_A_RUN = 0.2
"""Processes are killed within this part of the time of a whole run."""


def _wait(started: Sequence[BaseProcess], seconds: float = SECONDS_TO_END) -> None:
    deadline = time.monotonic() + seconds
    for process in started:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()


def _wait_for_a_line(started: Sequence[BaseProcess], folder: RunFolder) -> None:
    """Wait until the log of a run has one more line, with which training begins."""
    size = folder.log.stat().st_size if folder.log.exists() else 0
    while started[0].is_alive() and not (folder.log.exists() and folder.log.stat().st_size > size):
        time.sleep(0.02)


def _kill_at_random(
    started: Sequence[BaseProcess], folder: RunFolder, chance: random.Random, longest: float
) -> str:
    """Kill one or all of the processes and return which; the others are ended as by torchrun."""
    _wait_for_a_line(started, folder)
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
    parser.add_argument("--epochs", type=int, default=8)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as place:
        images = Path(place) / "images"
        config = killed_config(images, 32, epochs=arguments.epochs, data__workers=1)
        reference = RunFolder(Path(place) / "reference")
        started = start(config, reference.path, world=2)
        _wait_for_a_line(started, reference)
        begun = time.monotonic()
        _wait(started)
        longest = PART_OF_A_RUN * (time.monotonic() - begun)
        kills, most_lost, runs = 0, 0, 0
        while kills < arguments.kills:
            runs += 1
            folder = RunFolder(Path(place) / f"run-{runs}")
            while not folder.is_finished and kills < arguments.kills:
                started = start(config, folder.path, world=2)
                chosen = _kill_at_random(started, folder, chance, longest)
                if all(process.exitcode == 0 for process in started):
                    continue
                kills += 1
                done, saved = steps_done(folder), steps_saved(folder)
                most_lost = max(most_lost, done - saved)
                print(f"kill {kills}: {chosen}; step {done}, saved {saved}", flush=True)
            _wait(start(config, folder.path, world=2))
            assert_same_run(reference, folder)
            print(f"run {runs} ended as the one that was left alone", flush=True)
    print(f"{kills} kills in {runs} runs; at most {most_lost} steps lost, saved every {SAVE_EVERY}")


if __name__ == "__main__":
    main()
