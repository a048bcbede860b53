"""The ablations of tables 3 to 8: their settings, their runs and their results."""

from __future__ import annotations

import dataclasses
import signal

import pytest

from convmixer.cli import main
from convmixer.config.fields import FIELDS, get_value, resolve
from convmixer.config.recipes import load_recipe
from convmixer.config.settings import Config
from convmixer.errors import TrainingDivergedError, TrainingInterruptedError, UsageError
from convmixer.model.published import published_rows
from convmixer.model.variants import parameter_count
from convmixer.paper.catalogue import TITLES, find_study
from convmixer.paper.tables import OWN_RECIPES
from convmixer.studies import running
from convmixer.studies.plan import Result, plan
from convmixer.studies.results import markdown
from convmixer.studies.running import run_study
from convmixer.studies.study import folder_name
from tests.helpers.training import finished_run, study_rows, tiny_config, tiny_options

ROWS = {"1": 3, "2": 14, "3": 5, "4": 2, "5": 7, "6": 5, "7": 10, "8": 33} | {
    "columbia-1": 1, "columbia-2": 4, "columbia-3": 3, "columbia-4": 5, "columbia-figure-2": 5,
}  # fmt: skip
SAME_AS_ANOTHER = {"8": 1, "columbia-4": 2}
"""Table 8 prints one model twice; Columbia's table IV its baseline thrice."""
SEVEN = find_study("7")
BASELINE, RELU = "baseline", "relu-for-gelu"


def _differences(first, second) -> dict[str, object]:
    """Fields of `first` that differ from `second`."""
    names = [name for name in FIELDS if get_value(first, name) != get_value(second, name)]
    return {name: get_value(first, name) for name in names}


@pytest.mark.parametrize(("table", "count"), ROWS.items())
def test_every_table_has_its_rows_with_names_of_their_own(table, count):
    study = find_study(table)
    results = plan(study, study.base(load_recipe(str(study.own_recipe)), {}))
    assert len(results) == count
    assert sum(result.twin for result in results) == SAME_AS_ANOTHER.get(table, 0)
    names = [folder_name(result.label) for result in results if not result.twin]
    assert len(set(names)) == len(names)


def test_table_7_changes_one_thing_in_each_row():
    recipe = load_recipe("cifar10")
    changes = [_differences(each, recipe) for each in _settings("7", recipe)]
    assert changes == [
        {},
        {"model.residual": "none"},
        {"model.residual": "both"},
        {"model.norm": "layer"},
        {"model.activation": "relu"},
        {"augment.mixup": 0.0, "augment.cutmix": 0.0},
        {"augment.random_erasing": 0.0},
        {"augment.rand_augment": None},
        {"augment.scale": [1.0, 1.0], "augment.ratio": [1.0, 1.0]},
        {"optimizer.clip_grad_norm": 0.0},
    ]
    accuracies = [row.reported[0] for row in SEVEN.rows]
    assert accuracies == [95.88, 95.57, 94.78, 94.44, 95.51, 95.92, 95.24, 92.86, 86.24, 86.33]


def test_table_8_has_the_models_and_weight_decay_of_the_paper():
    settings = _settings("8", load_recipe("cifar10"))
    counts = [
        parameter_count(m.dim, m.depth, m.kernel_size, m.patch_size, 10)
        for m in (each.model for each in settings)
    ]
    assert [round(count / 1000) for count in counts[:9]] == [
        103, 205, 306, 338, 672, 1006, 1339, 1673, 559
    ]  # fmt: skip
    assert [each.optimizer.weight_decay for each in settings[18:23]] == [
        0.1,
        0.01,
        1e-3,
        1e-4,
        1e-5,
    ]
    assert {each.optimizer.weight_decay for each in settings[:18]} == {0.0}


def _settings(table: str, recipe: Config, **overrides) -> list[Config]:
    """The settings of every row; `__` in a name stands for the dot."""
    ablation = find_study(table)
    base = ablation.base(recipe, {k.replace("__", "."): v for k, v in overrides.items()})
    return [ablation.settings(row, base) for row in ablation.rows]


def test_tables_of_imagenet_have_the_models_of_the_paper_on_their_own_recipe():
    recipe = load_recipe("imagenet-a1")
    models = [each.model for each in _settings("5", recipe)]
    assert {(m.dim, m.patch_size) for m in models} == {(512, 7)}
    assert [(m.depth, m.kernel_size, m.stacked) for m in models] == [
        (12, 7, 1), (12, 15, 1), (12, 9, 1), (12, 3, 1), (14, 3, 1), (12, 3, 3), (36, 3, 1)
    ]  # fmt: skip
    stems = [each.model for each in _settings("4", recipe)]
    assert [(m.stem, m.patch_size, m.dim) for m in stems] == [
        ("resnet", 12, 512), ("patch", 12, 512)
    ]  # fmt: skip


@pytest.mark.parametrize("table", [str(number) for number in OWN_RECIPES])
def test_the_own_recipe_of_a_table_has_the_architectures_as_printed(table):
    printed = [
        dataclasses.asdict(a) for a, result in published_rows() if str(result.table) == table
    ]
    settings = _settings(table, load_recipe(OWN_RECIPES[int(table)]))
    for each, architecture in zip(settings, printed, strict=True):
        assert {name: getattr(each.model, name) for name in architecture} == architecture


def test_table_2_has_the_epochs_and_the_two_procedures_of_the_paper():
    settings = _settings("2", load_recipe("imagenet"))
    assert [each.epochs for each in settings] == [
        150, 150, 150, 150, 150, 150, 150, 300, 100, 90, 90, 90, 300, 150
    ]  # fmt: skip
    starred = [0, 2, 5, 6]
    a1 = load_recipe("imagenet-a1")
    for number, each in enumerate(settings):
        expected = a1 if number in starred else load_recipe("imagenet")
        assert (each.augment, each.optimizer) == (expected.augment, expected.optimizer), number


def test_columbia_has_the_settings_of_its_text():
    recipe = load_recipe("columbia")
    assert [_differences(each, recipe) for each in _settings("columbia-2", recipe)] == [
        {"model.kernel_size": 3}, {"model.kernel_size": 5}, {"model.kernel_size": 7}, {}
    ]  # fmt: skip
    assert [each.model.patch_size for each in _settings("columbia-3", recipe)] == [1, 2, 4]
    sweep = _settings("columbia-figure-2", recipe)
    assert [each.optimizer.lr for each in sweep] == [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
    assert {each.epochs for each in sweep} == {10}


def test_the_own_recipe_of_a_table_keeps_what_is_overridden():
    cifar10, imagenet = load_recipe("cifar10"), load_recipe("imagenet-a1")
    models = [each.model for each in _settings("7", cifar10, dim=8, model__depth=1)]
    assert {(m.dim, m.depth, m.kernel_size, m.n_classes) for m in models} == {(8, 1, 9, 10)}
    assert models[4].activation == "relu"
    models = [each.model for each in _settings("3", imagenet, dim=1536, n_classes=3)]
    assert {(m.dim, m.depth, m.n_classes) for m in models} == {(1536, 12, 3)}
    assert [m.patch_size for m in models] == [5, 7, 9, 12, 16]
    models = [each.model for each in _settings("8", cifar10, dim=128)]
    assert [(m.dim, m.depth, m.kernel_size) for m in models[:2]] == [(64, 4, 8), (64, 8, 8)]


@pytest.mark.parametrize(
    ("table", "name"),
    [("5", "kernel-size"), ("7", "norm"), ("8", "weight_decay"), ("4", "model.stem")],
)
def test_what_every_row_sets_cannot_be_overridden(table, name):
    with pytest.raises(UsageError, match=f"table {table} sets it in every row"):
        find_study(table).base(tiny_config(), {name: get_value(tiny_config(), resolve(name))})


def test_another_recipe_keeps_its_model_but_for_what_the_table_varies():
    recipe = tiny_config(model__dim=64, model__depth=4, model__kernel_size=5)
    models = [each.model for each in _settings("8", recipe)[:9]]
    assert [(m.dim, m.depth, m.kernel_size) for m in models] == [
        (32, 2, 8), (32, 4, 8), (32, 6, 8), (64, 2, 8), (64, 4, 8), (64, 6, 8), (64, 8, 8),
        (64, 10, 8), (64, 4, 3),
    ]  # fmt: skip
    assert _differences(_settings("7", recipe)[0], recipe) == {}
    stems = [each.model for each in _settings("4", recipe)]
    assert [(m.stem, m.patch_size, m.dim) for m in stems] == [("resnet", 2, 64), ("patch", 2, 64)]


@pytest.mark.parametrize("table", TITLES)
@pytest.mark.parametrize("recipe", ["digits", "own"])
def test_every_row_can_be_planned(table, recipe):
    ablation = find_study(table)
    config = load_recipe(ablation.own_recipe if recipe == "own" else recipe)
    results = plan(ablation, ablation.base(config, {}))
    assert len(results) == ROWS[table]
    assert all(result.config is not None for result in results)


def test_rows_that_do_not_fit_the_images_say_why():
    results = plan(find_study("8"), tiny_config(model__patch_size=2))
    by_name = {folder_name(result.label): result for result in results}
    large = by_name["256-8-patch-8-kernel-9-decay-0"]
    assert large.config is None
    assert large.note == "not run: model.patch_size 16 exceeds data.image_size 8"


def test_unknown_rows_and_tables_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"table 7 has no row 'baselin' .did you mean 'baseline'"):
        run_study(SEVEN, tiny_config(), tmp_path, labels=["baselin"])
    with pytest.raises(UsageError, match=r"table: expected one of 1, 2, .*, got columbia-5"):
        find_study("columbia-5")


def test_an_ablation_writes_its_results_and_skips_what_is_finished(tmp_path, monkeypatch):
    out = tmp_path / "table"
    command = [
        "ablate", "--table", "7", "--recipe", "digits", *tiny_options(), "--epochs", "1",
        "--seeds", "2", "--rows", f"{BASELINE},{RELU}", "--out", str(out),
    ]  # fmt: skip
    assert main(command) == 0
    rows = study_rows(out)
    assert [row["row"] for row in rows] == ["baseline", "ReLU for GELU"]
    for row in rows:
        assert row["seeds"] == "2" and row["parameters"] == "306"
        assert 0 <= float(row["test_accuracy"]) <= 100 and row["test_accuracy_deviation"]
        assert row["measured_on"] == "digits" and row["paper_measured_on"] == "CIFAR-10"
    assert rows[1]["changes"] == "model.activation relu" and rows[1]["paper_accuracy"] == "95.51"
    text = (out / "results.md").read_text()
    assert "digits: accuracy (%)" in text and "paper, CIFAR-10 (%)" in text
    assert (out / "results.png").stat().st_size > 5000
    before = (out / "results.csv").read_text()
    monkeypatch.setattr(
        "convmixer.training.trainer.Trainer.run", lambda *_: pytest.fail("trained again")
    )
    assert main(command) == 0
    assert (out / "results.csv").read_text() == before


def test_runs_with_other_settings_are_not_mixed(tmp_path):
    recipe = tiny_config(epochs=1)
    run_study(SEVEN, recipe, tmp_path, labels=[BASELINE], silent=True)
    with pytest.raises(UsageError, match="has epochs 1, not 2"):
        run_study(SEVEN, tiny_config(epochs=2), tmp_path, labels=[BASELINE], silent=True)


def _scripted(monkeypatch, outcomes):
    """Let every run end in the next outcome: an accuracy or an exception."""
    values = iter(outcomes)
    calls = []

    def fake(config, out, *, resume, silent, stop):
        calls.append((out, config.seed, resume))
        outcome = next(values)
        if isinstance(outcome, Exception):
            raise outcome
        return finished_run(config, out, outcome)

    monkeypatch.setattr(running, "train", fake)
    return calls


def test_means_and_deviations_are_those_of_the_seeds(tmp_path, monkeypatch):
    calls = _scripted(monkeypatch, [90.0, 92.0, 94.0, 80.0, 80.0, 83.0])
    results = run_study(
        SEVEN,
        tiny_config(seed=4),
        tmp_path,
        seeds=3,
        labels=[BASELINE, RELU],
        silent=True,
    )
    assert [result.mean for result in results] == [92.0, 81.0]
    assert results[0].deviation == 2.0 and results[1].deviation == pytest.approx(3**0.5)
    assert [seed for _, seed, _ in calls] == [4, 5, 6, 4, 5, 6]
    assert calls[1][0] == tmp_path / "runs" / "baseline" / "seed-5"
    assert "92.00 ± 2.00 | 3 | 7 | 95.88" in (tmp_path / "results.md").read_text()


def test_rows_with_the_same_settings_share_their_runs(tmp_path, monkeypatch):
    calls = _scripted(monkeypatch, [90.0])
    recipe = tiny_config(augment__random_erasing=0.0)
    results = run_study(
        SEVEN, recipe, tmp_path, labels=[BASELINE, "without-random-erasing"], silent=True
    )
    assert len(calls) == 1
    assert results[1].accuracies == [90.0] and results[1].note == "same settings as 'baseline'"


def test_a_diverged_seed_is_noted_and_the_others_go_on(tmp_path, monkeypatch):
    _scripted(monkeypatch, [TrainingDivergedError("the loss became nan"), 85.0, 88.0, 89.0])
    results = run_study(
        SEVEN, tiny_config(), tmp_path, seeds=2, labels=[BASELINE, RELU], silent=True
    )
    assert results[0].accuracies == [85.0] and "seed 0: the loss became nan" in results[0].note
    assert results[1].accuracies == [88.0, 89.0]
    assert study_rows(tmp_path)[0]["seeds"] == "1"


def test_results_are_written_after_every_row(tmp_path, monkeypatch):
    _scripted(monkeypatch, [90.0, TrainingInterruptedError("saved", 2)])
    with pytest.raises(TrainingInterruptedError):
        run_study(SEVEN, tiny_config(), tmp_path, labels=[BASELINE, RELU], silent=True)
    assert [row["row"] for row in study_rows(tmp_path)] == ["baseline"]


def test_a_signal_at_the_end_of_a_run_keeps_the_next_from_starting(tmp_path, monkeypatch):
    runs: list[int] = []

    def interrupted(config, out, **_):
        runs.append(config.seed)
        if len(runs) == 1:
            signal.raise_signal(signal.SIGTERM)
        return finished_run(config, out, 90.0)

    monkeypatch.setattr(running, "train", interrupted)
    with pytest.raises(TrainingInterruptedError, match="before row 'ReLU for GELU', seed 0"):
        run_study(SEVEN, tiny_config(), tmp_path, labels=[BASELINE, RELU], silent=True)
    assert [row["test_accuracy"] for row in study_rows(tmp_path)] == ["90.000"]


def test_options_of_the_model_reach_the_runs_of_the_own_recipe(tmp_path, monkeypatch):
    trained = []

    def kept(config, out, **_):
        trained.append(config.model)
        return finished_run(config, out, 90.0)

    monkeypatch.setattr(running, "train", kept)
    command = ["ablate", "--table", "7", "--rows", f"{BASELINE},{RELU}", "--dim", "8"]
    assert main([*command, "--depth", "1", "--out", str(tmp_path)]) == 0
    assert [(m.dim, m.depth, m.activation) for m in trained] == [(8, 1, "gelu"), (8, 1, "relu")]


def test_an_interruption_tells_the_same_command(tmp_path, monkeypatch, capsys):
    _scripted(monkeypatch, [TrainingInterruptedError("stopped; saved x", 15)])
    command = ["ablate", "--table", "7", "--recipe", "digits", "--out", str(tmp_path)]
    assert main(command) == 143
    error = capsys.readouterr().err
    assert error == f"stopped; saved x. Continue with: convmixer {' '.join(command)}\n"


def test_the_list_shows_tables_andstudy_rows(capsys):
    assert main(["ablate", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(TITLES)
    assert main(["ablate", "--list", "--table", "7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11 and lines[1].split() == ["baseline", "the", "paper", "95.88%"]
    assert main(["ablate", "--list", "--table", "3", "--recipe", "mnist"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [f"patch-{p}" for p in (3, 4, 5, 7, 9)]
    assert main(["ablate"]) == 2
    assert "name a table with --table" in capsys.readouterr().err


def test_rows_that_were_not_run_have_no_accuracy():
    ablation = SEVEN
    text = markdown(
        ablation, tiny_config(), [Result(ablation.rows[0], "baseline", None, note="not run: x")]
    )
    assert "| baseline | - | 0 | - | 95.88 | not run: x |" in text
