"""Saving: when, in the background, what is kept, who holds the folder, and what ends a run."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from convmixer.cli import main
from convmixer.config.recipes import load_recipe
from convmixer.config.save_interval import SaveInterval, parse_save_interval
from convmixer.data.sources import ArrayImages, FileImages, Splits, load_splits
from convmixer.errors import (
    TrainingDivergedError,
    TrainingInterruptedError,
    UsageError,
)
from convmixer.files import link_or_copy, replacing
from convmixer.training import plots
from convmixer.training import run_folder as run_folder_module
from convmixer.training import trainer as trainer_module
from convmixer.training.checkpoint_writer import CheckpointWriter, snapshot
from convmixer.training.distributed import Processes
from convmixer.training.fingerprint import check_same_images, fingerprint
from convmixer.training.reporting import Console
from convmixer.training.run_folder import RunFolder, write_json
from convmixer.training.run_state import StopRequest, read_checkpoint
from convmixer.training.runs import train
from convmixer.training.stepper import Stepper
from convmixer.training.trainer import Trainer, parts_per_process, processes_stood_for
from tests.helpers.training import (
    assert_same_state,
    tiny_images_config,
    write_image_folder,
)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _without_drawing(monkeypatch):
    monkeypatch.setattr(plots, "save_curves", lambda *_: None)


@pytest.fixture
def config(tmp_path):
    """Return settings of two epochs of five steps, with validation and test images."""
    write_image_folder(tmp_path / "images", {"train": 20, "val": 2, "test": 2})
    return tiny_images_config(tmp_path / "images", epochs=2, batch_size=8, save_every=None)


# When a run is saved


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("500 steps", SaveInterval(steps=500)),
        ("1 step", SaveInterval(steps=1)),
        (" 7Steps ", SaveInterval(steps=7)),
        ("10 minutes", SaveInterval(seconds=600.0)),
        ("10m", SaveInterval(seconds=600.0)),
        ("0.5 min", SaveInterval(seconds=30.0)),
        ("2 hours", SaveInterval(seconds=7200.0)),
    ],
)
def test_intervals_are_steps_or_minutes(text, interval):
    assert parse_save_interval(text) == interval


@pytest.mark.parametrize(
    "text", ["10", "0 steps", "0m", "1.5 steps", "-3 steps", "ten minutes", "5 s"]
)
def test_other_intervals_are_refused_in_the_settings(text):
    with pytest.raises(UsageError, match=f"save_every: expected steps or minutes .*, got '{text}'"):
        load_recipe("digits", {"save_every": text})


def _saves(monkeypatch) -> list[tuple[int, int]]:
    """Return the list of (epoch, step) at which runs are saved from now on."""
    places, write = [], CheckpointWriter.write

    def noted(self, checkpoints, step):
        state = next(state for path, state in checkpoints.items() if path.name == "last.pt")
        places.append((state["epoch"], state["step"]))
        write(self, checkpoints, step)

    monkeypatch.setattr(CheckpointWriter, "write", noted)
    return places


@pytest.mark.parametrize(
    ("every", "between"),
    [("3 steps", ([(0, 3)], [(1, 1), (1, 4)])), ("5 steps", ([], []))],
)
def test_a_run_is_saved_every_so_many_steps_before_and_after_evaluation(
    every, between, config, tmp_path, monkeypatch
):
    places = _saves(monkeypatch)
    config.save_every = every
    train(config, tmp_path / "run", silent=True)
    assert places == [*between[0], (0, 5), (1, 0), *between[1], (1, 5), (2, 0)]


def test_a_run_is_saved_every_so_many_minutes(config, tmp_path, monkeypatch):
    """A step takes 20 seconds here, and an evaluation none."""
    places, clock, step = _saves(monkeypatch), [0.0], Stepper.step

    def slow(self, *arguments):
        clock[0] += 20.0
        step(self, *arguments)

    monkeypatch.setattr(Stepper, "step", slow)
    monkeypatch.setattr(trainer_module.time, "perf_counter", lambda: clock[0])
    config.save_every = "1 minute"
    train(config, tmp_path / "run", silent=True)
    assert places == [(0, 3), (0, 5), (1, 0), (1, 3), (1, 5), (2, 0)]


def test_without_evaluation_an_epoch_is_saved_once(config, tmp_path, monkeypatch):
    places = _saves(monkeypatch)
    (tmp_path / "images" / "val").rename(tmp_path / "images" / "other")
    train(config, tmp_path / "run", silent=True)
    assert places == [(1, 0), (2, 0)]


def test_saving_changes_no_result(config, tmp_path):
    for name, every in (("reference", None), ("run", "1 step")):
        config.save_every = every
        train(config, tmp_path / name, silent=True)
    _assert_same_end(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_in_an_evaluation_loses_nothing(config, tmp_path, monkeypatch, number):
    """SIGTERM stops the run after the evaluation; a kill in the evaluation finds the run saved."""
    saved, scored = [], trainer_module.score

    def interrupted(*arguments):
        if not saved:
            trainer.writer.wait()
            saved.append(read_checkpoint(tmp_path / "last.pt"))
            if number == signal.SIGKILL:
                raise KeyboardInterrupt  # Nothing after this line runs, as after a kill.
            signal.raise_signal(number)
        return scored(*arguments)

    trainer = Trainer(
        config,
        load_splits(config.data, 3),
        RunFolder(tmp_path),
        Processes(CPU),
        Console(silent=True),
    )
    monkeypatch.setattr(trainer_module, "score", interrupted)
    error = KeyboardInterrupt if number == signal.SIGKILL else TrainingInterruptedError
    with pytest.raises(error), StopRequest() as stop:
        trainer.run(stop)
    assert (saved[0]["epoch"], saved[0]["step"], len(saved[0]["history"])) == (0, 5, 0)
    state = read_checkpoint(tmp_path / "last.pt")
    assert (state["epoch"], state["step"]) == ((0, 5) if number == signal.SIGKILL else (1, 0))
    assert_same_state(state["state_dict"], saved[0]["state_dict"])


# Writing in the background


def test_a_snapshot_shares_nothing_with_what_it_was_taken_of():
    tensor = torch.arange(6.0).reshape(2, 3).t()
    value = {"a": [tensor, (1, "b", None)], "c": {"d": tensor, "e": torch.tensor(3)}}
    copy = snapshot(value)
    assert_same_state(
        copy,
        {"a": [tensor.clone(), (1, "b", None)], "c": {"d": tensor.clone(), "e": torch.tensor(3)}},
    )
    assert copy["a"][0] is copy["c"]["d"] and copy["a"][0].stride() == tensor.stride()
    tensor.zero_(), value["a"].clear(), value["c"].clear()
    assert copy["a"][0].sum() == 15 and copy["c"]["e"] == 3


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """A second write begins when the first has ended; each holds what was there when asked for."""
    folder, weights = RunFolder(tmp_path), torch.zeros(3)
    may_write, events = threading.Event(), []
    save = torch.save

    def slow(state, file):
        assert may_write.wait(60)
        events.append(("begins", float(state["w"][0])))
        save(state, file)
        events.append(("ends", float(state["w"][0])))

    monkeypatch.setattr("convmixer.model.checkpoints.torch.save", slow)
    with CheckpointWriter(folder, keep=1) as writer:
        writer.write({folder.last: {"w": weights}}, 1)
        weights += 1
        assert not folder.last.exists()
        threading.Timer(0.05, may_write.set).start()
        writer.write({folder.last: {"w": weights}}, 2)
        assert events[:2] == [("begins", 0.0), ("ends", 0.0)]
        weights += 1
    assert events == [("begins", 0.0), ("ends", 0.0), ("begins", 1.0), ("ends", 1.0)]
    assert read_checkpoint(folder.last)["w"].tolist() == [1.0] * 3
    assert not folder.checkpoints.exists()


def _full_disk(monkeypatch, *, after: int) -> None:
    """Let the disk be full when the write with this number has ended."""
    save, writes = torch.save, []

    def failing(state, file):
        writes.append(None)
        if len(writes) > after:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(state, file)

    monkeypatch.setattr("convmixer.model.checkpoints.torch.save", failing)


@pytest.mark.parametrize("next_call", ["write", "wait", "exit"])
def test_an_error_in_the_background_is_raised_by_the_next_call(tmp_path, monkeypatch, next_call):
    _full_disk(monkeypatch, after=1)
    folder = RunFolder(tmp_path)
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*last\.pt'"),
        CheckpointWriter(folder, keep=1) as writer,
    ):
        writer.write({folder.last: {"a": 1}}, 1)
        writer.write({folder.last: {"a": 2}}, 2)
        if next_call == "write":
            writer.write({folder.last: {"a": 3}}, 3)
        elif next_call == "wait":
            writer.wait()
    assert read_checkpoint(folder.last) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_an_error_of_training_is_not_hidden_by_one_of_writing(tmp_path, monkeypatch):
    _full_disk(monkeypatch, after=0)
    folder = RunFolder(tmp_path)
    with pytest.raises(TrainingDivergedError), CheckpointWriter(folder, keep=1) as writer:
        writer.write({folder.last: {"a": 1}}, 1)
        raise TrainingDivergedError


def test_a_full_disk_ends_a_run_in_one_line_and_space_lets_it_go_on(
    config, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    train(config, tmp_path / "reference", silent=True)
    with monkeypatch.context() as patch:
        _full_disk(patch, after=2)
        with pytest.raises(OSError, match=r"No space left on device: '.*last\.pt'"):
            train(config, out, silent=True)
        assert main(["train", "--resume", "--out", str(out)]) == 2
        assert capsys.readouterr().err == (
            f"convmixer train: error: {out / 'last.pt'}: No space left on device\n"
        )
    assert not list(out.glob(".*.tmp"))
    train(config, out, resume=True, silent=True)
    _assert_same_end(tmp_path)


# States that are kept


def test_the_latest_states_are_kept(config, tmp_path):
    config.save_every, config.keep = "2 steps", 3
    train(config, tmp_path / "run", silent=True)
    kept = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [path.name for path in kept] == [f"step-{step:08}.pt" for step in (6, 8, 10)]
    assert kept[2].samefile(tmp_path / "run" / "last.pt")
    states = [read_checkpoint(path) for path in kept]
    assert [(state["epoch"], state["step"]) for state in states] == [(1, 1), (1, 3), (2, 0)]


def test_a_run_goes_on_from_a_kept_state(config, tmp_path):
    out, config.save_every, config.keep = tmp_path / "run", "2 steps", 9
    train(config, out, silent=True)
    whole = read_checkpoint(out / "last.pt")
    (out / "summary.json").unlink()
    os.replace(out / "checkpoints" / "step-00000004.pt", out / "last.pt")
    config.keep = 2
    train(config, out, resume=True, silent=True)
    for name in ("state_dict", "optimizer"):
        assert_same_state(whole[name], read_checkpoint(out / "last.pt")[name])
    assert len(list((out / "checkpoints").iterdir())) == 2


def test_the_states_written_last_are_kept_whatever_their_numbers(tmp_path):
    folder = RunFolder(tmp_path)
    for second, step in enumerate((10, 12, 4)):
        with replacing(folder.last) as file:
            file.write(b"state")
        os.utime(folder.last, (second, second))
        folder.keep_last(step, count=2)
    kept = sorted(path.name for path in folder.checkpoints.iterdir())
    assert kept == ["step-00000004.pt", "step-00000012.pt"]


def test_a_file_without_second_names_is_copied(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError

    monkeypatch.setattr("convmixer.files.os.link", refused)
    (tmp_path / "a").write_bytes(b"new")
    (tmp_path / "b").write_bytes(b"old")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"new" and len(list(tmp_path.iterdir())) == 2


# The folder


def test_what_a_killed_process_left_half_written_is_removed_and_nothing_else(tmp_path):
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    left = []
    for path in (folder.last, folder.metrics, folder.checkpoints / "step-00000001.pt"):
        with pytest.raises(KeyboardInterrupt), replacing(path) as file:
            left.append(Path(file.name))
            raise KeyboardInterrupt
        left[-1].touch()
    others = [tmp_path / name for name in ("last.pt", ".notes.tmp", "a.tmp", ".last.pt.0.tmp")]
    for path in others:
        path.touch()
    with folder.locked():
        assert not any(path.exists() for path in left) and all(path.exists() for path in others)


HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
print("process 7 on elsewhere", file=file, flush=True)
print("held", flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs fcntl")
def test_a_folder_belongs_to_one_process_until_that_ends(config, tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out / ".lock")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        message = "is in use by process 7 on elsewhere, which trains there"
        with pytest.raises(UsageError, match=message):
            train(config, out, silent=True)
        assert {path.name for path in out.iterdir()} == {".lock"}
        RunFolder(out).create(config)
        assert main(["train", "--resume", "--out", str(out)]) == 2
        assert capsys.readouterr().err == f"convmixer train: error: {out} {message}\n"
    finally:
        holder.kill()
        holder.communicate()
    assert (out / ".lock").exists()
    train(config, out, resume=True, silent=True)
    assert str(os.getpid()) in (out / ".lock").read_text()


def test_a_file_system_without_locks_is_named(config, tmp_path, monkeypatch, capsys):
    def refused(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(run_folder_module.fcntl, "lockf", refused)
    train(config, tmp_path / "run")
    assert f"{tmp_path / 'run'}: this file system has no locks" in capsys.readouterr().out


def test_a_number_that_is_not_finite_is_not_written_as_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "summary.json", {"test_accuracy": float("nan")})
    assert not list(tmp_path.iterdir())
    write_json(tmp_path / "summary.json", {"test_accuracy": 1.5})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"test_accuracy": 1.5}


# The images of a run


def _files(*names: str) -> FileImages:
    return FileImages(names, np.zeros(len(names), dtype=np.int64), "RGB")


def _pixels(value: int) -> ArrayImages:
    return ArrayImages(np.full((2, 3, 3), value, dtype=np.uint8), np.arange(2), "L")


FILES = _files("/a/train/cat/1.png", "/a/train/dog/2.png")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            Splits(FILES, None, FILES, ("cat", "dog")),
            Splits(FILES, None, FILES, ("cat", "cow")),
            r"class names 2 \(cat, dog\) in its state, 2 \(cat, cow\) in the data",
        ),
        (
            Splits(FILES, None, FILES, ("cat", "dog")),
            Splits(_files(*FILES.paths, "/a/train/dog/3.png"), None, FILES, ("cat", "dog")),
            "training images 2 in its state, 3 in the data",
        ),
        (
            Splits(FILES, None, FILES, ("cat", "dog")),
            Splits(_files("/a/train/cat/1.png", "/a/train/dog/3.png"), None, FILES, ("cat", "dog")),
            "training file names [0-9a-f]{16} in its state, [0-9a-f]{16} in the data",
        ),
        (
            Splits(FILES, None, FILES, ("cat", "dog")),
            Splits(FILES, FILES, FILES, ("cat", "dog")),
            "validation none in its state, 2 in the data",
        ),
        (
            Splits(_pixels(1), None, _pixels(1), ("a", "b")),
            Splits(_pixels(1), None, _pixels(2), ("a", "b")),
            "test pixels [0-9a-f]{16} in its state, [0-9a-f]{16} in the data",
        ),
        (
            Splits(_pixels(1), None, _pixels(1), ("a", "b")),
            Splits(
                ArrayImages(_pixels(1).pixels, np.ones(2, dtype=np.int64), "L"),
                None,
                _pixels(1),
                ("a", "b"),
            ),
            "training labels [0-9a-f]{16} in its state, [0-9a-f]{16} in the data",
        ),
    ],
)
def test_images_that_are_not_those_of_the_run_are_named(before, after, message):
    check_same_images(fingerprint(before), fingerprint(before))
    with pytest.raises(UsageError, match=f"the images are not those of the run: {message}"):
        check_same_images(fingerprint(before), fingerprint(after))


def test_images_in_another_place_are_the_same():
    moved = _files(*(path.replace("/a/", "/elsewhere/b/") for path in FILES.paths))
    classes = ("cat", "dog")
    assert fingerprint(Splits(FILES, None, FILES, classes)) == fingerprint(
        Splits(moved, None, moved, classes)
    )


def _stopped_in_the_middle(config, out, monkeypatch, step: int = 3) -> None:
    """Stop a run in the optimizer step with this number."""
    original, steps = Stepper.step, iter(range(1, 1000))

    def interrupted(self, *arguments):
        if next(steps) == step:
            signal.raise_signal(signal.SIGTERM)
        original(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(TrainingInterruptedError):
        patch.setattr(Stepper, "step", interrupted)
        train(config, out, silent=True)


def test_a_run_whose_images_became_fewer_or_others_ends_in_one_line(
    config, tmp_path, monkeypatch, capsys
):
    out, images = tmp_path / "run", tmp_path / "images" / "train"
    _stopped_in_the_middle(config, out, monkeypatch)
    (images / "class0" / "0.png").rename(images / "class0" / "other.png")
    command = ["train", "--resume", "--out", str(out)]
    assert main(command) == 2
    assert "are not those of the run: training file names" in capsys.readouterr().err
    for number in range(3, 20):
        (images / "class1" / f"{number}.png").unlink()
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "the run: training images 40 in its state, 23 in the data" in error
    assert error.count("\n") == 1
    state = read_checkpoint(out / "last.pt")
    torch.save({**state, "images": None}, out / "last.pt")
    assert main(command) == 2
    assert "stopped after step 3 of an epoch, which now has 2" in capsys.readouterr().err


# Images that cannot be loaded


def test_an_unreadable_image_leaves_a_run_that_goes_on(config, tmp_path):
    """With accumulation, the image may be met when a part of its step has been loaded."""
    config.accumulation_steps, config.data.device_resident = 2, "false"
    config.data.bad_images = 0
    train(config, tmp_path / "reference", silent=True)
    config.data.workers = 1
    image, out = tmp_path / "images" / "train" / "class1" / "7.png", tmp_path / "run"
    good = image.read_bytes()
    image.write_bytes(good[:50])
    message = r"cannot read image .*7\.png: .*; stopped before epoch 1, step \d of 5, saved .*\.pt$"
    with pytest.raises(UsageError, match=message):
        train(config, out, silent=True)
    image.write_bytes(good)
    train(config, out, resume=True, silent=True)
    _assert_same_end(tmp_path)


def _assert_same_end(folder: Path) -> None:
    """Compare what the runs `reference` and `run` have come to."""
    states = [read_checkpoint(folder / name / "last.pt") for name in ("reference", "run")]
    for name in ("state_dict", "optimizer"):
        assert_same_state(states[0][name], states[1][name])


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="needs POSIX")
def test_a_killed_worker_leaves_a_run_that_goes_on(config, tmp_path, monkeypatch, capsys):
    """The process is killed inside an optimizer step, which must come to its end."""
    config.batch_size, config.data.device_resident = 2, "false"
    train(config, tmp_path / "reference", silent=True)
    config.data.workers = 1
    out = tmp_path / "run"
    RunFolder(out).create(config)
    original, steps = Stepper.step, iter(range(1, 1000))
    others = set(multiprocessing.active_children())

    def step(self, *arguments):
        if next(steps) == 3:
            (worker,) = set(multiprocessing.active_children()) - others
            worker.kill()
            worker.join()
        original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", step)
        assert main(["train", "--resume", "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        "convmixer train: a process that loads images is gone (DataLoader worke"
    )
    assert re.search(
        r"lower --workers; stopped before epoch 1, step \d+ of 20, saved .*t\. C", error
    )
    assert error.endswith(f"Continue with: convmixer train --resume --out {out}\n")
    assert error.count("\n") == 1
    assert read_checkpoint(out / "last.pt")["step"] >= 3
    train(config, out, resume=True, silent=True)
    _assert_same_end(tmp_path)


# Other numbers of processes


@pytest.mark.parametrize(
    ("parts", "world", "taken"), [(4, 1, 4), (4, 2, 2), (4, 4, 1), (6, 2, 3), (4, 3, 2), (2, 4, 2)]
)
def test_a_continued_run_keeps_the_parts_of_its_batches_if_they_can_be_shared_out(
    config, parts, world, taken
):
    config.accumulation_steps = 2
    assert parts_per_process(parts, config, Processes(CPU, 0, world)) == taken


@pytest.mark.parametrize(
    ("started_in", "parts", "world", "expected"),
    [(4, 4, 1, 4), (4, 8, 2, 2), (4, 4, 4, 1), (2, 4, 4, 1), (1, 4, 2, 1), (6, 6, 4, 1)],
)
def test_a_process_stands_for_those_whose_parts_it_has(started_in, parts, world, expected, config):
    processes = Processes(CPU, 0, world)
    assert processes_stood_for(started_in, parts, config, processes) == expected


def test_one_process_takes_the_parts_of_two_and_a_line_tells_of_other_parts(
    config, tmp_path, capsys
):
    splits = load_splits(config.data, 3)
    trainer = Trainer(config, splits, RunFolder(tmp_path), Processes(CPU), Console(), 4, 2)
    state = trainer.state()
    assert state["processes"] == 2
    assert trainer.stepper.parts == state["parts"] == 4
    assert [len(labels) for _, labels in trainer.loader.epoch(1, 4)] == [2] * 4
    trainer.load_state(state)
    assert capsys.readouterr().out == ""
    trainer.stepper.parts = 1
    trainer.load_state(state)
    assert "batches are computed in 1 parts now and no longer in 4" in capsys.readouterr().out
