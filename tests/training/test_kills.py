"""Processes that are killed at any moment lose no more than `save_every`."""

from __future__ import annotations

import random
import signal

from convmixer.training.run_folder import RunFolder
from tests.helpers.killed_runs import (
    SAVE_EVERY,
    Trap,
    assert_same_run,
    killed_config,
    start,
    steps_done,
    steps_saved,
)

CALLS = {
    "convmixer.training.stepper.sums_of_batch": 10,  # between the parts of a step
    "convmixer.training.optimizer.ExponentialMovingAverage.update": 6,
    "convmixer.training.trainer.score": 3,
    "convmixer.training.run_folder.write_csv": 1,
    "convmixer.training.checkpoint_writer.snapshot": 300,
    "torch.save": 5,
    "os.fsync": 12,  # of a new file and of its folder
    "os.replace": 6,
    "os.link": 4,
}
"""The functions in which processes are killed, and the highest number of the call that kills."""


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_was_left_alone(tmp_path):
    chance = random.Random(0)
    config = killed_config(tmp_path / "images", 20, epochs=4)
    reference, folder = RunFolder(tmp_path / "reference"), RunFolder(tmp_path / "run")
    (left_alone,) = start(config, reference.path)
    kills = 0
    for function in chance.sample(sorted(CALLS), len(CALLS)):
        trap = Trap(function, chance.randint(1, CALLS[function]))
        (process,) = start(config, folder.path, trap=trap)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL, (trap, folder.path.with_suffix(".err"))
        kills += 1
        # While a step is computed, the state before it may still be on its way to the disk.
        assert steps_done(folder) - steps_saved(folder) <= SAVE_EVERY + 1, trap
    (process,) = start(config, folder.path)
    process.join()
    left_alone.join()
    assert process.exitcode == left_alone.exitcode == 0 and kills >= 5
    assert_same_run(reference, folder)
    assert not list(folder.path.glob(".*.tmp"))
    assert len(list(folder.checkpoints.iterdir())) == 2
