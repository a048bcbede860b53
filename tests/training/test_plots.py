"""Pictures: what they show, and that they leave a program's matplotlib alone."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from convmixer import ConvMixer
from convmixer.errors import UsageError
from convmixer.paper import weight_plots
from convmixer.paper.weight_plots import chosen_layers, plot_weights, tile
from convmixer.studies import pictures
from convmixer.training import plots
from tests.helpers.training import tiny_config

HISTORY = [
    {
        "epoch": epoch,
        "learning_rate": 0.01 / epoch,
        "train_loss": 2.0 / epoch,
        "train_accuracy": 50.0 + epoch,
        "validation_loss": 1.5 / epoch,
        "validation_accuracy": 60.0 + epoch,
    }
    for epoch in range(1, 5)
]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, which are also written."""
    kept = []
    for module in (plots, weight_plots, pictures):
        original = module.save_figure

        def keep(figure, path, original=original):
            kept.append(figure)
            original(figure, path)

        monkeypatch.setattr(module, "save_figure", keep)
    return kept


def _lines(axes) -> dict[str, list[float]]:
    return {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}


def test_curves_show_loss_accuracy_and_learning_rate(tmp_path, figures):
    plots.save_curves(tmp_path / "curves.png", tiny_config(), HISTORY, 98.765)
    (figure,) = figures
    assert figure.get_suptitle() == (
        "digits: ConvMixer-8/1 (kernel 3, patch 1), test accuracy 98.77 %"
    )
    loss, accuracy, rate = map(_lines, figure.axes)
    assert loss["train (mixed and augmented images)"] == [row["train_loss"] for row in HISTORY]
    assert loss["validation"] == [row["validation_loss"] for row in HISTORY]
    assert accuracy["validation"] == [row["validation_accuracy"] for row in HISTORY]
    assert rate["learning rate"] == [row["learning_rate"] for row in HISTORY]
    assert all(axes.get_xlabel() == "epoch" and axes.get_ylabel() for axes in figure.axes)
    assert matplotlib.image.imread(tmp_path / "curves.png").shape[:2] == (456, 1440)


def test_curves_without_validation_or_epochs_can_be_drawn(tmp_path, figures):
    rows = [{"epoch": 1, "train_loss": 1.0, "train_accuracy": 5.0, "test_accuracy": 4.0}]
    plots.save_curves(tmp_path / "one.png", tiny_config(), rows, None)
    assert "stopped after epoch 1 of 2" in figures[0].get_suptitle()
    assert _lines(figures[0].axes[1])["test (not used for selection)"] == [4.0]
    plots.save_curves(tmp_path / "none.png", tiny_config(), [], None)
    assert (tmp_path / "none.png").exists()


def test_seeds_share_one_picture(tmp_path, figures):
    summary = {"test_accuracy": 97.0, "test_accuracy_deviation": 0.25}
    histories = {"seed-0": HISTORY, "seed-1": HISTORY[:3]}
    plots.save_seed_curves(tmp_path / "seeds.png", tiny_config(), histories, summary)
    assert figures[0].get_suptitle().endswith("test accuracy 97.00 ± 0.25 % (2 seeds)")
    lines = _lines(figures[0].axes[1])
    assert {name: len(values) for name, values in lines.items()} == {"seed-0": 4, "seed-1": 3}


def test_ablations_keep_measured_and_printed_accuracies_apart(tmp_path, figures):
    pictures.save_rows(
        tmp_path / "ablation.png",
        title="a table",
        labels=["first", "second"],
        accuracies=[[90.0, 92.0], []],
        measured_on="digits, here",
        reported={"the paper, CIFAR-10": [95.0, 96.0]},
        baseline=0,
    )
    measured, printed = figures[0].axes
    titles = [axes.get_title(loc="left") for axes in (measured, printed)]
    assert titles == ["digits, here", "the paper, CIFAR-10, as reported"]
    assert [label.get_text() for label in measured.get_yticklabels()] == ["first", "second"]
    assert {text.get_text() for text in measured.texts} == {"not run"}
    shown = [x for line in measured.get_lines() for x in line.get_xdata()]
    assert {90.0, 91.0, 92.0} <= set(shown) and max(shown) < 93
    assert list(printed.get_lines()[0].get_xdata()) == [95.0, 96.0]
    assert "2 seeds" in measured.get_xlabel()


def test_confusion_counts_stand_in_their_cells(tmp_path, figures):
    confusion = torch.tensor([[5, 0], [2, 3]])
    plots.save_confusion(tmp_path / "confusion.png", confusion, ["cat", "dog"], "title")
    axes = figures[0].axes[0]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "5", (0, 1): "2", (1, 1): "3"}
    shares = np.asarray(axes.images[0].get_array())
    assert np.allclose(shares, [[1.0, 0.0], [0.4, 0.6]])


def test_tiles_stand_in_rows_with_gaps():
    tiles = np.arange(3.0)[:, None, None] * np.ones((3, 6, 6))
    image = tile(tiles, columns=2, background=-1.0)
    assert image.shape == (15, 15)
    assert (image[1:7, 1:7] == 0).all() and (image[1:7, 8:14] == 1).all()
    assert (image[8:14, 1:7] == 2).all() and (image[8:14, 8:14] == -1).all()
    assert (image[[0, 7, 14]] == -1).all() and (image[:, [0, 7, 14]] == -1).all()


def test_small_tiles_are_enlarged():
    image = tile(np.array([[[1.0, 2.0], [3.0, 4.0]]]), columns=1, background=0.0)
    assert image.shape == (8, 8) and (image[1:4, 4:7] == 2).all() and (image[4:7, 1:4] == 3).all()


@pytest.mark.parametrize(
    ("depth", "count", "layers"), [(20, 4, [0, 6, 13, 19]), (3, 8, [0, 1, 2]), (5, 1, [0])]
)
def test_layers_are_spread_from_the_first_to_the_last(depth, count, layers):
    assert chosen_layers(depth, count) == layers


def _saved_model(tmp_path, **arguments):
    torch.manual_seed(0)
    model = ConvMixer(**{"dim": 80, "depth": 3, "kernel_size": 7, "patch_size": 6, **arguments})
    torch.save({"state_dict": model.state_dict()}, tmp_path / "model.pt")
    return model


def test_the_patch_embedding_shows_every_filter_as_colour(tmp_path, figures):
    model = _saved_model(tmp_path)
    patch_embedding, kernels = plot_weights(tmp_path / "model.pt", tmp_path / "out", layers=2)
    assert patch_embedding.exists() and kernels.exists()
    image = np.asarray(figures[0].axes[0].images[0].get_array())
    columns = math.ceil(math.sqrt(1.6 * 80))
    first = model.stem[0].weight[columns].double()  # the first of the second row
    expected = 0.5 + 0.5 * (first / first.abs().max()).permute(1, 2, 0).detach().numpy()
    assert np.allclose(image[8:14, 1:7], expected)
    assert figures[0].get_suptitle() == "Patch embedding of ConvMixer-80/3: 80 filters of 6 x 6"


def test_depthwise_kernels_are_a_random_subset_of_64_for_each_layer(tmp_path, figures):
    model = _saved_model(tmp_path)
    plot_weights(tmp_path / "model.pt", tmp_path / "out", layers=2, seed=1)
    panels = figures[1].axes
    assert [axes.get_title() for axes in panels] == ["layer 1", "layer 3"]
    image = np.asarray(panels[1].images[0].get_array())
    assert image.shape == (65, 65)
    weights = model.blocks[2][0].fn[0].weight[:, 0].double().detach()
    scaled = (weights / weights.abs().amax((1, 2), keepdim=True)).numpy()
    shown = [
        image[1 + 8 * row : 8 + 8 * row, 1 + 8 * column : 8 + 8 * column]
        for row in range(8)
        for column in range(8)
    ]
    matches = [
        next(i for i, kernel in enumerate(scaled) if np.allclose(kernel, tile_shown))
        for tile_shown in shown
    ]
    assert matches == sorted(set(matches)) and matches != list(range(64))


def test_every_convolution_of_a_stack_is_drawn(tmp_path, figures):
    model = _saved_model(tmp_path, stacked=2, dim=1)
    plot_weights(tmp_path / "model.pt", tmp_path / "out", layers=2)
    panels = [axes for axes in figures[1].axes if axes.images]
    names = [f"layer {layer}, convolution {number}" for layer in (1, 3) for number in (1, 2)]
    assert [axes.get_title() for axes in panels] == names
    weight = model.blocks[2][0].fn[2].weight[0, 0].double().detach()
    shown = np.asarray(panels[3].images[0].get_array())[1:8, 1:8]
    assert np.allclose(shown, weight / weight.abs().max())


@pytest.mark.parametrize("name", ["patch_embedding.png", "depthwise_kernels.png"])
def test_pictures_of_weights_are_not_overwritten(name, tmp_path):
    _saved_model(tmp_path)
    (tmp_path / name).write_bytes(b"another")
    with pytest.raises(UsageError, match=rf"{name} exists already: name another folder with --out"):
        plot_weights(tmp_path / "model.pt", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "model.pt"])
    assert (tmp_path / name).read_bytes() == b"another"


def test_the_home_folder_is_meant_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _saved_model(tmp_path, dim=1)
    assert plot_weights(Path("~/model.pt"), Path("~/out"))[0] == (
        tmp_path / "out" / "patch_embedding.png"
    )
    assert (tmp_path / "out" / "patch_embedding.png").exists()


def test_a_failed_picture_leaves_nothing(tmp_path):
    class Torn(Figure):
        def savefig(self, file, **options):
            file.write(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        plots.save_figure(Torn(), tmp_path / "curves.png")
    assert list(tmp_path.iterdir()) == []


def test_filters_of_one_pixel_share_one_scale(tmp_path, figures):
    model = _saved_model(tmp_path, patch_size=1, in_chans=1, dim=4)
    plot_weights(tmp_path / "model.pt", tmp_path / "out")
    weight = model.stem[0].weight.flatten().double().detach()
    image = np.asarray(figures[0].axes[0].images[0].get_array())
    expected = 0.5 + 0.5 * float(weight[1] / weight.abs().max())
    assert image[3, 10, 0] == pytest.approx(expected)


def test_files_that_hold_no_convmixer_are_named(tmp_path):
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(UsageError, match=r"other\.pt: .*known format"):
        plot_weights(tmp_path / "other.pt", tmp_path)


@pytest.mark.parametrize("flat", ["stem.0.weight", "blocks.0.0.fn.0.weight"])
def test_files_whose_filters_are_flat_are_named(flat, tmp_path):
    state = ConvMixer(4, 1, 3, 2, 3).state_dict()
    torch.save(state | {flat: state[flat].flatten()}, tmp_path / "flat.pt")
    with pytest.raises(UsageError, match=r"flat\.pt: holds no filters"):
        plot_weights(tmp_path / "flat.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pictures_leave_the_matplotlib_of_a_program_alone(tmp_path):
    import matplotlib.pyplot

    matplotlib.use("svg")
    before = dict(matplotlib.rcParams)
    plots.save_curves(tmp_path / "curves.png", tiny_config(), HISTORY, 1.0)
    _saved_model(tmp_path)
    plot_weights(tmp_path / "model.pt", tmp_path)
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.pyplot.get_fignums() == []
    assert matplotlib.get_backend().lower() == "svg"
