"""The command line, its one-line errors, recipes and their fields."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch
import yaml

from convmixer import ConvMixer
from convmixer.cli import command_line as cli
from convmixer.cli import main
from convmixer.cli.commands import COMMANDS
from convmixer.cli.parser import EVALUATION_FIELDS, build_parser, field_overrides
from convmixer.config.fields import (
    ELSEWHERE,
    FIELDS,
    from_dict,
    get_value,
    override,
    resolve,
    to_dict,
)
from convmixer.config.recipes import load_recipe, load_yaml, recipe_names, to_yaml
from convmixer.config.setting_types import parse_value
from convmixer.config.settings import Config
from convmixer.errors import UsageError, one_line
from convmixer.training.evaluation import checkpoint_config, evaluate
from convmixer.training.run_folder import RunFolder
from tests.helpers.training import TINY, tiny_config, tiny_options, write_image_folder


def _failure(capsys, *words: str) -> str:
    """Run a command that has to fail with exit code 2, and return its one line on stderr."""
    try:
        code = main([str(word) for word in words])
    except SystemExit as stopped:
        code = stopped.code
    captured = capsys.readouterr()
    assert code == 2, captured
    assert captured.err.count("\n") == 1 and "Traceback" not in captured.err
    return captured.err


# Recipes and fields


def test_the_recipes_are_those_of_the_documentation():
    expected = [
        "cifar10", "cifar10-quick", "columbia", "digits", "imagenet", "imagenet-a1", "mnist"
    ]  # fmt: skip
    assert recipe_names() == expected


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_survives_writing_and_reading(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.recipe == name and recipe.description
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(recipe))
    assert load_yaml(path) == recipe
    assert load_recipe(str(path)) == recipe


def test_last_names_of_fields_are_unambiguous():
    last = [name.rsplit(".", 1)[-1] for name in FIELDS]
    assert len(set(last)) == len(last)


@pytest.mark.parametrize("name", ["model.dw_impl", "model.dw-impl", "dw_impl", "dw-impl"])
def test_fields_have_several_spellings(name):
    assert resolve(name) == "model.dw_impl"


@pytest.mark.parametrize(
    ("name", "value", "parsed"),
    [
        ("optimizer.lr", "1e-3", 1e-3),
        ("optimizer.lr", 1, 1.0),
        ("epochs", " 7 ", 7),
        ("augment.scale", "0.5,1", [0.5, 1.0]),
        ("augment.scale", "[0.5, 1]", [0.5, 1.0]),
        ("augment.scale", "0.5 1", [0.5, 1.0]),
        ("gradient_checkpointing", "yes", True),
        ("gradient_checkpointing", False, False),
        ("channels_last", "auto", "auto"),
        ("channels_last", "Yes", "true"),
        ("channels_last", False, "false"),
        ("augment.rand_augment", "none", None),
        ("data.folder", "a folder", "a folder"),
        ("data.workers", None, None),
    ],
)
def test_values_are_parsed_by_the_type_of_the_field(name, value, parsed):
    result = get_value(override(Config(), {name: value}), name)
    assert result == parsed and type(result) is type(parsed)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", "many", "epochs: expected a whole number, got 'many'"),
        ("epochs", 2.5, "epochs: expected a whole number, got 2.5"),
        ("epochs", True, "epochs: expected a whole number, got True"),
        ("epochs", 0, "epochs: expected at least 1, got 0"),
        ("optimizer.lr", "fast", "optimizer.lr: expected a number, got 'fast'"),
        ("optimizer.lr", "nan", "optimizer.lr: expected a number, got 'nan'"),
        ("download", 1, "data.download: expected true or false, got 1"),
        ("channels_last", 1, "channels_last: expected one of auto, true, false, got '1'"),
        ("amp", "fp61", "amp: expected one of none, fp16, bf16, got 'fp61' .*'fp16'"),
        ("augment.flip", 1.5, "augment.flip: expected at most 1.0, got 1.5"),
        ("augment.scale", "0.5", "augment.scale: expected 2 numbers, got 1"),
        ("augment.scale", "0.5,x", "expected numbers separated by commas, got '0.5,x'"),
        ("augment.scale", "0.9,0.5", "expected 0 < from <= to, got 0.9,0.5"),
        ("data.mean", "0.5,0.5", "data.mean has 2 numbers, but model.in_chans is 3"),
        ("data.std", "1,0,1", "data.std must be positive"),
        ("model.in_chans", "2", "data.mean has 3 numbers, but model.in_chans is 2"),
        ("model.patch_size", "300", "model.patch_size 300 exceeds data.image_size 224"),
        ("optimizer.betas", "0.9,1", "optimizer.betas: expected numbers from 0 to below 1"),
        ("optimizer.betas", "-0.1,0.9", "optimizer.betas: expected numbers from 0 to below 1"),
        ("optimizer.warmup_epochs", "5", "warmup_epochs 5.0 needs optimizer.schedule cosine"),
        ("accumulation_steps", "3", "batch_size 128 is not a multiple of accumulation_steps 3"),
        ("batch_sice", "3", "unknown field 'batch_sice' .did you mean 'batch_size'"),
        ("model.kernel_sise", "3", "did you mean 'model.kernel_size'"),
        ("kernel_sise", "3", "did you mean '(model.)?kernel_size'"),
    ],
)
def test_wrong_values_and_names_are_one_line(name, value, message):
    with pytest.raises(UsageError, match=message) as caught:
        override(Config(), {name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochz: 3", "unknown field 'epochz' .did you mean 'epochs'"),
        ("model: {dimm: 3}", "unknown field 'model.dimm' .did you mean 'model.dim'"),
        ("epochs: soon", "epochs: expected a whole number"),
        ("[1, 2]", "holds no settings"),
        ("a: [", "is not valid YAML"),
        ("epochs: 3\nmodel:\n  dim: 8\n  dim: 9", "is not valid YAML, line 4: dim stands twice"),
        ("epochs: 3\nseed: 1\nepochs: 3", "is not valid YAML, line 3: epochs stands twice"),
        ("model: {dim: 8}\nmodel: {depth: 8}", "line 2: model stands twice"),
        ("model.dim: 8\nmodel: {dim: 8}", "field 'model.dim' stands twice"),
        ("optimizer: {learning_rate: 3}", "'optimizer.learning_rate' .did you mean 'optimizer.lr'"),
        ("epochs: 2020-13-45", "is not valid YAML: ValueError"),
        ("lr: &a [*a]", "unknown field 'lr'"),
        ("&a model: &b {dim: *b}", "is not valid YAML: RecursionError"),
        ("[" * 600, "is not valid YAML: RecursionError"),
        ("seed: 1" + "0" * 5000, "is not valid YAML: ValueError"),
        ("optimizer: {lr: 1" + "0" * 400 + "}", "optimizer.lr: expected a number"),
        ("1: 2", "unknown field '1'"),
        ("? [1, 2]\n: 3", "is not valid YAML, line 1: found unhashable key"),
        ("!!python/object:os.system {}", "is not valid YAML, line 1: could not determine a constr"),
        ("\0", "is not valid YAML"),
        ("", "holds no settings"),
        ("batch_size: 7\naccumulation_steps: 2", "batch_size 7 is not a multiple"),
    ],
)
def test_a_wrong_recipe_file_is_named(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=f"mine.yaml.*{message}") as caught:
        load_recipe(str(path))
    assert "\n" not in str(caught.value)


def test_keys_that_are_merged_in_yaml_stand_once(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: &small {dim: 8, depth: 1}\nmodel: {<<: *small, dim: 9}")
    with pytest.raises(UsageError, match="line 2: model stands twice"):
        load_recipe(str(path))
    path.write_text("optimizer: {<<: {lr: 0.5, eps: 0.25}, lr: 0.125}")
    assert (load_recipe(str(path)).optimizer.lr, load_recipe(str(path)).optimizer.eps) == (
        0.125,
        0.25,
    )


def test_settings_come_back_from_plain_values():
    config = load_recipe("columbia")
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert yaml.safe_load(to_yaml(config)) == to_dict(config)


# Mistakes on the command line


def test_a_mistyped_option_names_the_closest(capsys):
    assert "unknown option --epohcs (did you mean '--epochs'?)" in _failure(
        capsys, "train", "--recipe", "digits", "--epohcs", "5"
    )
    assert "did you mean '--model.dim'" in _failure(
        capsys, "train", "--recipe", "digits", "--model.dimm=5"
    )
    assert "unknown argument digits" in _failure(capsys, "train", "digits")
    assert "unknown argument epochs (did you mean '--epochs'?)" in _failure(
        capsys, "train", "epochs=3"
    )


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--learning_rate", "--optimizer.lr"),
        ("--learning-rate=0.1", "--optimizer.lr"),
        ("--optimizer.learning_rate", "--optimizer.lr"),
        ("--LR", "--lr"),
        ("--num_classes", "--model.n_classes"),
        ("--img-size", "--data.image_size"),
        ("--data_dir", "--data.folder"),
        ("--datapath", "--data.folder"),
        ("--wd", "--optimizer.weight_decay"),
        ("--pretrained", "--initial_checkpoint"),
        ("--batchsize", "--batch_size"),
        ("-epochs", "--epochs"),
        ("--kernel", "--kernel_size"),
        ("--momentum", None),
        ("--frobnicate", None),
    ],
)
def test_options_of_other_programs_lead_to_fields(capsys, given, meant):
    error = _failure(capsys, "train", "--recipe", "digits", given, "3")
    hint = "" if meant is None else f" (did you mean '{meant}'?)"
    assert error == f"convmixer train: error: unknown option {given.partition('=')[0]}{hint}\n"


def test_names_of_other_programs_lead_to_fields_that_exist():
    assert set(ELSEWHERE.values()) <= set(FIELDS)
    last_parts = {name.rpartition(".")[2] for name in FIELDS}
    assert not set(ELSEWHERE) & last_parts


@pytest.mark.parametrize(
    "words", [["0.75", "1.0"], ["0.75,1.0"], ["0.75,", "1.0"], ["0.75", ",", "1.0"], ["[0.75, 1]"]]
)
def test_lists_stand_with_commas_or_spaces(words):
    parser, _ = build_parser()
    arguments = parser.parse_args(
        ["train", "--recipe", "digits", "--scale", *words, "--epochs", "3"]
    )
    config = override(load_recipe("digits"), field_overrides(arguments))
    assert config.augment.scale == [0.75, 1.0] and config.epochs == 3


@pytest.mark.parametrize("words", [["0.75", "x"], ["0.75,,1"], [","]])
def test_lists_of_other_words_are_refused(capsys, words):
    error = _failure(capsys, "train", "--recipe", "digits", "--scale", *words)
    assert "augment.scale: expected numbers separated by commas, got" in error


def test_an_unknown_command_is_one_line(capsys):
    assert "invalid choice: 'trian'" in _failure(capsys, "trian")


def test_an_unknown_recipe_names_the_closest(capsys):
    error = _failure(capsys, "train", "--recipe", "digist")
    assert "unknown recipe 'digist' (did you mean 'digits'?); recipes: cifar10," in error


def test_a_missing_recipe_file_is_named(capsys, tmp_path):
    assert "cannot read" in _failure(capsys, "train", "--recipe", tmp_path / "none.yaml")


def test_training_needs_a_recipe(capsys):
    assert "name a recipe with --recipe" in _failure(capsys, "train")
    assert "--resume needs --out FOLDER" in _failure(capsys, "train", "--resume")


def test_a_field_of_the_wrong_type_is_named(capsys):
    error = _failure(capsys, "train", "--recipe", "digits", "--epochs", "lots")
    assert error == "convmixer train: error: epochs: expected a whole number, got 'lots'\n"


def test_missing_images_are_named(capsys, tmp_path):
    error = _failure(
        capsys, "train", "--recipe", "imagenet", "--data", tmp_path, "--out", tmp_path / "run"
    )
    assert f"looked for {tmp_path / 'train'}" in error and not (tmp_path / "run").exists()
    command = ["train", "--recipe", "imagenet", "--out", tmp_path / "run"]
    assert "--data FOLDER" in _failure(capsys, *command)


@pytest.mark.parametrize(("below", "hint"), [("none", ""), ("", ""), ("val", ", ")])
def test_an_evaluation_on_the_wrong_folder_names_what_it_looked_for(
    below, hint, capsys, tmp_path, run_folder
):
    write_image_folder(tmp_path, {"val": 1} if below == "val" else {"train": 1})
    place = tmp_path / below
    error = _failure(
        capsys, "evaluate", "--checkpoint", run_folder / "best.pt", "--source", "images", "--data",
        place,
    )  # fmt: skip
    assert f"looked for {place / 'test'} and {place / 'val'}" in error
    assert str(place / "train") not in error
    assert ("--data names the folder above" in error) == bool(hint)


def test_an_evaluation_of_the_digits_needs_no_folder(capsys, run_folder, tmp_path):
    command = ["evaluate", "--checkpoint", run_folder / "best.pt", "--data", tmp_path]
    assert "the images of data.source digits come with a package: leave it out" in _failure(
        capsys, *command
    )


def test_a_folder_without_weights_is_no_checkpoint(capsys, tmp_path):
    for command in ("evaluate", "plot-weights"):
        assert f"{tmp_path}: is a folder" in _failure(capsys, command, "--checkpoint", tmp_path)


def test_the_settings_of_another_program_are_no_model(capsys, tmp_path):
    state = {"state_dict": ConvMixer(8, 1, 3, 1, 10).state_dict(), "config": {"lr": 0.1}}
    torch.save(state, tmp_path / "weights.pt")
    error = _failure(capsys, "evaluate", "--checkpoint", tmp_path / "weights.pt")
    assert "does not say which model it belongs to" in error


def test_a_model_whose_outputs_are_not_finite_has_no_score(capsys, tmp_path, run_folder):
    state = dict(torch.load(run_folder / "best.pt", weights_only=True))
    state["state_dict"]["head.bias"].copy_(torch.tensor([3e38] + [-3e38] * 9))
    torch.save(state, tmp_path / "weights.pt")
    command = ["evaluate", "--checkpoint", tmp_path / "weights.pt", "--out", tmp_path / "out"]
    assert "the loss of this model is " in _failure(capsys, *command, "--device", "cpu")
    assert list((tmp_path / "out").iterdir()) == []


def test_resuming_without_a_run_is_refused(capsys, tmp_path):
    error = _failure(capsys, "train", "--resume", "--out", tmp_path / "none")
    assert "no run to resume in" in error and "none: it has no config.yaml" in error


def test_a_folder_with_a_run_is_refused(capsys, run_folder):
    error = _failure(capsys, "train", "--recipe", "digits", *tiny_options(), "--out", run_folder)
    assert f"already holds a run: continue it with --resume --out {run_folder}" in error


def test_resuming_another_recipe_is_refused(capsys, run_folder):
    error = _failure(capsys, "train", "--recipe", "columbia", "--resume", "--out", run_folder)
    assert "is of recipe digits" in error


def test_the_number_of_seeds_has_to_fit_the_folder(capsys, run_folder, tmp_path):
    resume = ["train", "--resume", "--out"]
    error = _failure(capsys, *resume, run_folder, "--seeds", "2")
    assert "holds a run of one seed: leave out --seeds" in error
    RunFolder(tmp_path).of_seed(0).create(tiny_config())
    assert "say how many with --seeds N" in _failure(capsys, *resume, tmp_path)
    assert "--seeds: expected at least 1" in _failure(capsys, *resume, tmp_path, "--seeds", "0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_named(capsys, tmp_path):
    options = ["--device", "cuda", "--out", tmp_path / "run"]
    error = _failure(capsys, "train", "--recipe", "digits", *options)
    assert "device: cuda asked for" in error and "sees no GPU" in error


def test_a_model_that_cannot_be_built_is_named(capsys, tmp_path):
    options = [*tiny_options(), "--stem", "resnet", "--out", tmp_path / "run"]
    error = _failure(capsys, "train", "--recipe", "digits", *options)
    assert "model: patch_size: got 1, expected an even size" in error


def test_a_missing_package_names_the_extra(capsys, monkeypatch):
    def missing(_):
        raise ModuleNotFoundError("No module named 'timm.data'", name="timm.data")

    monkeypatch.setattr(cli, "_run", missing)
    assert "timm.data is missing: install the extra 'train'" in _failure(capsys, "train")


def test_other_missing_modules_are_not_hidden(monkeypatch):
    def missing(_):
        raise ModuleNotFoundError("No module named 'convmixer.nothing'", name="convmixer.nothing")

    monkeypatch.setattr(cli, "_run", missing)
    with pytest.raises(ModuleNotFoundError):
        main(["train"])


def test_running_out_of_gpu_memory_says_what_to_change(capsys, monkeypatch):
    def full(_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(COMMANDS, "train", full)
    assert main(["train", "--recipe", "digits"]) == 1
    assert "lower --batch_size" in capsys.readouterr().err


def test_an_error_in_a_worker_process_is_one_line_too():
    error = UsageError(
        "Caught UsageError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
        "last):\n  File x\nconvmixer.errors.UsageError: cannot read image x.png: damaged"
    )
    assert one_line(error) == "cannot read image x.png: damaged"


# Help


@pytest.mark.parametrize("command", ["train", "evaluate", "ablate", "sweep", "plot-weights"])
def test_help_explains_every_option(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and text.startswith(f"usage: convmixer {command}")
    shown = {"plot-weights": (), "evaluate": EVALUATION_FIELDS}.get(command, FIELDS)
    for name in {*shown} - {"recipe", "description"}:
        assert f"--{name}" in text
        assert " ".join(FIELDS[name].metadata["help"].split()[:2]) in " ".join(text.split())


def test_python_m_convmixer():
    command = [sys.executable, "-m", "convmixer", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith("convmixer ")


# Settings with their origin


def _shown(capsys, *options: object) -> dict[str, tuple[str, str]]:
    assert main(["train", "--show", *map(str, options)]) == 0
    lines = [re.split(r" {2,}", line) for line in capsys.readouterr().out.splitlines()]
    return {name: (value, origin) for name, value, origin in lines}


def test_settings_are_shown_with_their_origin(capsys, tmp_path, run_folder):
    out = tmp_path / "run"
    shown = _shown(capsys, "--recipe", "digits", "--dim", 8, "--scale", "0.5,1", "--out", out)
    assert shown.keys() == FIELDS.keys() - {"description"}
    assert shown["model.dim"] == ("8", "command line")
    assert shown["augment.scale"] == ("0.5,1.0", "command line")
    assert shown["augment.ratio"] == ("0.75,1.3333333333333333", "recipe digits")
    assert shown["threads"] == ("1", "recipe digits")
    assert shown["data.folder"] == ("none", "default")
    assert shown["sync_batch_norm"] == ("true", "default")
    assert not out.exists()

    shown = _shown(capsys, "--resume", "--out", run_folder, "--workers", 0)
    assert shown.pop("data.workers") == ("0", "command line")
    assert {origin for _, origin in shown.values()} == {f"the run in {run_folder}"}

    (tmp_path / "own.yaml").write_text(
        "recipe: own\noptimizer: {lr: 0.5}\nmodel: {patch_size: 2}\n"
    )
    shown = _shown(capsys, "--recipe", tmp_path / "own.yaml")
    of_recipe = {name for name, (_, origin) in shown.items() if origin != "default"}
    assert of_recipe == {"recipe", "optimizer.lr", "model.patch_size"}


def test_shown_values_are_options_again(capsys):
    config = load_recipe("imagenet-a1")
    for name, (value, _) in _shown(capsys, "--recipe", "imagenet-a1").items():
        assert parse_value(FIELDS[name], value) == get_value(config, name)


# Evaluation


def test_evaluation_repeats_the_test_of_the_run(run_folder, capsys, tmp_path):
    out = tmp_path / "scores"
    command = ["evaluate", "--checkpoint", str(run_folder / "best.pt"), "--out", str(out)]
    assert main([*command, "--tta", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads((out / "evaluation.json").read_text())
    summary = RunFolder(run_folder).load_summary()
    assert result["test_accuracy"] == pytest.approx(summary["test_accuracy"])
    assert result["test_accuracy_top5"] == pytest.approx(summary["test_accuracy_top5"])
    assert "test_accuracy_with_augmentation" in result
    assert any(f"top-1 {result['test_accuracy']:.2f}%" in line for line in lines)
    confusion = [[int(cell) for cell in line.split()[1:]] for line in lines[-10:]]
    assert sum(map(sum, confusion)) == 359
    diagonal = sum(confusion[label][label] for label in range(10))
    assert 100 * diagonal / 359 == pytest.approx(summary["test_accuracy"])
    assert (out / "confusion.png").exists()
    assert "already holds an evaluation.json" in _failure(capsys, *command)


def test_the_folder_of_a_run_means_its_tested_weights(run_folder, capsys, tmp_path):
    assert main(["evaluate", "--checkpoint", str(run_folder), "--device", "cpu"]) == 0
    assert f"{run_folder / 'best.pt'}: ConvMixer-" in capsys.readouterr().out
    assert evaluate(run_folder, silent=True) == evaluate(run_folder / "best.pt", silent=True)
    out = tmp_path / "pictures"
    assert main(["plot-weights", "--checkpoint", str(run_folder), "--out", str(out)]) == 0
    assert (out / "patch_embedding.png").is_file()


def test_other_splits_are_evaluated(run_folder, capsys):
    command = ["evaluate", "--checkpoint", str(run_folder / "last.pt"), "--device", "cpu"]
    assert main([*command, "--split", "validation"]) == 0
    assert "validation split, 143 images" in capsys.readouterr().out
    error = _failure(capsys, *command, "--split", "validation", "--data.validation_fraction", "0")
    assert "there are no validation images" in error


def test_a_bare_state_dict_needs_a_recipe(run_folder, capsys, tmp_path):
    path = tmp_path / "weights.pt"
    model = ConvMixer(8, 1, 3, 1, 10, in_chans=1)
    torch.save(model.state_dict(), path)
    command = ["evaluate", "--checkpoint", str(path)]
    assert "does not say which model it belongs to" in _failure(capsys, *command)
    options = tiny_options(name for name in TINY if name in EVALUATION_FIELDS)
    assert main([*command, "--recipe", "digits", *options]) == 0
    assert "digits, test split, 359 images" in capsys.readouterr().out
    assert "does not fit the model" in _failure(capsys, *command, "--recipe", "digits")


def test_a_folder_that_cannot_be_written_is_named_before_the_evaluation(
    run_folder, capsys, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("convmixer.training.evaluation.score", lambda *_: pytest.fail("evaluated"))
    command = ["evaluate", "--checkpoint", run_folder / "best.pt", "--device", "cpu", "--out"]
    error = _failure(capsys, *command, tmp_path / "file" / "scores")
    assert f"cannot write to {tmp_path / 'file' / 'scores'}" in error


def test_options_of_training_are_no_options_of_evaluation(run_folder, capsys):
    error = _failure(capsys, "evaluate", "--checkpoint", run_folder / "best.pt", "--lr", "3")
    assert "unknown option --lr" in error


def test_a_named_recipe_takes_the_place_of_the_settings_in_the_checkpoint(run_folder):
    assert checkpoint_config(run_folder / "best.pt") == tiny_config(epochs=1)
    assert checkpoint_config(run_folder / "best.pt", recipe="columbia") == load_recipe("columbia")


@pytest.mark.parametrize("flip", [0.0, 0.5])
def test_augmented_evaluation_mirrors_where_training_did(run_folder, monkeypatch, flip):
    mirrored = []

    def views(flip):
        mirrored.append(flip)
        return lambda images: [images]

    monkeypatch.setattr("convmixer.training.evaluation.augmented_views", views)
    path = run_folder / "best.pt"
    config = checkpoint_config(path, overrides={"augment.flip": flip})
    evaluate(path, config, test_time_augmentation=True, silent=True)
    assert mirrored == [flip > 0]


def test_validation_images_of_imagenet_are_enough(tmp_path, capsys):
    torch.save(ConvMixer(8, 1, 3, 7, 2, dw_impl="torch").state_dict(), tmp_path / "weights.pt")
    write_image_folder(tmp_path / "images", {"val": 3})
    command = [
        "evaluate", "--checkpoint", str(tmp_path / "weights.pt"), "--recipe", "imagenet", "--data",
        str(tmp_path / "images"), "--dim", "8", "--depth", "1", "--kernel_size", "3", "--n_classes",
        "2", "--image_size", "14", "--workers", "0", "--device", "cpu",
    ]  # fmt: skip
    assert main(command) == 0
    assert "imagenet, test split, 6 images" in capsys.readouterr().out


def test_a_variant_of_the_paper_brings_its_architecture_and_images(tmp_path, capsys):
    path, images = tmp_path / "weights.pt", tmp_path / "images"
    torch.save(ConvMixer(256, 8, 9, 8, n_classes=10, dw_impl="torch").state_dict(), path)
    write_image_folder(images, {"train": 1, "test": 1}, classes=10)
    command = [
        "evaluate", "--checkpoint", str(path), "--variant", "convmixer_256_8_ks9_p8_cifar10",
        "--data", str(images), "--workers", "0", "--device", "cpu",
    ]  # fmt: skip
    assert main(command) == 0
    assert "ConvMixer-256/8, 754,954 parameters" in capsys.readouterr().out
    command[4] = "convmixer_256_8_ks9_p7_cifar10"
    assert "did you mean" in _failure(capsys, *command)


@pytest.mark.parametrize("command", ["evaluate", "plot-weights"])
def test_missing_and_damaged_checkpoints_are_named(command, capsys, run_folder, tmp_path):
    missing = tmp_path / "none.pt"
    assert f"{missing}: no such file" in _failure(capsys, command, "--checkpoint", missing)
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes((run_folder / "best.pt").read_bytes()[:3000])
    error = _failure(capsys, command, "--checkpoint", damaged)
    assert f"{damaged}: is damaged" in error


def test_resuming_from_a_damaged_checkpoint_is_refused(capsys, run_folder, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create(tiny_config())
    folder.last.write_bytes((run_folder / "last.pt").read_bytes()[:3000])
    error = _failure(capsys, "train", "--resume", "--out", folder.path)
    assert f"{folder.last}: is damaged" in error


def test_evaluation_checks_the_classes(run_folder, capsys, tmp_path):
    write_image_folder(tmp_path, {"train": 1, "test": 1})
    error = _failure(
        capsys, "evaluate", "--checkpoint", run_folder / "best.pt", "--data.source", "images",
        "--data", tmp_path,
    )  # fmt: skip
    assert "the images have 2 classes (class0, class1), the model has 10" in error


# Weights


def test_weights_are_drawn_beside_the_checkpoint(run_folder, capsys, tmp_path):
    checkpoint = tmp_path / "best.pt"
    checkpoint.write_bytes((run_folder / "best.pt").read_bytes())
    assert main(["plot-weights", "--checkpoint", str(checkpoint)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        str(tmp_path / f"{name}.png") for name in ("patch_embedding", "depthwise_kernels")
    ]
    assert all((tmp_path / line).stat().st_size > 1000 for line in lines)
