"""Optional autotuning, with made-up times: what is measured, what is kept, and what is believed."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from triton.runtime.errors import OutOfResources

from convmixer_kernels.backends.triton import autotuning, configurations
from convmixer_kernels.backends.triton.autotuning import MOST_CANDIDATES, Tuner
from convmixer_kernels.backends.triton.configurations import Configuration
from convmixer_kernels.backends.triton.launch_context import LaunchContext
from convmixer_kernels.backends.triton.shape_key import ShapeKey

HOPPER = LaunchContext(capability=(9, 0), multiprocessors=132)


def shape_key(images: int = 64) -> ShapeKey:
    tensor = torch.empty((images, 384, 32, 32), dtype=torch.float16, device="meta")
    return ShapeKey.of((tensor, tensor), 9)


CANDIDATES = configurations.forward_candidates(shape_key(), HOPPER)
CHOICES = autotuning.distinct(CANDIDATES)


class Gpu:
    """Stand-in that counts its runs and takes the time it is told; the last one is the fastest."""

    def __init__(self) -> None:
        self.ran: list[Configuration] = []

    def run(self, configuration: Configuration) -> None:
        self.ran.append(configuration)

    def time(self, call: Callable[[], Any]) -> float:
        call()
        return float(len(CHOICES) - CHOICES.index(self.ran[-1]))


def tuner(folder: Path, gpu: Gpu, versions: str = "1", name: str = "NVIDIA H100 80GB") -> Tuner:
    return Tuner(name, folder, versions, gpu.time)


def test_candidates_are_bounded_and_differ_in_their_code() -> None:
    assert 1 < len(CHOICES) <= MOST_CANDIDATES
    assert CHOICES[0] == CANDIDATES[0]
    assert len({(each.tiles, each.unrolled_rows, each.cuts_images) for each in CHOICES}) == len(
        CHOICES
    )
    first = CANDIDATES[0]
    shared = dataclasses.replace(first, splits=first.splits + 1)
    assert autotuning.distinct([first, shared]) == [first]


def test_the_fastest_is_chosen_kept_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gpu = Gpu()
    first = tuner(tmp_path / "new", gpu)
    assert first.choose("forward", shape_key(), CANDIDATES, gpu.run) == CHOICES[-1]
    assert gpu.ran == CHOICES
    (line,) = caplog.messages
    assert "tuned forward of 64x384x32x32 float16, kernel size 9 on NVIDIA H100 80GB" in line
    # Neither the same process nor the next one measures again.
    assert first.choose("forward", shape_key(), CANDIDATES, gpu.run) == CHOICES[-1]
    again = tuner(tmp_path / "new", gpu)
    assert again.choose("forward", shape_key(), CANDIDATES, gpu.run) == CHOICES[-1]
    assert gpu.ran == CHOICES and len(caplog.messages) == 1
    (file,) = (tmp_path / "new").iterdir()
    assert file.name == "triton-NVIDIA-H100-80GB.json"


@pytest.mark.parametrize("error", [OutOfResources(1, 2, "shared memory"), torch.OutOfMemoryError()])
def test_a_candidate_that_does_not_fit_is_passed_over(tmp_path: Path, error: Exception) -> None:
    gpu = Gpu()

    def run(configuration: Configuration) -> None:
        gpu.run(configuration)
        if configuration == CHOICES[-1]:
            raise error

    assert tuner(tmp_path, gpu).choose("forward", shape_key(), CANDIDATES, run) == CHOICES[-2]


@pytest.mark.parametrize("what", ["operation", "shape_key", "versions", "gpu"])
def test_what_was_measured_for_something_else_is_not_used(tmp_path: Path, what: str) -> None:
    gpu = Gpu()
    tuner(tmp_path, gpu).choose("forward", shape_key(), CANDIDATES, gpu.run)
    gpu.ran.clear()
    versions = "2" if what == "versions" else "1"
    name = "NVIDIA A100" if what == "gpu" else "NVIDIA H100 80GB"
    operation = "weight_gradient" if what == "operation" else "forward"
    given = shape_key(8 if what == "shape_key" else 64)
    tuner(tmp_path, gpu, versions, name).choose(operation, given, CANDIDATES, gpu.run)
    assert gpu.ran == CHOICES


def test_processes_add_to_one_file(tmp_path: Path) -> None:
    gpu = Gpu()
    one, other = tuner(tmp_path, gpu), tuner(tmp_path, gpu)
    one.choose("forward", shape_key(1), CANDIDATES, gpu.run)
    other.choose("forward", shape_key(2), CANDIDATES, gpu.run)
    one.choose("forward", shape_key(3), CANDIDATES, gpu.run)
    gpu.ran.clear()
    last = tuner(tmp_path, gpu)
    for images in (1, 2, 3):
        last.choose("forward", shape_key(images), CANDIDATES, gpu.run)
    assert gpu.ran == []


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"key": 3}',
        '{"key": {"tiles": 16, "colour": 2}}',
        "\udcff",
    ],
    ids=["half", "list", "number", "unknown field", "not text"],
)
def test_a_broken_file_is_ignored_with_a_warning(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "triton-NVIDIA-H100-80GB.json"
    file.write_bytes(content.encode(errors="surrogateescape"))
    gpu = Gpu()
    assert tuner(tmp_path, gpu).choose("forward", shape_key(), CANDIDATES, gpu.run) == CHOICES[-1]
    assert any(f"ignored what was tuned before, {file}" in line for line in caplog.messages)
    # It is replaced by a whole one, and nothing else is left behind.
    (entry,) = json.loads(file.read_text()).values()
    assert entry == dataclasses.asdict(CHOICES[-1])
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_cannot_be_written_is_survived(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    gpu = Gpu()
    tuned = tuner(tmp_path / "file", gpu)
    assert tuned.choose("forward", shape_key(), CANDIDATES, gpu.run) == CHOICES[-1]
    assert any("what was tuned is not kept" in line for line in caplog.messages)
    gpu.ran.clear()
    assert tuned.choose("forward", shape_key(), CANDIDATES, gpu.run) == CHOICES[-1]
    assert gpu.ran == []


def test_nothing_is_measured_during_capture(tmp_path: Path) -> None:
    gpu = Gpu()
    tuned = tuner(tmp_path, gpu)
    chosen = tuned.choose("forward", shape_key(), CANDIDATES, gpu.run, may_measure=False)
    assert chosen == CANDIDATES[0] and gpu.ran == []
    # A known winner is used there, too.
    tuned.choose("forward", shape_key(), CANDIDATES, gpu.run)
    chosen = tuned.choose("forward", shape_key(), CANDIDATES, gpu.run, may_measure=False)
    assert chosen == CHOICES[-1]


def test_the_file_lies_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H100 80GB")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    for folder, cache in ((str(tmp_path), tmp_path), ("", tmp_path / "home" / ".cache")):
        monkeypatch.setenv("XDG_CACHE_HOME", folder)
        file = autotuning._tuner.__wrapped__(0)._file
        assert file == cache / "convmixer_kernels" / "triton-NVIDIA-H100-80GB.json"


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gpu:
    """`autotuning.choose` as on a GPU that is not there."""
    gpu = Gpu()
    monkeypatch.setattr(autotuning, "_tuner", lambda index: tuner(tmp_path, gpu))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return gpu


@pytest.mark.parametrize("value", [None, "0", ""])
def test_it_is_off_unless_asked_for(
    pretended: Gpu, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("CONVMIXER_KERNELS_AUTOTUNE", raising=False)
    if value is not None:
        monkeypatch.setenv("CONVMIXER_KERNELS_AUTOTUNE", value)
    cuda = torch.device("cuda", 0)
    chosen = autotuning.choose("forward", shape_key(), CANDIDATES, pretended.run, cuda)
    assert chosen == CANDIDATES[0] and pretended.ran == []


def test_it_can_be_asked_for(pretended: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVMIXER_KERNELS_AUTOTUNE", "1")
    cuda, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert (
        autotuning.choose("forward", shape_key(), CANDIDATES, pretended.run, cpu) == CANDIDATES[0]
    )
    assert pretended.ran == []
    assert autotuning.choose("forward", shape_key(), CANDIDATES, pretended.run, cuda) == CHOICES[-1]


def test_a_captured_graph_is_noticed(pretended: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVMIXER_KERNELS_AUTOTUNE", "1")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    cuda = torch.device("cuda", 0)
    chosen = autotuning.choose("forward", shape_key(), CANDIDATES, pretended.run, cuda)
    assert chosen == CANDIDATES[0] and pretended.ran == []
