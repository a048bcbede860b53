"""Several processes of one run: what they share, and what torchrun has to set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from convmixer import torchrun
from convmixer.cli import command_line as cli
from convmixer.cli import main
from convmixer.cli.commands import COMMANDS
from convmixer.data.sources import load_splits
from convmixer.errors import (
    LostProcessError,
    ProcessError,
    TrainingDivergedError,
    TrainingInterruptedError,
    UsageError,
)
from convmixer.training import distributed
from convmixer.training.distributed import Processes, running_processes
from convmixer.training.loaders import worker_count
from convmixer.training.run_folder import RunFolder
from convmixer.training.run_state import read_checkpoint
from convmixer.training.runs import train
from tests.helpers.training import tiny_config
from tests.training.two_processes import EQUAL_TO_ONE, statistics_config

ROOT = Path(__file__).resolve().parents[2]
BATCH_NORM = "batch norm"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Run two processes to their end and return their folder."""
    path = tmp_path_factory.mktemp("two")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "--log-dir", str(path / "logs"), "-m", "tests.training.two_processes", str(path),
    ]  # fmt: skip
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def seen(folder) -> list[dict[str, Any]]:
    """Load what each of the processes saw."""
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_two_processes_with_accumulation_equal_one_without(folder, seen, tmp_path):
    assert [each["exit code"] for each in seen] == [0, 0]
    assert main([*EQUAL_TO_ONE, "--out", str(tmp_path / "one")]) == 0
    one, two = RunFolder(tmp_path / "one"), RunFolder(folder / "two")
    summaries = [run.load_summary() for run in (one, two)]
    assert [summary["processes"] for summary in summaries] == [1, 2]
    assert summaries[0]["test_images"] == summaries[1]["test_images"]
    losses = [run.load_metrics()[0]["train_loss"] for run in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    states = [read_checkpoint(run.last) for run in (one, two)]
    for weights in ("state_dict", "state_dict_ema"):
        torch.testing.assert_close(*(state[weights] for state in states), atol=2e-4, rtol=2e-3)


def test_a_run_goes_on_in_another_number_of_processes(seen):
    """One process takes the parts of two in turn, so that all differs by rounding alone."""
    moved, stayed = seen[0]["moved"]["moved"], seen[0]["moved"]["stayed"]
    assert moved["parts"] == moved["processes"] == moved["epoch"] == 2
    for name in ("state_dict", "state_dict_ema"):
        for key, tensor in stayed[name].items():
            if not key.endswith("num_batches_tracked"):
                torch.testing.assert_close(moved[name][key], tensor, atol=1e-5, rtol=1e-4)
    for key, state in stayed["optimizer"]["state"].items():
        for name, tensor in state.items():
            found = moved["optimizer"]["state"][key][name]
            torch.testing.assert_close(found, tensor, atol=1e-5, rtol=1e-3)
    for before, after in zip(stayed["history"], moved["history"], strict=True):
        assert after["train_loss"] == pytest.approx(before["train_loss"], rel=1e-5)
        assert after["train_accuracy"] == pytest.approx(before["train_accuracy"])


def test_statistics_are_averaged_before_they_are_scored_and_saved(folder, seen):
    first, second = (each[BATCH_NORM] for each in seen)
    assert len(first["before"]) == 12  # mean and variance of three norms, model and average
    differences = []
    for name, tensor in first["before"].items():
        mean = (tensor + second["before"][name]) / 2
        differences.append(float((tensor - second["before"][name]).abs().max()))
        for each in (first, second):
            torch.testing.assert_close(each["after"][name], mean)
    assert min(differences) > 0
    last = read_checkpoint(folder / "batch-norm" / "last.pt")
    best = read_checkpoint(folder / "batch-norm" / "best.pt")
    for name, tensor in first["after"].items():
        prefix, _, key = name.partition(".")
        saved = [last["state_dict"]] if prefix == "model" else [last["state_dict_ema"]]
        for state in saved if prefix == "model" else [*saved, best["state_dict"]]:
            assert torch.equal(state[key], tensor)


def test_averaged_statistics_are_those_of_all_images(seen, tmp_path):
    train(statistics_config(), tmp_path / "one", silent=True)
    state = read_checkpoint(tmp_path / "one" / "last.pt")
    for prefix, weights in (("model", "state_dict"), ("average", "state_dict_ema")):
        averaged = seen[0][BATCH_NORM]["after"][f"{prefix}.stem.2.running_mean"]
        torch.testing.assert_close(averaged, state[weights]["stem.2.running_mean"])


def test_a_signal_in_one_process_stops_all_after_the_step(folder, seen):
    for each in seen:
        assert each["stopped"].startswith("interrupted before epoch 1, step 3 of 4; saved ")
    assert read_checkpoint(folder / "stopped" / "last.pt")["step"] == 2


def test_all_processes_stop_where_one_diverges(seen):
    assert all("the loss became inf in epoch 1" in each["diverged"] for each in seen)


def test_the_images_of_an_evaluation_are_shared_out(folder, seen):
    summary = RunFolder(folder / "two").load_summary()
    for each in seen:
        assert each["evaluated"]["images"] == summary["test_images"] == 359
        assert each["evaluated"]["test_accuracy"] == pytest.approx(summary["test_accuracy"])


# The environment of torchrun


def _torchrun(monkeypatch, **variables: str) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_an_environment_that_torchrun_did_not_set_is_named(monkeypatch):
    _torchrun(monkeypatch, WORLD_SIZE="2", LOCAL_RANK="0")
    with (
        pytest.raises(UsageError, match=r"WORLD_SIZE is 2 without RANK: .* torchrun"),
        running_processes("cpu"),
    ):
        pass


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), ("cuda", "cpu:gloo,cuda:nccl")])
def test_gpus_exchange_gradients_through_nccl(monkeypatch, device, backend):
    _torchrun(monkeypatch, WORLD_SIZE="2", RANK="1", LOCAL_RANK="1")
    backends = []
    monkeypatch.setattr(dist, "init_process_group", backends.append)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(distributed, "resolve_device", torch.device)
    with running_processes(device) as processes:
        assert (processes.rank, processes.world) == (1, 2)
        assert processes.device == torch.device("cuda:1" if device == "cuda" else "cpu")
    assert backends == [backend]


def test_processes_of_a_machine_share_its_processors(monkeypatch):
    monkeypatch.setattr("convmixer.training.loaders._processors", lambda: 12)
    data = tiny_config(data__source="images").data
    counts = []
    for processes in ("1", "4", "16"):
        _torchrun(monkeypatch, LOCAL_WORLD_SIZE=processes)
        counts.append(worker_count(data))
    assert counts == [8, 3, 1]
    data.workers = 5
    assert worker_count(data) == 5
    assert worker_count(tiny_config().data) == 0
    assert worker_count(tiny_config().data, trains_on_gpu=True) == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_only_the_processors_of_this_process_count(monkeypatch):
    _torchrun(monkeypatch)
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert worker_count(tiny_config(data__source="images").data) == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    ("variables", "start"),
    [
        ({}, "convmixer"),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}, "torchrun --nproc-per-node 8 -m convmixer"),
        (
            {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"},
            "torchrun --nnodes 2 --nproc-per-node 8 -m convmixer",
        ),
    ],
)
def test_an_interruption_says_how_to_continue_all_processes(monkeypatch, capsys, variables, start):
    def interrupted(_):
        raise TrainingInterruptedError("stopped", 15)

    _torchrun(monkeypatch, **variables, RANK="0")
    monkeypatch.setitem(COMMANDS, "train", interrupted)
    command = ["train", "--recipe", "digits", "--out", "a b", "--seeds", "2"]
    assert main(command) == 143
    expected = f"stopped. Continue with: {start} train --resume --out 'a b' --seeds 2\n"
    assert capsys.readouterr().err == expected
    _torchrun(monkeypatch, **variables, RANK="1")
    assert cli.main(command) == 143 and capsys.readouterr().err == ""


def test_the_others_go_on_where_the_main_process_fails_first(monkeypatch):
    events: list[str] = []
    monkeypatch.setattr(Processes, "barrier", lambda _: events.append("barrier"))
    with pytest.raises(UsageError), Processes(torch.device("cpu"), 0, 2).main_first():
        raise UsageError("no images")
    assert events == ["barrier"]


# Mistakes


def test_a_mistake_of_one_process_is_one_of_all(seen):
    """The first prints it, the other waits to be ended and prints nothing."""
    for rank, each in enumerate(seen):
        code, error = each["wrong folder"]
        assert code == (2 if rank == 0 else "waited")
        assert error.startswith("convmixer train: error: no images found: there") == (rank == 0)
        assert error.count("\n") == (rank == 0)
        code, error = each["wrong folder of one"]
        assert code == (2 if rank == 0 else "waited")
        assert ("convmixer train: error: no images found: there" in error) == (rank == 0)


def _errors(*messages: str | None):
    """Return a `gather` by which processes tell each other these mistakes."""
    return lambda _, __: list(messages)


def test_processes_share_their_mistakes(monkeypatch):
    processes = Processes(torch.device("cpu"), 0, 2)
    monkeypatch.setattr(Processes, "gather", _errors(None, None))
    with processes.together():
        pass
    monkeypatch.setattr(Processes, "gather", _errors(None, "a.png is damaged"))
    with pytest.raises(UsageError, match=r"a\.png is damaged"), processes.together():
        pass
    monkeypatch.setattr(Processes, "gather", _errors("own", "of the other"))
    with pytest.raises(FileNotFoundError, match="own"), processes.together():
        raise FileNotFoundError("own")


def test_a_mistake_that_one_process_meets_alone_is_marked():
    with pytest.raises(ProcessError, match=r"a\.png"), Processes(torch.device("cpu"), 1, 2).alone():
        raise UsageError("a.png")
    with pytest.raises(FileNotFoundError), Processes(torch.device("cpu")).alone():
        raise FileNotFoundError("a.png")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ProcessError("a.png"), 2, "error: a.png"),
        (UsageError("a.png"), 2, "error: a.png"),
        (OSError(13, "Permission denied", "a.png"), 2, "error: a.png: Permission denied"),
        (TrainingDivergedError("the loss"), 1, "the loss"),
        (LostProcessError("another process"), 1, "another process"),
    ],
)
def test_one_process_reports_what_all_meet(monkeypatch, capsys, error, code, message, rank):
    def wrong(_):
        raise error

    waited: list[float] = []
    monkeypatch.setattr(torchrun.time, "sleep", waited.append)
    _torchrun(monkeypatch, WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank))
    monkeypatch.setitem(COMMANDS, "train", wrong)
    assert main(["train", "--recipe", "digits"]) == code
    # torchrun ends the second process while it waits; one that is not ended speaks for itself.
    assert capsys.readouterr().err == f"convmixer train: {message}\n"
    met_by_all = not isinstance(error, ProcessError)
    assert waited == ([torchrun.SECONDS_TO_REPORT] if rank and met_by_all else [])


def test_a_mistyped_option_is_reported_once(monkeypatch, capsys):
    waited: list[float] = []
    monkeypatch.setattr(torchrun.time, "sleep", waited.append)
    _torchrun(monkeypatch, WORLD_SIZE="2", RANK="1", LOCAL_RANK="1")
    with pytest.raises(SystemExit):
        main(["train", "--epohcs", "3"])
    assert waited == [torchrun.SECONDS_TO_REPORT]


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[/src/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection"), True),
        (dist.DistBackendError("NCCL error"), True),
        (RuntimeError("size mismatch"), False),
    ],
)
def test_an_ended_process_is_told_from_other_errors(monkeypatch, error, lost):
    _torchrun(monkeypatch, WORLD_SIZE="2", RANK="0", LOCAL_RANK="0")
    monkeypatch.setattr(dist, "init_process_group", lambda _: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    with (
        pytest.raises(LostProcessError if lost else RuntimeError) as caught,
        running_processes("cpu"),
    ):
        raise error
    assert isinstance(caught.value, LostProcessError) == lost


def test_the_main_process_loads_first(monkeypatch):
    """Another process waits before the block, the main process after it."""
    events: list[str] = []
    monkeypatch.setattr(Processes, "barrier", lambda _: events.append("barrier"))
    for rank in (0, 1):
        with Processes(torch.device("cpu"), rank, 2).main_first():
            load_splits(tiny_config().data, 1)
            events.append("loaded")
    assert events == ["loaded", "barrier", "barrier", "loaded"]
