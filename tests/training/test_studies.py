"""Sweeps and what all studies share: rows of earlier calls, lines over fields, noise."""

from __future__ import annotations

import matplotlib.image
import pytest

from convmixer.cli import main
from convmixer.config.fields import override
from convmixer.errors import UsageError
from convmixer.model.variants import parameter_count
from convmixer.paper.catalogue import find_study
from convmixer.studies import lines, pictures, running
from convmixer.studies.plan import plan
from convmixer.studies.results import heading, noise
from convmixer.studies.running import run_study
from convmixer.studies.sweeps import parse_sweep, sweep_study
from convmixer.training import plots
from tests.helpers.training import finished_run, study_rows, tiny_config, tiny_options

ACCURACIES = {3: 80.0, 5: 85.0, 7: 90.0}


@pytest.fixture
def trained(monkeypatch):
    """The settings of every run; its accuracy is that of its kernel size, plus its seed."""
    configs = []

    def fake(config, out, **_):
        configs.append(config)
        accuracy = ACCURACIES.get(config.model.kernel_size, 50.0) + config.seed
        return finished_run(config, out, accuracy)

    monkeypatch.setattr(running, "train", fake)
    return configs


def test_a_sweep_trains_and_compares_the_values(tmp_path, capsys):
    out = tmp_path / "sweep"
    command = [
        "sweep", "kernel_size=5,3,1", "--recipe", "digits", *tiny_options(), "--epochs", "1",
        "--out", str(out),
    ]  # fmt: skip
    command.remove("--model.kernel_size")
    command.remove("3")
    assert main(command) == 0
    rows = study_rows(out)
    assert [row["row"] for row in rows] == ["kernel_size 1", "kernel_size 3", "kernel_size 5"]
    assert [row["changes"] for row in rows] == [
        "model.kernel_size 1", "model.kernel_size 3", ""
    ]  # fmt: skip
    assert {row["study"] for row in rows} == {"sweep of model.kernel_size"}
    assert all(0 <= float(row["test_accuracy"]) <= 100 for row in rows)
    assert "| kernel_size 5 |" in capsys.readouterr().out
    for name in ("results.png", "lines.png", "curves.png"):
        assert matplotlib.image.imread(out / name).std() > 0


def test_rows_of_earlier_calls_stay(tmp_path, trained):
    command = ["sweep", "--recipe", "digits", "--seeds", "2", "--out", str(tmp_path)]
    assert main([*command, "kernel_size=3,7"]) == 0
    assert main([*command, "kernel_size=5"]) == 0
    rows = study_rows(tmp_path)
    assert [row["row"] for row in rows] == ["kernel_size 3", "kernel_size 5", "kernel_size 7"]
    assert [row["test_accuracy"] for row in rows] == ["80.500", "85.500", "90.500"]
    assert [row["seeds"] for row in rows] == ["2"] * 3
    assert [config.model.kernel_size for config in trained] == [3, 3, 7, 7, 5, 5]


def test_rows_of_a_table_come_together_in_one_folder(tmp_path, trained):
    command = ["ablate", "--table", "7", "--recipe", "digits", "--out", str(tmp_path)]
    assert main([*command, "--rows", "relu-for-gelu"]) == 0
    assert main([*command, "--rows", "baseline,without-randaugment"]) == 0
    assert [row["row"] for row in study_rows(tmp_path)] == [
        "baseline", "ReLU for GELU", "without RandAugment"
    ]  # fmt: skip
    assert len(trained) == 3


def test_runs_with_other_settings_are_nostudy_rows(tmp_path, trained):
    command = ["ablate", "--table", "7", "--recipe", "digits", "--out", str(tmp_path)]
    assert main([*command, "--rows", "relu-for-gelu", "--epochs", "3"]) == 0
    assert main([*command, "--rows", "baseline"]) == 0
    assert [row["row"] for row in study_rows(tmp_path)] == ["baseline"]


def test_a_folder_holds_one_study(tmp_path, trained, capsys):
    command = ["--recipe", "digits", "--out", str(tmp_path)]
    assert main(["sweep", "kernel_size=3", *command]) == 0
    assert main(["ablate", "--table", "7", "--rows", "baseline", *command]) == 2
    error = capsys.readouterr().err
    assert "holds the results of sweep of model.kernel_size on the recipe digits, not of" in error


def test_combinations_of_several_fields(tmp_path, trained):
    command = ["sweep", "kernel_size=3,5", "optimizer.lr=0.1,0.01", "--recipe", "digits"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    assert [(c.model.kernel_size, c.optimizer.lr) for c in trained] == [
        (3, 0.01), (3, 0.1), (5, 0.01), (5, 0.1)
    ]  # fmt: skip
    assert study_rows(tmp_path)[0]["row"] == "kernel_size 3, lr 0.01"


@pytest.mark.parametrize(
    ("word", "field", "values"),
    [
        ("dim=8,16,8", "model.dim", [8, 16]),
        ("rand-augment=none,rand-m5-n1", "augment.rand_augment", [None, "rand-m5-n1"]),
        ("scale=0.5,1;1,1", "augment.scale", [[0.5, 1.0], [1.0, 1.0]]),
    ],
)
def test_values_are_those_of_the_field(word, field, values):
    assert parse_sweep(word) == (field, values)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kernel_size"], "expected FIELD=VALUE,VALUE,..., got 'kernel_size'"),
        (["kernel_size="], "expected FIELD=VALUE,VALUE,..., got 'kernel_size='"),
        (["kernel_sise=3"], "unknown field 'kernel_sise' (did you mean 'kernel_size'?)"),
        (["kernel_size=3,x"], "model.kernel_size: expected a whole number, got 'x'"),
        (["seed=1,2"], "seed: a sweep does not vary this field: --seeds N trains several"),
        (["dim=8", "model.dim=9"], "a field stands twice"),
        (["dim=8", "--dim", "9"], "model.dim: sweep of model.dim sets it in every row"),
    ],
)
def test_wrong_sweeps_are_one_line(words, message, capsys, tmp_path):
    assert main(["sweep", "--recipe", "digits", "--out", str(tmp_path), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_rows_are_named_by_the_model_that_runs():
    study, recipe = find_study("8"), tiny_config(model__dim=32, model__depth=4)
    results = plan(study, study.base(recipe, {}))
    assert results[0].label == "16/2, patch 1, kernel 8, decay 0"
    assert results[0].row.label(results[0].printed) == "128/4, patch 1, kernel 8, decay 0"


def test_rows_are_chosen_by_the_name_that_runs_or_else_by_that_of_the_publication(
    tmp_path, trained
):
    study, recipe = find_study("3"), tiny_config(model__patch_size=2)
    for label, expected in (("patch-5", "patch 5"), ("patch-7", "patch 2")):
        results = run_study(study, recipe, tmp_path / label, labels=[label], silent=True)
        assert [result.label for result in results] == [expected]
    assert [result.row.label(result.printed) for result in results] == ["patch 7"]


def _points(study, recipe):
    return [(study.settings(row, recipe), (50.0 + i,)) for i, row in enumerate(study.rows)]


def test_lines_keep_the_other_fields_as_they_are():
    axes = {"model.kernel_size": [3, 5, 7], "optimizer.weight_decay": [0.0, 0.1]}
    study = sweep_study(axes)
    found = lines.panels(_points(study, tiny_config()))
    assert list(found) == ["model.kernel_size"]
    first, second = found["model.kernel_size"]
    assert (first.label, first.values) == ("weight_decay 0.0", (3, 5, 7))
    assert first.accuracies == ((50.0,), (52.0,), (54.0,))
    assert second.label == "weight_decay 0.1" and second.accuracies[0] == (51.0,)


def test_table_8_has_a_line_over_each_of_its_fields():
    study = find_study("8")
    results = plan(study, study.base(tiny_config(model__dim=256, model__depth=8), {}))
    found = lines.panels([(result.printed, result.row.reported) for result in results])
    assert list(found) == [
        "model.depth", "model.kernel_size", "model.patch_size", "optimizer.weight_decay"
    ]  # fmt: skip
    depth = {line.label: line.values for line in found["model.depth"]}
    assert depth == {"dim 128": (4, 8, 12), "dim 256": (4, 8, 12, 16, 20)}


def test_lines_show_means_and_deviations(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: figures.append(figure))
    line = lines.Line("", (3.0, 5.0, 300.0), ((90.0, 92.0), (93.0,), (95.0, 95.0)))
    networks = [
        pictures.Network("8/1", 2000.0, (90.0, 92.0)), pictures.Network("8/2", 3000.0, (93.0,))
    ]  # fmt: skip
    source = pictures.Source("measured here", {"model.kernel_size": [line]}, networks)
    assert pictures.save_lines(tmp_path / "lines.png", "a title", [source])
    panel, parameters = figures[0].axes
    drawn = panel.lines[0]
    assert list(drawn.get_xdata()) == [3, 5, 300] and list(drawn.get_ydata()) == [91, 93, 95]
    (bars,) = panel.containers[0].lines[2]
    heights = [segment[1][1] - segment[0][1] for segment in bars.get_segments()]
    assert heights == pytest.approx([2 * 2**0.5, 0, 0])
    assert panel.get_xscale() == "log" and panel.get_xlabel() == "model.kernel_size"
    assert [text.get_text() for text in parameters.texts] == ["8/1", "8/2"]
    assert not pictures.save_lines(tmp_path / "none.png", "", [pictures.Source("", {})])


def test_figure_1_shows_other_networks_beside_convmixers(tmp_path, trained, monkeypatch):
    figures = {}
    for module in (pictures, plots):
        monkeypatch.setattr(module, "save_figure", lambda f, path: figures.update({path.name: f}))
    study = find_study("2")
    run_study(study, tiny_config(), tmp_path, silent=True)
    reported = figures["lines.png"].axes[-1]
    names = {text.get_text() for text in reported.texts}
    assert {"ResNet-152", "DeiT-B", "Swin-S"} <= names
    places = [tuple(line.get_xydata()[0]) for line in reported.lines]
    assert (float(parameter_count(1536, 20, 9, 7, 1000)), 81.37) in places
    assert (86e6, 81.8) in places


def test_noise_is_what_means_have_to_differ_by(tmp_path, trained):
    axes = {"model.kernel_size": [3, 5]}
    results = run_study(sweep_study(axes), tiny_config(), tmp_path, seeds=3, silent=True)
    # Accuracies of the seeds are 0, 1 and 2 above that of the row.
    sentence = noise(results)
    assert "is 1.00 points" in sentence and "less than 1.63 points" in sentence
    assert "rows of 3 seeds on the same 10 test images" in sentence
    assert sentence in (tmp_path / "results.md").read_text()
    single = run_study(sweep_study(axes), tiny_config(), tmp_path / "one", silent=True)
    assert noise(single) == ""


def test_twins_are_drawn_once(tmp_path, trained, monkeypatch):
    figures = {}
    monkeypatch.setattr(pictures, "save_figure", lambda f, path: figures.update({path.name: f}))
    recipe = override(tiny_config(), {"random_erasing": 0.0})
    run_study(find_study("7"), recipe, tmp_path, silent=True)
    labels = [label.get_text() for label in figures["results.png"].axes[0].get_yticklabels()]
    assert "without random erasing" not in labels and "baseline" in labels
    assert "without random erasing" in {row["row"] for row in study_rows(tmp_path)}


def test_headings_begin_with_a_capital():
    assert heading(find_study("7")) == "Table 7: Ablation of ConvMixer-256/8"
    assert heading(find_study("columbia-2")) == "Columbia, table II: Effect of kernel size"


def test_a_study_of_an_unknown_name_is_refused():
    with pytest.raises(UsageError, match="got 9"):
        find_study("9")
