"""Schedule, optimizer, the training loop, exact continuation, and several processes."""

from __future__ import annotations

import dataclasses
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
import torch

from convmixer import ConvMixer, load_checkpoint
from convmixer.cli import main
from convmixer.config.fields import override
from convmixer.config.recipes import load_recipe, load_yaml
from convmixer.data.augmentation import evaluation_crop
from convmixer.data.preparation import Normalization
from convmixer.data.sources import load_splits
from convmixer.errors import TrainingDivergedError, TrainingInterruptedError, UsageError
from convmixer.files import replacing
from convmixer.training import plots
from convmixer.training import trainer as trainer_module
from convmixer.training.distributed import Processes
from convmixer.training.environment import (
    depthwise_implementation,
    effective_amp,
    memory_format,
    resolve_device,
)
from convmixer.training.optimizer import (
    ExponentialMovingAverage,
    build_optimizer,
    cosine,
    learning_rate,
    triangular,
    weight_decay_groups,
)
from convmixer.training.reporting import WARMUP_STEPS, Console, Throughput
from convmixer.training.run_folder import COLUMNS, RunFolder
from convmixer.training.run_state import (
    StopRequest,
    read_checkpoint,
)
from convmixer.training.runs import summarize_seeds, train, train_seeds
from convmixer.training.scoring import augmented_views, score
from convmixer.training.stepper import Stepper
from convmixer.training.trainer import STATE, Trainer, check_values_per_channel
from tests.helpers.training import (
    assert_same_state,
    tiny_config,
    tiny_images_config,
    tiny_options,
    write_cifar_batches,
    write_image_folder,
)

CPU = torch.device("cpu")
TIMES = ("images_per_second", "seconds")


@pytest.fixture(autouse=True)
def _without_drawing(monkeypatch):
    """Save the time of drawing curves; the run of `finished` draws them."""
    monkeypatch.setattr(plots, "save_curves", lambda *_: None)


# Schedule


@pytest.mark.parametrize(
    ("position", "rate"),
    [(0, 0.0), (5, 0.5), (10, 1.0), (15, 0.525), (20, 0.05), (22.5, 0.025), (25, 0.0)],
)
def test_triangular_schedule_goes_through_the_knots_of_the_paper(position, rate):
    assert triangular(position, epochs=25, peak=1.0) == pytest.approx(rate, abs=1e-12)


def test_triangular_schedule_rounds_its_knots_down():
    assert triangular(4, epochs=12, peak=1.0) == pytest.approx(1.0)  # 2 * 12 // 5
    assert triangular(9, epochs=12, peak=1.0) == pytest.approx(0.05)  # 4 * 12 // 5


def test_cosine_schedule_warms_up_and_ends_at_zero():
    values = [cosine(position, 10, 2.0, warmup_epochs=2.0) for position in (0, 1, 2, 6, 10)]
    assert values == pytest.approx([0.0, 1.0, 2.0, 1.0, 0.0], abs=1e-12)


@pytest.mark.parametrize(("epochs", "middle"), [(1, (0.4, 0.8)), (2, (0.8, 1.6)), (3, (1, 2))])
def test_triangular_schedule_rises_first_in_short_runs_too(epochs, middle):
    positions = (0, middle[0] / 2, *middle, epochs)
    rates = [triangular(position, epochs, peak=1.0) for position in positions]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 0.05, 0.0], abs=1e-12)


def test_the_schedule_of_the_settings_sets_every_step():
    changes = {"epochs": 10, "optimizer__lr": 0.2}
    config = tiny_config(**changes)
    rates = [learning_rate(config, epoch, step, 4) for epoch, step in ((0, 0), (3, 3), (9, 3))]
    assert rates == pytest.approx([0.2 * 0.25 / 4, 0.2, 0.0], abs=1e-12)
    changes |= {"optimizer__schedule": "cosine", "optimizer__warmup_epochs": 2}
    rates = [learning_rate(tiny_config(**changes), *place, 4) for place in ((0, 0), (1, 3), (5, 3))]
    assert rates == pytest.approx([0.2 * 0.25 / 2, 0.2, 0.1], abs=1e-12)


# Optimizer


def _model() -> ConvMixer:
    return ConvMixer(8, 2, 3, 1, 10, in_chans=1, dw_impl="torch")


def test_biases_and_scales_are_not_decayed():
    config = tiny_config(optimizer__weight_decay=0.5).optimizer
    decayed, kept = weight_decay_groups(_model(), config)
    assert decayed["weight_decay"] == 0.5 and kept["weight_decay"] == 0.0
    assert {p.ndim for p in decayed["params"]} == {2, 4} and {p.ndim for p in kept["params"]} == {1}
    assert len(decayed["params"]) + len(kept["params"]) == len(list(_model().parameters()))


def test_all_parameters_are_decayed_where_the_recipe_says_so():
    changes = {"optimizer__weight_decay": 0.5, "optimizer__decay_one_dimensional": True}
    (group,) = weight_decay_groups(_model(), tiny_config(**changes).optimizer)
    assert group["weight_decay"] == 0.5 and len(group["params"]) == len(list(_model().parameters()))


def test_optimizer_takes_its_settings_from_the_recipe():
    config = tiny_config(optimizer__eps=1e-3, optimizer__betas="0.8,0.95").optimizer
    defaults = build_optimizer(_model(), config).defaults
    assert defaults["eps"] == 1e-3 and defaults["betas"] == (0.8, 0.95)


def test_moving_average_follows_the_formula():
    model = _model()
    average = ExponentialMovingAverage(model, decay=0.5)
    expected = {name: tensor.double() for name, tensor in model.state_dict().items()}
    for step in range(12):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.copy_(torch.randn(tensor.shape) * 3)
        average.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * tensor.double()
            else:
                expected[name] = tensor.double()
    for name, tensor in average.module.state_dict().items():
        torch.testing.assert_close(tensor.double(), expected[name], atol=1e-5, rtol=1e-5)


# One step


def _stepper(**changes) -> Stepper:
    torch.manual_seed(0)
    return Stepper(tiny_config(**changes), Processes(CPU))


def _batch(images: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(10, (images,), generator=generator)
    targets = torch.nn.functional.one_hot(labels, 10).float()
    return torch.randn(images, 1, 8, 8, generator=generator), targets


PLAIN = {"augment__mixup": 0, "augment__cutmix": 0, "model__norm": "layer", "label_smoothing": 0}


def _gradient(optimizer: torch.optim.Optimizer) -> torch.Tensor:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return torch.cat([parameter.grad.flatten() for parameter in parameters])


def test_accumulation_equals_one_large_batch():
    images, targets = _batch()
    gradients = []
    for parts in (1, 2):
        changes = {"accumulation_steps": parts, "optimizer__clip_grad_norm": 0}
        stepper = _stepper(**PLAIN, **changes)
        stepper.optimizer.register_step_pre_hook(
            lambda optimizer, *_: gradients.append(_gradient(optimizer))
        )
        pairs = zip(images.chunk(parts), targets.chunk(parts), strict=True)
        stepper.step(iter(pairs), rate=0.01, number=0)
        assert stepper.sums[0] == 16
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


def test_a_step_uses_the_given_learning_rate_and_counts_loss_and_hits():
    stepper = _stepper(**PLAIN)
    before = {name: tensor.clone() for name, tensor in stepper.model.state_dict().items()}
    images, targets = _batch()
    labels = targets.argmax(1)
    with torch.no_grad():
        logits = stepper.model(images)
    stepper.step(iter([(images, targets)]), rate=0.0, number=0)
    assert_same_state(dict(stepper.model.state_dict()), before)
    count, loss, right = stepper.sums.tolist()
    assert count == 16 and right == (logits.argmax(1) == labels).sum()
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    assert loss == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(("limit", "expected"), [(1e-3, 1e-3), (0.0, None)])
def test_gradients_are_clipped_to_the_limit(limit, expected):
    stepper = _stepper(optimizer__clip_grad_norm=limit)
    norms = []
    stepper.optimizer.register_step_pre_hook(
        lambda optimizer, *_: norms.append(float(_gradient(optimizer).norm()))
    )
    stepper.step(iter([_batch()]), rate=0.01, number=0)
    if expected is None:
        assert norms[0] > 0.01
    else:
        assert norms[0] == pytest.approx(expected, rel=1e-2)


def test_gradient_checkpointing_and_memory_format_reach_the_model():
    stepper = _stepper(gradient_checkpointing=True, channels_last=True)
    assert stepper.model.grad_checkpointing
    weight = stepper.model.blocks[0][0].fn[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    stepper.step(iter([_batch()]), rate=0.01, number=0)


@pytest.mark.parametrize(
    ("setting", "on_cpu", "on_gpu"),
    [("auto", True, False), ("true", True, True), ("false", False, False)],
)
def test_channels_last_is_what_is_faster_on_a_cpu(setting, on_cpu, on_gpu):
    formats = torch.contiguous_format, torch.channels_last
    config = tiny_config(channels_last=setting)
    assert memory_format(config, CPU) == formats[on_cpu]
    assert memory_format(config, torch.device("cuda")) == formats[on_gpu]


def test_the_implementation_that_runs_is_named():
    assert depthwise_implementation(tiny_config(model__dw_impl="auto"), CPU) == "torch"


def test_mixed_precision_is_off_on_a_cpu_and_as_set_on_a_gpu():
    config = tiny_config(amp="fp16")
    assert effective_amp(config, CPU) == "none"
    assert effective_amp(config, torch.device("cuda", 0)) == "fp16"
    stepper = Stepper(config, Processes(CPU))
    assert not stepper.scaler.is_enabled()


# Scores


def test_scores_count_top1_top5_loss_and_confusion():
    logits = torch.randn(40, 10, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 10
    model = torch.nn.Flatten()
    images = logits[:, None, None]
    batches = [(images[:24], labels[:24]), (images[24:], labels[24:])]
    scores = score(model, batches, tiny_config(), Processes(CPU))
    ranked = logits.argsort(1, descending=True)
    assert scores.means.images == 40
    assert scores.accuracy == pytest.approx(100 * float((ranked[:, 0] == labels).double().mean()))
    in_top = (ranked[:, :5] == labels[:, None]).any(1).double().mean()
    assert scores.means.metrics["accuracy_top5"] == pytest.approx(100 * float(in_top))
    loss = torch.nn.functional.cross_entropy(logits, labels)
    assert scores.means.loss == pytest.approx(float(loss), rel=1e-5)
    confusion = np.zeros((10, 10), dtype=int)
    np.add.at(confusion, (labels.numpy(), ranked[:, 0].numpy()), 1)
    assert np.array_equal(scores.confusion.numpy(), confusion)


def test_views_shift_and_mirror():
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    views = augmented_views(flip=False)(image)
    assert len(views) == 5 and torch.equal(views[0], image)
    assert views[2][0, 0].tolist() == [[3, 4, 5], [6, 7, 8], [6, 7, 8]]
    mirrored = augmented_views(flip=True)(image)
    assert len(mirrored) == 10 and torch.equal(mirrored[5], image.flip(3))


def test_views_are_averaged_as_probabilities():
    logits = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    model = torch.nn.Flatten()
    config = tiny_config(model__n_classes=2)
    images = logits[:, None, None]
    batches = [(images[:1], torch.tensor([0]))]
    views = [images[:1], images[1:]]
    scores = score(model, batches, config, Processes(CPU), lambda _: views)
    mean = torch.stack([row.softmax(0) for row in logits]).mean(0)
    assert scores.means.loss == pytest.approx(-math.log(mean[0]), rel=1e-5)


# Whole runs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run with everything that an exact continuation has to keep."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, train(_exact_config(), out, silent=True)


def _exact_config(**changes):
    return tiny_config(ema_decay=0.9, accumulation_steps=2, select="best", **changes)


def test_a_run_leaves_everything_in_its_folder(finished):
    out, summary = finished
    names = {path.name for path in out.iterdir()}
    assert names == {
        "config.yaml", "metrics.csv", "summary.json", "curves.png", "last.pt", "best.pt",
        "environment.json", ".lock",
    }  # fmt: skip
    assert load_yaml(out / "config.yaml") == _exact_config()
    assert RunFolder(out).load_summary() == summary
    model = ConvMixer(8, 1, 3, 1, 10, in_chans=1)
    assert summary["parameters"] == sum(p.numel() for p in model.parameters())
    assert summary["test_images"] == 359 and 0 <= summary["test_accuracy"] <= 100
    assert summary["seed"] == 0 and summary["device"] == "cpu" and summary["amp"] == "none"
    assert summary["dw_impl"] == "torch"
    load_checkpoint(model, out / "best.pt")
    assert matplotlib.image.imread(out / "curves.png").shape[2] == 4


def test_what_a_continuation_needs_is_what_is_saved(finished):
    assert read_checkpoint(finished[0] / "last.pt").keys() == STATE


def test_metrics_have_a_line_an_epoch(finished):
    out, _ = finished
    header = (out / "metrics.csv").read_text().splitlines()[0]
    assert header.split(",") == list(COLUMNS)
    rows = RunFolder(out).load_metrics()
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[1]["learning_rate"] == pytest.approx(triangular(2, 2, 0.01))
    assert "validation_accuracy" in rows[0] and "test_accuracy" not in rows[0]


def _interrupt(monkeypatch, step: int, number: int = signal.SIGINT) -> None:
    """Raise a signal in the middle of the optimizer step with this number in its process."""
    original, steps = Stepper.step, iter(range(1, 1000))

    def interrupted(self, *arguments, **keywords):
        if next(steps) == step:
            signal.raise_signal(number)
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(Stepper, "step", interrupted)


@pytest.mark.parametrize("stops", [(2,), (4,), (3, 3), (8,)])
def test_an_interrupted_and_resumed_run_is_the_same_to_the_bit(
    finished, tmp_path, monkeypatch, stops
):
    out = tmp_path / "run"
    for attempt, step in enumerate(stops):
        with monkeypatch.context() as patch:
            _interrupt(patch, step)
            with pytest.raises(TrainingInterruptedError, match=r"saved .*last\.pt"):
                train(_exact_config(), out, resume=attempt > 0, silent=True)
        random.seed(99), np.random.seed(99), torch.manual_seed(99)
    summary = train(_exact_config(), out, resume=True, silent=True)
    reference = finished[0]
    ignored = ("throughput", "epoch_seconds")
    states = []
    for folder in (reference, out):
        state = read_checkpoint(folder / "last.pt")
        for row in state["history"]:
            for time_key in TIMES:
                row.pop(time_key)
        states.append({key: value for key, value in state.items() if key not in ignored})
    assert_same_state(*states)
    assert_same_state(read_checkpoint(reference / "best.pt"), read_checkpoint(out / "best.pt"))
    assert summary["test_accuracy"] == finished[1]["test_accuracy"]


def test_different_seeds_give_different_weights(finished, tmp_path):
    train(_exact_config(seed=1), tmp_path / "run", silent=True)
    first = read_checkpoint(finished[0] / "last.pt")["state_dict"]
    second = read_checkpoint(tmp_path / "run" / "last.pt")["state_dict"]
    assert not torch.equal(first["head.weight"], second["head.weight"])


def test_resuming_a_finished_run_leaves_it_alone(finished, monkeypatch, capsys):
    monkeypatch.setattr(Trainer, "run", lambda *_: pytest.fail("trained again"))
    assert train(_exact_config(), finished[0], resume=True) == finished[1]
    assert "finished already" in capsys.readouterr().out


def test_a_folder_with_a_run_is_never_overwritten(finished):
    before = {path: path.read_bytes() for path in finished[0].iterdir()}
    with pytest.raises(UsageError, match="already holds a run: continue it with --resume"):
        train(_exact_config(), finished[0], silent=True)
    assert {path: path.read_bytes() for path in finished[0].iterdir()} == before


def test_resuming_with_other_settings_is_refused_but_for_where_it_runs(finished):
    with pytest.raises(UsageError, match="has epochs 2, not 3"):
        train(_exact_config(epochs=3), finished[0], resume=True, silent=True)
    with pytest.raises(UsageError, match=r"has optimizer\.lr 0\.01, not 0\.02"):
        train(_exact_config(optimizer__lr=0.02), finished[0], resume=True, silent=True)
    with pytest.raises(UsageError, match="has seed 0, not 1"):
        train(_exact_config(seed=1), finished[0], resume=True, silent=True)
    assert train(_exact_config(log_interval=7), finished[0], resume=True, silent=True)


def test_a_run_that_was_cut_off_before_its_first_checkpoint_starts_again(finished, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create(_exact_config())
    summary = train(_exact_config(), folder.path, resume=True, silent=True)
    assert summary["test_accuracy"] == finished[1]["test_accuracy"]


# Folders that are not what they were


@pytest.fixture
def stopped(finished, tmp_path):
    """A copy of the finished run that has not come to its end."""
    shutil.copytree(finished[0], tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    folder.summary.unlink()
    return folder


def _resumed(capsys, folder: RunFolder) -> str:
    """The one line with which resuming a run is refused."""
    assert main(["train", "--resume", "--out", str(folder.path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def _state_of_another_seed(folder: RunFolder) -> None:
    state = read_checkpoint(folder.last)
    state["config"]["seed"] = 5
    torch.save(state, folder.last)


def _state_of_another_model(folder: RunFolder) -> None:
    state = read_checkpoint(folder.last)
    state["state_dict"] = ConvMixer(16, 1, 3, 1, 10, in_chans=1).state_dict()
    torch.save(state, folder.last)


def _state_of_more_images(folder: RunFolder) -> None:
    torch.save(read_checkpoint(folder.last) | {"step": 9}, folder.last)


def _edit(name: str, before: str, after: str):
    def edit(folder: RunFolder) -> None:
        path = folder.path / name
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after))

    return edit


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shutil.copy(f.best, f.last), r"last\.pt is not the saved state of a run"),
        (
            lambda f: torch.save(read_checkpoint(f.best)["state_dict"], f.last),
            r"last\.pt is not the saved state of a run, .* --initial_checkpoint",
        ),
        (lambda f: torch.save([1], f.last), r"last\.pt: holds a list, no state dict"),
        (_state_of_another_seed, r"last\.pt: this state has seed 5, not 0"),
        (_state_of_another_model, r"last\.pt does not fit this run \(.*size mismatch"),
        (_state_of_more_images, r"after step 9 of an epoch, which now has 4: the images are not"),
        (_edit("config.yaml", "dim: 8", "dim: 16"), r"last\.pt: this state has model\.dim 8, not "),
        (_edit("config.yaml", "epochs: 2", "epochs: 3"), r"this state has epochs 2, not 3"),
        (_edit("config.yaml", "epochs: 2", "epochs: 2\nepochs: 3"), "line 6: epochs stands twice"),
        (_edit("config.yaml", "epochs: 2", "epochs: two"), r"config\.yaml: epochs: expected a "),
        (_edit("config.yaml", "dim: 8", "dim: [8"), r"config\.yaml is not valid YAML, line "),
        (lambda f: f.config.write_bytes(b"\xff\xfe"), r"config\.yaml is not valid YAML"),
        (lambda f: f.config.write_text(""), r"config\.yaml holds no settings"),
        (lambda f: (f.last.unlink(), f.last.mkdir()), r"last\.pt: is a folder"),
        (lambda f: (f.config.unlink(), f.config.mkdir()), r"cannot read .*config\.yaml: Is a dir"),
        (lambda f: f.summary.mkdir(), r"summary\.json: Is a directory"),
        (lambda f: f.summary.write_text("{"), r"summary\.json is damaged .* remove it, and "),
        (lambda f: f.summary.write_text("[1]"), r"summary\.json is damaged"),
        (lambda f: f.summary.write_text("{}"), r"summary\.json is damaged"),
        (lambda f: f.summary.write_text('{"test_accuracy": "x"}'), r"summary\.json is damaged"),
        (lambda f: f.summary.write_bytes(b"\xff"), r"summary\.json is damaged"),
        (lambda f: (f.best.unlink(), f.best.mkdir()), r"best\.pt: is a folder"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_as_the_run_left_it_is_named(stopped, capsys, spoil, message):
    spoil(stopped)
    assert re.search(message, _resumed(capsys, stopped))


@pytest.mark.parametrize(
    "content",
    [
        b"epoch\n1",
        b"epoch,train_loss\n1,2,3,4",
        b"epoch,train_loss\n1,two",
        b"epoch\n\xff",
        b"\0\n1",
    ],
)
def test_damaged_metrics_are_named(tmp_path, content):
    folder = RunFolder(tmp_path)
    folder.metrics.write_bytes(content)
    with pytest.raises(UsageError, match=r"metrics\.csv is damaged"):
        folder.load_metrics()


def test_other_folders_beside_the_seeds_are_left_alone(tmp_path):
    for name in ("seed-0", "seed-x", "seed-²", "seed-", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    assert RunFolder(tmp_path).seeds == [0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_log_on_a_full_disk_is_named():
    console = Console(Path("/dev/full"))
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        console.line("line")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), None])
def test_a_full_disk_names_the_file(tmp_path, error):
    """torch.save ends with a RuntimeError, raised while it handles the one of the system."""
    message = r"No space left on device: '.*last\.pt'"
    with pytest.raises(OSError, match=message), replacing(tmp_path / "last.pt") as file:
        if error is not None:
            raise error
        file.write(b"half")
        try:
            raise OSError(28, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 704 vs 598")
    assert list(tmp_path.iterdir()) == []


def _trainer(out, **changes) -> Trainer:
    config = _exact_config(**changes)
    splits = load_splits(config.data, 1)
    return Trainer(config, splits, RunFolder(out), Processes(CPU), Console(silent=True))


def test_only_training_images_are_augmented(tmp_path):
    trainer = _trainer(tmp_path)
    crop, normalize = evaluation_crop(trainer.config), Normalization(trainer.config.data, CPU)

    def prepare(image):
        return normalize(crop(image))

    for loader, images in (
        (trainer.validation_loader, trainer.splits.validation),
        (trainer.test_loader, trainer.splits.test),
    ):
        whole = torch.cat([batch for batch, _ in loader])
        expected = torch.stack([prepare(images.image(i)) for i in range(len(images.labels))])
        assert torch.equal(whole, expected)
    train = trainer.splits.train
    plain = {tuple(prepare(train.image(i)).flatten().tolist()) for i in range(len(train.labels))}
    augmented, _ = next(trainer.loader.epoch(0))
    assert sum(tuple(image.flatten().tolist()) in plain for image in augmented) < 40


def test_a_continued_run_carries_on_its_counts(finished, tmp_path):
    trainer, state = _trainer(tmp_path), read_checkpoint(finished[0] / "last.pt")
    trainer.load_state(state | {"throughput": {"images": 70, "seconds": 2.0}, "epoch_seconds": 5.0})
    assert trainer.throughput.mean == 35.0 and trainer.epoch_seconds == 5.0


def test_the_seconds_of_an_epoch_end_when_the_device_is_done(tmp_path, monkeypatch):
    clock = {"now": 0.0}

    def step(self, *_):
        clock["now"] += 1.0
        self.sums += torch.tensor([320.0, 1.0, 0.0])
        return 0.0

    def wait(_):
        clock["now"] += 10.0

    monkeypatch.setattr(trainer_module, "time", SimpleNamespace(perf_counter=lambda: clock["now"]))
    monkeypatch.setattr(trainer_module, "synchronize", wait)
    monkeypatch.setattr(Stepper, "step", step)
    trainer = _trainer(tmp_path)
    trainer.run(StopRequest())
    assert [row["seconds"] for row in trainer.history] == [14.0, 14.0]
    assert [row["images_per_second"] for row in trainer.history] == [4 * 320 / 14.0] * 2


def test_a_run_starts_from_a_checkpoint_and_continues_without_it(finished, tmp_path, monkeypatch):
    weights = tmp_path / "weights.pt"
    weights.write_bytes((finished[0] / "best.pt").read_bytes())
    config = tiny_config(initial_checkpoint=str(weights), optimizer__lr=0.0, epochs=2)
    with monkeypatch.context() as patch:
        _interrupt(patch, 2)
        with pytest.raises(TrainingInterruptedError):
            train(config, tmp_path / "run", silent=True)
    weights.unlink()
    train(config, tmp_path / "run", resume=True, silent=True)
    first, last = (read_checkpoint(run / "best.pt") for run in (finished[0], tmp_path / "run"))
    assert torch.equal(first["state_dict"]["head.weight"], last["state_dict"]["head.weight"])
    with pytest.raises(FileNotFoundError, match=r"weights\.pt: no such file"):
        train(config, tmp_path / "other", silent=True)
    assert not (tmp_path / "other").exists()


def test_training_learns_the_digits(tmp_path):
    config = tiny_config(**PLAIN, epochs=5, batch_size=64, model__dim=32, model__depth=2)
    config.model.norm, config.augment.rand_augment = "batch", None
    summary = train(config, tmp_path / "run", silent=True)
    assert summary["test_accuracy"] > 75
    rows = RunFolder(tmp_path / "run").load_metrics()
    assert rows[-1]["train_loss"] < 0.8 * rows[0]["train_loss"]


@pytest.mark.parametrize(
    "recipe", ["cifar10", "cifar10-quick", "columbia", "imagenet", "imagenet-a1"]
)
def test_every_recipe_trains_on_images_of_its_kind(recipe, tmp_path):
    changes = {
        "epochs": 1, "batch_size": 8, "device": "cpu", "workers": 0, "dim": 8, "depth": 1,
        "kernel_size": 3, "folder": str(tmp_path / "images"),
    }  # fmt: skip
    if recipe.startswith("imagenet"):
        write_image_folder(tmp_path / "images", {"train": 8, "val": 3})
        changes |= {"image_size": 14, "n_classes": 2}
    else:
        write_cifar_batches(tmp_path / "images", training_images=50)
    summary = train(override(load_recipe(recipe), changes), tmp_path / "run", silent=True)
    assert summary["test_images"] == (6 if recipe.startswith("imagenet") else 20)
    (row,) = RunFolder(tmp_path / "run").load_metrics()
    assert math.isfinite(row["train_loss"])
    assert ("validation_accuracy" in row) == (recipe == "columbia")
    assert ("test_accuracy" in row) == (recipe != "columbia")


def test_test_images_are_used_once_after_training(tmp_path, monkeypatch):
    used = []
    original = Trainer.test

    def counted(self):
        used.append(self.epoch)
        return original(self)

    monkeypatch.setattr(Trainer, "test", counted)
    train(tiny_config(select="best"), tmp_path / "a", silent=True)
    assert used == [2]
    train(tiny_config(monitor_test=True), tmp_path / "b", silent=True)
    assert used == [2, 0, 1, 2]


def _script_validation(monkeypatch, accuracies) -> None:
    """Let the epochs have these accuracies on the validation images."""
    values = iter(accuracies)
    original = Trainer._scores

    def scripted(self, loader):
        scores = original(self, loader)
        if loader is self.validation_loader:
            metrics = {"accuracy": next(values)}
            scores = dataclasses.replace(scores, means=scores.means._replace(metrics=metrics))
        return scores

    monkeypatch.setattr(Trainer, "_scores", scripted)


@pytest.mark.parametrize(
    ("select", "accuracies", "chosen"),
    [("best", [50, 90, 90, 80], 3), ("best", [95, 90, 90, 80], 1), ("last", [95, 90, 90, 80], 4)],
)
def test_the_tested_weights_are_those_of_the_chosen_epoch(
    tmp_path, monkeypatch, select, accuracies, chosen
):
    _script_validation(monkeypatch, accuracies)
    tested = []
    original = Trainer.test

    def kept(self):
        tested.append({k: v.clone() for k, v in self.stepper.evaluated.state_dict().items()})
        return original(self)

    monkeypatch.setattr(Trainer, "test", kept)
    summary = train(tiny_config(epochs=4, select=select), tmp_path / "run", silent=True)
    best = read_checkpoint(tmp_path / "run" / "best.pt")
    assert_same_state(tested, [dict(best["state_dict"])])
    assert summary["tested_epoch"] == best["epoch"] == chosen
    assert summary["validation_accuracy"] == best["validation_accuracy"] == accuracies[chosen - 1]


def test_a_resumed_run_remembers_its_best_epoch(tmp_path, monkeypatch):
    _script_validation(monkeypatch, [95, 90])
    config = tiny_config(select="best")
    with monkeypatch.context() as patch:
        _interrupt(patch, 6)
        with pytest.raises(TrainingInterruptedError):
            train(config, tmp_path / "run", silent=True)
    summary = train(config, tmp_path / "run", resume=True, silent=True)
    assert summary["tested_epoch"] == read_checkpoint(tmp_path / "run" / "best.pt")["epoch"] == 1


def test_the_moving_average_is_what_is_tested(finished):
    last, best = (read_checkpoint(finished[0] / name) for name in ("last.pt", "best.pt"))
    assert best["epoch"] == 2
    assert_same_state(best["state_dict"], last["state_dict_ema"])
    assert not torch.equal(best["state_dict"]["head.weight"], last["state_dict"]["head.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"select": "best", "data__validation_fraction": 0}, "needs validation images"),
        ({"model__n_classes": 7}, "set --model.n_classes 10"),
        ({"batch_size": 5000}, "exceeds the 1295 training images"),
        ({"batch_size": 33}, "choose an even batch_size"),
    ],
)
def test_settings_that_do_not_fit_the_images_are_refused(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        train(tiny_config(**changes), tmp_path / "run", silent=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "world", "least"),
    [
        ({"batch_size": 1}, 1, 2),
        ({"batch_size": 4, "accumulation_steps": 4}, 1, 8),
        ({"batch_size": 4, "accumulation_steps": 2}, 2, 8),
        ({"batch_size": 3}, 3, 6),
        ({"batch_size": 1, "model.stem": "resnet"}, 1, 2),
    ],
)
def test_one_value_per_channel_is_refused(changes, world, least, tmp_path):
    write_image_folder(tmp_path, {"train": 4, "test": 1})
    changes = {"data.image_size": 7, "mixup": 0, "cutmix": 0} | changes
    config = override(tiny_images_config(tmp_path), changes)
    at_once = config.batch_size // config.accumulation_steps // world
    message = f"one value per channel.* {world} processes, set batch_size to {least} or more"
    with pytest.raises(UsageError, match=message):
        check_values_per_channel(config, at_once, world)
    if world == 1:
        with pytest.raises(UsageError, match=message):
            train(config, tmp_path / "run", silent=True)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 1, "data.image_size": 8},
        {"batch_size": 2},
        {"batch_size": 1, "norm": "layer"},
        {"batch_size": 4, "accumulation_steps": 2},
    ],
)
def test_few_values_per_channel_are_trained_on(changes, tmp_path):
    write_image_folder(tmp_path, {"train": 4, "test": 1})
    changes = {"data.image_size": 4, "mixup": 0, "cutmix": 0} | changes
    train(override(tiny_images_config(tmp_path), changes), tmp_path / "run", silent=True)
    state = read_checkpoint(tmp_path / "run" / "last.pt")["state_dict"]
    assert all(tensor.isfinite().all() for tensor in state.values())


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (
            [math.nan] * 10,
            "weights or the state of the optimizer became infinite or nan in epoch 2",
        ),
        ([3e38] + [-3e38] * 9, "the loss on held-out images became inf in epoch 2"),
    ],
)
def test_weights_that_went_bad_are_neither_scored_nor_saved(tmp_path, monkeypatch, spoilt, message):
    """The weights overflow in the last step, after which no loss of training tells of it."""
    original, calls = Stepper.average_statistics, []

    def spoil(self):
        original(self)
        calls.append(None)
        if len(calls) == 2:
            self.model.head.bias.data.copy_(torch.tensor(spoilt))

    monkeypatch.setattr(Stepper, "average_statistics", spoil)
    out = tmp_path / "run"
    with pytest.raises(TrainingDivergedError, match=message):
        train(tiny_config(), out, silent=True)
    assert read_checkpoint(out / "last.pt")["epoch"] == 1
    assert not RunFolder(out).is_finished


def test_a_diverged_run_says_so(tmp_path, capsys):
    options = [*tiny_options(), "--lr", "1e30", "--clip_grad_norm", "0", "--out"]
    assert main(["train", "--recipe", "digits", *options, str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "the loss became" in error and error.count("\n") == 1
    with pytest.raises(TrainingDivergedError):
        train(tiny_config(optimizer__lr=1e30), tmp_path / "again", silent=True)


# Lines, throughput, seeds


def test_lines_tell_loss_speed_rate_and_where_the_results_are(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", "--recipe", "digits", *tiny_options(), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (out / "train.log").read_text().splitlines() == lines
    interval = next(line for line in lines if "step 2/4" in line)
    for word in ("loss ", "images/s ", " now, ", " mean", "lr ", "data "):
        assert word in interval
    assert sum(line.startswith("epoch 2/2  loss") for line in lines) == 1
    accuracy = RunFolder(out).load_summary()["test_accuracy"]
    assert f"test accuracy {accuracy:.2f}%" in lines[-2]
    assert lines[-1] == f"curves: {out / 'curves.png'}"


def test_throughput_leaves_out_the_warm_up_and_the_pauses(monkeypatch):
    clock = {"value": 0.0}
    monkeypatch.setattr("convmixer.training.reporting.time.perf_counter", lambda: clock["value"])
    throughput = Throughput(CPU)
    throughput.start()
    for _ in range(WARMUP_STEPS):
        clock["value"] += 7.0
        throughput.step(10)
    assert throughput.mean is None
    for _ in range(4):
        clock["value"] += 0.5
        throughput.step(10)
    throughput.stop()
    clock["value"] += 100.0
    assert throughput.mean == pytest.approx(40 / 2.0)
    throughput.start()
    clock["value"] += 2.0
    throughput.step(10)
    throughput.stop()
    assert throughput.mean == pytest.approx(50 / 4.0)
    resumed = Throughput(CPU)
    resumed.load_state(throughput.state())
    assert resumed.mean == pytest.approx(50 / 4.0)


def test_several_seeds_have_a_mean_and_a_deviation(tmp_path):
    out = tmp_path / "seeds"
    summary = train_seeds(tiny_config(epochs=1), out, 2, silent=True)
    runs = [RunFolder(out / name).load_summary() for name in ("seed-0", "seed-1")]
    accuracies = [run["test_accuracy"] for run in runs]
    assert [run["seed"] for run in runs] == [0, 1]
    heads = [
        read_checkpoint(out / name / "best.pt")["state_dict"]["head.weight"]
        for name in ("seed-0", "seed-1")
    ]
    assert not torch.equal(*heads)
    assert summary["test_accuracy"] == pytest.approx(np.mean(accuracies))
    assert summary["test_accuracy_deviation"] == pytest.approx(np.std(accuracies, ddof=1))
    assert (out / "curves.png").exists() and RunFolder(out).load_summary() == summary


def test_resumed_seeds_keep_what_is_finished(tmp_path, monkeypatch):
    out, config = tmp_path / "seeds", tiny_config(epochs=1)
    with monkeypatch.context() as patch:
        _interrupt(patch, 6)
        with pytest.raises(TrainingInterruptedError):
            train_seeds(config, out, 2, silent=True)
    before = (out / "seed-0" / "summary.json").stat().st_mtime_ns
    summary = train_seeds(config, out, 2, resume=True, silent=True)
    assert (out / "seed-0" / "summary.json").stat().st_mtime_ns == before
    assert summary["seeds"] == [0, 1]
    with pytest.raises(UsageError, match="already holds a run"):
        train_seeds(config, out, 2, silent=True)


def test_seeds_without_throughput_have_no_mean_throughput():
    run = {"recipe": "r", "data": "d", "parameters": 1, "epochs": 1, "torch": "t", "seed": 4}
    runs = [run | {"test_accuracy": 90.0, "images_per_second": rate} for rate in (None, None, 7.0)]
    assert summarize_seeds(runs[:2])["images_per_second"] is None
    assert summarize_seeds(runs[1:])["images_per_second"] == 7.0


def test_one_seed_is_no_group(tmp_path):
    with pytest.raises(UsageError, match="seeds: expected at least 2, got 1"):
        train_seeds(tiny_config(), tmp_path, 1)


def test_seeds_that_cannot_start_leave_nothing_behind(tmp_path):
    out = tmp_path / "seeds"
    with pytest.raises(UsageError, match="exceeds the 1295 training images"):
        train_seeds(tiny_config(batch_size=5000), out, 2, silent=True)
    assert not out.exists()


def test_a_signal_in_the_test_of_one_run_keeps_the_next_from_starting(tmp_path, monkeypatch):
    original = Trainer.test

    def interrupted(self):
        if self.config.seed == 0:
            signal.raise_signal(signal.SIGTERM)
        return original(self)

    out, config = tmp_path / "seeds", tiny_config(epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "test", interrupted)
        with pytest.raises(TrainingInterruptedError, match="before seed 1"):
            train_seeds(config, out, 2, silent=True)
    assert RunFolder(out / "seed-0").is_finished and not (out / "seed-1").exists()
    with pytest.raises(UsageError, match="holds several seeds: say how many with --seeds N"):
        train(config, out, resume=True, silent=True)
    with pytest.raises(UsageError, match="already holds a run"):
        train(config, out, silent=True)
    assert train_seeds(config, out, 2, resume=True, silent=True)["seeds"] == [0, 1]


def test_the_number_of_threads_is_that_of_the_recipe_during_the_run_alone(tmp_path):
    before = torch.get_num_threads()
    summary = train(tiny_config(epochs=1, threads=before + 1), tmp_path / "run", silent=True)
    assert summary["threads"] == before + 1 and torch.get_num_threads() == before


# Signals and processes


def test_the_first_signal_asks_and_the_second_acts(capfd):
    # A shell starts processes in the background with interrupts ignored.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopRequest() as stop:
            assert not stop.wanted(Processes(CPU))
            signal.raise_signal(signal.SIGINT)
            assert stop.wanted(Processes(CPU)) and stop.interruption("").exit_code == 130
            assert "once more to stop at once" in capfd.readouterr().err
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, inherited)


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def test_a_terminated_process_saves_and_says_how_to_continue(tmp_path, capsys):
    out = tmp_path / "run"
    command = [
        sys.executable, "-m", "convmixer", "train", "--recipe", "digits", *tiny_options(),
        "--epochs", "500", "--workers", "1", "--out", str(out),
    ]  # fmt: skip
    process = subprocess.Popen(
        command,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (out / "last.pt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)  # torchrun, too, signals the processes that load images
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    assert f"Continue with: convmixer train --resume --out {out}" in error
    assert "Traceback" not in error and error.split("\n")[1].startswith("stopping when")
    assert error.count("\n") == 3
    state = read_checkpoint(out / "last.pt")
    assert 0 < state["epoch"] < 500


def test_devices_are_resolved_and_refused():
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(UsageError, match="expected auto, cpu, cuda or cuda:N, got 'gpu'"):
        resolve_device("gpu")
    count = torch.cuda.device_count()
    with pytest.raises(UsageError, match="sees no GPU" if count == 0 else f"there are {count}"):
        resolve_device(f"cuda:{max(count, 1)}")


def test_curves_of_an_interrupted_run_say_so(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "save_curves", lambda *arguments: drawn.append(arguments[3]))
    _interrupt(monkeypatch, 6)
    with pytest.raises(TrainingInterruptedError):
        train(tiny_config(), tmp_path / "run", silent=True)
    assert drawn == [None]
