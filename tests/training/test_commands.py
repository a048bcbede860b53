"""The commands around a trained model, and what a run records of its start."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import types

import matplotlib.image
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from convmixer import ConvMixer
from convmixer.cli import main
from convmixer.config.recipes import load_recipe
from convmixer.model.checkpoints import load_checkpoint
from convmixer.paper import receptive_field
from convmixer.paper.receptive_field import influence, middle_square
from convmixer.paper.variant_settings import recipe_of, variant_fields
from convmixer.training import trackers
from convmixer.training.class_names import class_name_warning, class_names
from convmixer.training.distributed import Processes
from convmixer.training.environment import build_model, numerics
from convmixer.training.evaluation import evaluate
from convmixer.training.prediction import predict
from convmixer.training.provenance import record_start
from convmixer.training.reporting import epoch_line, interval_line
from convmixer.training.runs import train
from convmixer.training.stepper import Stepper
from tests.helpers.training import (
    tiny_config,
    tiny_images_config,
    tiny_options,
    write_image_folder,
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with three digits as images."""
    folder = tmp_path_factory.mktemp("images")
    for number, pixels in enumerate(load_digits().images[:3]):
        Image.fromarray((pixels * 255 / 16).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


def _model(run_folder) -> ConvMixer:
    model = ConvMixer(8, 1, 3, 1, 10, in_chans=1)
    load_checkpoint(model, run_folder / "best.pt")
    return model.eval()


# Predicting


def test_predictions_are_those_of_the_model(run_folder, images, capsys):
    command = ["predict", str(images / "1.png"), str(images / "0.png"), "--device", "cpu"]
    assert main([*command, "--checkpoint", str(run_folder), "--top", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[4]] == [str(images / "1.png"), str(images / "0.png")]
    pixels = torch.from_numpy(np.array(Image.open(images / "0.png"))).float() / 255
    normalised = (pixels - 0.3053) / 0.3761
    probabilities = _model(run_folder)(normalised[None, None]).softmax(1)[0]
    best = probabilities.topk(3)
    expected = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    assert lines[5:] == [f"  {100 * value:5.1f}%  {index}" for value, index in expected]


def test_images_of_a_folder_are_predicted(run_folder, images):
    found = predict(run_folder, [images], top=20)
    assert [each.path for each in found] == [str(images / f"{n}.png") for n in range(3)]
    for each in found:
        assert len(each.classes) == 10
        assert sum(probability for _, probability in each.classes) == pytest.approx(1.0, abs=1e-5)


def test_classes_are_named_by_the_checkpoint(tmp_path, images):
    config = tiny_config(model__n_classes=2)
    state = {"state_dict": ConvMixer(8, 1, 3, 1, 2, in_chans=1).state_dict()}
    torch.save(state | {"class_names": ["cat", "dog"]}, tmp_path / "named.pt")
    (prediction,) = predict(tmp_path / "named.pt", [images / "0.png"], config)
    assert {name for name, _ in prediction.classes} == {"cat", "dog"}


@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"n_classes": 10}, "airplane"),
        ({"n_classes": 1000}, "tench, Tinca tinca"),
        ({"n_classes": 3}, "0"),
    ],
)
def test_classes_without_names_have_those_of_their_images(changes, first):
    names = class_names({}, load_recipe("cifar10", changes))
    assert names[0] == first and len(names) == changes["n_classes"]


def test_mistakes_in_predicting_are_one_line(run_folder, images, tmp_path, capsys):
    (tmp_path / "text.png").write_text("no image")
    for words, message in [
        (["nowhere.png", "--checkpoint", run_folder], "nowhere.png: no such image"),
        ([tmp_path / "text.png", "--checkpoint", run_folder], "cannot read image"),
        ([images], "name weights with --checkpoint, or published ones with --variant"),
        ([images, "--checkpoint", run_folder, "--top", "0"], "--top: expected at least 1, got 0"),
        ([images, "--variant", "convmixer_512_12_ks9_p5"], "no weights of convmixer_512_12"),
    ]:
        assert main(["predict", *map(str, words)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


# Exporting


@pytest.fixture(scope="module")
def exported(run_folder, tmp_path_factory):
    """The model of the run as a file of each format."""
    folder = tmp_path_factory.mktemp("exported")
    for suffix in ("safetensors", "pt2", "onnx"):
        command = ["export", "--checkpoint", str(run_folder), "--out"]
        assert main([*command, str(folder / f"model.{suffix}")]) == 0
    return folder


def test_exported_weights_have_the_names_of_timm(exported, run_folder):
    timm = pytest.importorskip("timm")
    safetensors = pytest.importorskip("safetensors")
    model = timm.models.convmixer.ConvMixer(
        8, 1, kernel_size=3, patch_size=1, num_classes=10, in_chans=1
    )
    timm.models.load_checkpoint(model, str(exported / "model.safetensors"))
    image = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(model.eval()(image), _model(run_folder)(image))
    with safetensors.safe_open(exported / "model.safetensors", "pt") as file:
        _check_metadata(file.metadata())


def _check_metadata(metadata) -> None:
    assert metadata["architecture"] == "ConvMixer-8/1" and metadata["image_size"] == "8"
    assert metadata["mean"] == "[0.3053]" and metadata["std"] == "[0.3761]"
    assert metadata["interpolation"] == "bicubic" and metadata["crop_fraction"] == "1.0"
    assert json.loads(metadata["class_names"]) == [str(digit) for digit in range(10)]


def test_exported_programs_tell_their_images_and_classes(exported):
    onnx = pytest.importorskip("onnx")
    names = ("architecture", "image_size", "mean", "std", "interpolation", "crop_fraction")
    metadata = dict.fromkeys((*names, "class_names"), "")
    torch.export.load(exported / "model.pt2", extra_files=metadata)
    _check_metadata(metadata)
    properties = onnx.load(exported / "model.onnx").metadata_props
    _check_metadata({each.key: each.value for each in properties})


@pytest.mark.parametrize("count", [1, 5])
def test_exported_programs_compute_what_the_model_does(exported, run_folder, count):
    reference = pytest.importorskip("onnx.reference")
    batch = torch.randn(count, 1, 8, 8)
    expected = _model(run_folder)(batch)
    program = torch.export.load(exported / "model.pt2")
    assert not any("convmixer_kernels" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(batch), expected)
    evaluator = reference.ReferenceEvaluator(str(exported / "model.onnx"))
    (output,) = evaluator.run(None, {"images": batch.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), expected, atol=1e-4, rtol=1e-4)


def test_mistakes_in_exporting_are_one_line(run_folder, exported, tmp_path, capsys, monkeypatch):
    command = ["export", "--checkpoint", str(run_folder)]
    assert main(command) == 2
    assert "name the file to write with --out" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "model.tflite")]) == 2
    assert "ends in one of .safetensors, .pt2, .onnx" in capsys.readouterr().err
    assert main([*command, "--out", str(exported / "model.onnx")]) == 2
    assert "exists already" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main([*command, "--out", str(tmp_path / "model.onnx")]) == 2
    error = capsys.readouterr().err
    assert "a .onnx file needs the package onnxscript, which is missing" in error
    assert error.count("\n") == 1 and list(tmp_path.iterdir()) == []


# The effective receptive field


def test_the_receptive_field_of_a_convolution_is_its_kernel():
    model = build_model(tiny_config(), torch.device("cpu")).eval()
    shares = influence(model, [(torch.randn(4, 1, 8, 8), torch.zeros(4))], torch.device("cpu"))
    assert shares.shape == (8, 8) and shares.sum() == pytest.approx(1.0)
    # The map has four middle positions, and the kernel is of 3 x 3: it reaches 4 x 4 pixels.
    inside = np.zeros((8, 8), dtype=bool)
    inside[2:6, 2:6] = True
    assert (shares[~inside] == 0).all() and (shares[inside] > 0).all()
    assert middle_square(shares, 1.0) == 4


@pytest.mark.parametrize(("part", "side"), [(0.2, 1), (0.5, 3), (1.0, 5)])
def test_the_middle_square_holds_its_part(part, side):
    shares = np.zeros((5, 5))
    shares[2, 2], shares[1, 1], shares[0, 4] = 0.3, 0.3, 0.4
    assert middle_square(shares, part) == side


def test_the_receptive_field_is_drawn(run_folder, tmp_path, capsys):
    command = ["receptive-field", "--checkpoint", str(run_folder), "--images", "8"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "50% of the influence lies in the middle 4 x 4 pixels" and len(lines) == 3
    assert matplotlib.image.imread(tmp_path / "receptive_field.png").std() > 0
    assert main([*command, "--out", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_receptive_field_is_that_of_the_tested_weights(run_folder, tmp_path, monkeypatch):
    models: list[ConvMixer] = []

    def kept(model, loader, device):
        models.append(model)
        return influence(model, loader, device)

    monkeypatch.setattr(receptive_field, "influence", kept)
    command = ["receptive-field", "--checkpoint", str(run_folder), "--images", "2"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    (model,) = models
    assert not model.training
    expected = _model(run_folder).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


# Settings of a variant


def test_a_variant_brings_its_model_and_epochs(capsys):
    assert main(["train", "--variant", "convmixer_1024_16_ks9_p7", "--show", "--dim", "8"]) == 0
    shown = capsys.readouterr().out
    for line in ("epochs +100 +variant", "model.depth +16 +variant", "model.dim +8 +command line"):
        name, value, origin = line.split(" +")
        (found,) = [each.split() for each in shown.splitlines() if each.split()[0] == name]
        assert found[1] == value and " ".join(found[2:]).startswith(origin)


def test_every_variant_of_tables_1_and_2_has_the_epochs_of_its_procedure():
    assert recipe_of("convmixer_256_8_ks9_p1_cifar10") == "cifar10"
    assert variant_fields("convmixer_768_32", "imagenet")["epochs"] == 300
    assert "epochs" not in variant_fields("convmixer_768_32", "imagenet-a1")
    assert "epochs" not in variant_fields("convmixer_1536_20", "imagenet")


# Records and lines of a run


def test_a_run_records_its_starts(run_folder, tmp_path, monkeypatch):
    out = tmp_path / "run"
    command = ["train", "--recipe", "digits", *tiny_options(), "--epochs", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["convmixer", *command])
    assert main(command) == 0
    (start,) = json.loads((out / "environment.json").read_text())["starts"]
    assert start["command"] == f"convmixer {' '.join(command)}"
    assert start["versions"]["torch"] == torch.__version__
    assert {"convmixer-kernels", "timm", "torchvision", "python"} <= start["versions"].keys()
    record_start(out / "environment.json", Processes(torch.device("cpu"), 0, 3))
    first, second = json.loads((out / "environment.json").read_text())["starts"]
    assert first == start and second["processes"] == 3
    log = (out / "train.log").read_text()
    assert "training accuracy is measured on mixed images" in log
    assert "% (mixed images)" in log and "waiting for data" in log and " GiB  left 0:00:00" in log


def test_lines_tell_what_images_training_accuracy_is_of():
    row = {"epoch": 1, "train_loss": 1.0, "train_accuracy": 50.0, "images_per_second": 9.0}
    assert "train 50.00% (mixed images)" in epoch_line(row, tiny_config())
    unmixed = tiny_config(augment__mixup=0.0, augment__cutmix=0.0)
    assert "train 50.00%  images/s" in epoch_line(row, unmixed)


@pytest.mark.parametrize(("mean", "shown", "left"), [(None, "-", 10), (226.0, "226", 4)])
def test_the_line_of_an_interval(mean, shown, left):
    line = interval_line(
        "epoch 1/2  step 3/4", loss=0.5, images_per_second=90.4, mean=mean, rate=0.01,
        gradient_norm=2.0, waiting=0.25, memory=3 * 2**29, images_left=904,
    )  # fmt: skip
    assert line == (
        f"epoch 1/2  step 3/4  loss 0.5000  images/s 90 now, {shown} mean  lr 0.01  gradient 2  "
        f"waiting for data 25%  memory 1.50 GiB  left 0:00:{left:02}"
    )


def test_the_gradient_norm_is_that_before_clipping():
    norms, clipped = [], []
    for limit in (0.0, 1e-3):
        config = tiny_config(optimizer__clip_grad_norm=limit, augment__mixup=0, augment__cutmix=0)
        torch.manual_seed(0)
        stepper = Stepper(config, Processes(torch.device("cpu")))
        parameters = list(stepper.model.parameters())
        stepper.optimizer.register_step_pre_hook(
            lambda *_, parameters=parameters: clipped.append(
                torch.stack([p.grad.norm() for p in parameters]).norm()
            )
        )
        stepper.step([(torch.randn(8, 1, 8, 8), torch.eye(10)[:8])], 0.01, 0)
        norms.append(stepper.gradient_norm)
    torch.testing.assert_close(norms[1], norms[0])
    torch.testing.assert_close(clipped[0], norms[0])
    assert clipped[1] == pytest.approx(1e-3, rel=1e-3)


# Class names


def test_other_class_names_are_warned_of(tmp_path, capsys):
    write_image_folder(tmp_path / "images", {"train": 2, "test": 2})
    config = tiny_images_config(tmp_path / "images")
    train(config, tmp_path / "run", silent=True)
    capsys.readouterr()
    evaluate(tmp_path / "run", config)
    assert "warning" not in capsys.readouterr().out
    for split in ("train", "test"):
        folder = tmp_path / "images" / split
        (folder / "class1").rename(folder / "dog")
    evaluate(tmp_path / "run", config)
    line = "warning: class 1 is 'dog' in the images and 'class1' in"
    assert line in capsys.readouterr().out
    checkpoint = tmp_path / "run" / "best.pt"
    tuned = tiny_images_config(tmp_path / "images", initial_checkpoint=str(checkpoint))
    train(tuned, tmp_path / "tuned")
    assert line in capsys.readouterr().out
    assert class_name_warning(checkpoint, ["one", "two", "three"]) is None


# Compiling, cuDNN, determinism


def test_the_compiled_model_trains_as_the_other(monkeypatch, tmp_path):
    compile = torch.nn.Module.compile
    compiled = []

    def eagerly(module):
        compiled.append(module)
        compile(module, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", eagerly)
    scores = [
        train(tiny_config(epochs=1, compile=wanted), tmp_path / str(wanted), silent=True)
        for wanted in (False, True)
    ]
    assert len(compiled) == 1
    assert scores[0]["test_loss"] == pytest.approx(scores[1]["test_loss"], rel=1e-4)
    loaded = ConvMixer(8, 1, 3, 1, 10, in_chans=1)
    load_checkpoint(loaded, tmp_path / "True" / "best.pt")


@pytest.mark.parametrize(
    ("changes", "measures", "deterministic"),
    [
        ({}, True, False),
        ({"cudnn_benchmark": False}, False, False),
        ({"deterministic": True}, False, True),
    ],
)
def test_cudnn_does_what_the_settings_say(changes, measures, deterministic):
    before = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    with numerics(tiny_config(**changes)):
        assert torch.backends.cudnn.benchmark == measures
        assert torch.are_deterministic_algorithms_enabled() == deterministic
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert before == (
        torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    )  # fmt: skip


def test_a_run_of_deterministic_algorithms_comes_to_its_end(tmp_path):
    summary = train(tiny_config(epochs=1, deterministic=True), tmp_path / "run", silent=True)
    assert 0 <= summary["test_accuracy"] <= 100


# Trackers


@pytest.fixture
def installed(monkeypatch):
    """Stand-ins for tensorboard and wandb that keep what they are given."""
    given = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            given.append((folder, purge_step))

        def add_scalar(self, name, value, epoch):
            given.append((name, value, epoch))

        def flush(self):
            given.append("flushed")

    class Run:
        def log(self, values, step):
            given.append((values, step))

    def init(**options):
        given.append(options)
        return Run()

    board = types.ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = SummaryWriter
    wandb = types.ModuleType("wandb")
    wandb.init = init
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: name)
    return given


def test_tensorboard_draws_the_metrics(installed, tmp_path):
    out = tmp_path / "run"
    train(tiny_config(epochs=1, tracker="tensorboard"), out, silent=True)
    assert installed[0] == (str(out / "tensorboard"), 1)
    names = {each[0] for each in installed[1:-1]}
    assert {"train/loss", "validation/accuracy", "learning_rate", "seconds"} <= names
    assert {each[2] for each in installed[1:-1]} == {1} and installed[-1] == "flushed"


def test_weights_and_biases_draws_the_metrics(installed, tmp_path):
    out = tmp_path / "run"
    train(tiny_config(epochs=1, tracker="wandb"), out, silent=True)
    options, (values, step) = installed
    assert options["config"]["model"]["dim"] == 8 and options["name"] == "run"
    assert options["id"] == "run-digits-0" and options["resume"] == "allow"
    assert step == 1 and 0 <= values["validation/accuracy"] <= 100


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_tracker_is_one_line(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: None)
    out = tmp_path / "run"
    assert main(["train", "--recipe", "digits", "--tracker", name, "--out", str(out)]) == 2
    assert f"the package {name} is missing: pip install {name}" in capsys.readouterr().err
    assert not out.exists()


# The time of --help


def _processor_seconds(*words: str) -> float:
    """The least processor time of several processes."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_help_takes_little_longer_than_python(words):
    ratio = _processor_seconds("-m", "convmixer", *words) / _processor_seconds("-c", "import json")
    assert ratio <= 4
