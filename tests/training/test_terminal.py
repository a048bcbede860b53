"""Names and lines that a terminal or a picture cannot show as they are; results come first."""

from __future__ import annotations

import io
import json
import os
import sys

import matplotlib
import pytest
import torch

from convmixer import ConvMixer
from convmixer.cli import main
from convmixer.terminal import flush_output, printable, write_error, write_line
from convmixer.training import plots
from convmixer.training.evaluation import evaluate
from convmixer.training.reporting import Console
from convmixer.training.run_folder import write_text
from tests.helpers.training import tiny_config, tiny_images_config, write_image_folder

NAMES = [
    ("$1_$5", "b"),
    ("a", "b$\\frac$"),
    ("cost_$5_$_", "x^{"),
    ("{}", "{0}%s%"),
    ("\\", "^"),
    ("图像", "naïve"),
    ("two\nlines", "tab\t\x1b[31mred"),
    (os.fsdecode(b"\xff\xfe"), "plain"),
    ("n" * 200, "n" * 201),
]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, 图, é, ±", "plain text, 图, é, ±"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x1b[2J\x7f", "\\x1b[2J\\x7f"),
        ("\udcff", "\\udcff"),
        ("\u202etxt.exe", "\\u202etxt.exe"),
    ],
)
def test_what_cannot_be_printed_is_escaped(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_line_is_printed_on_every_terminal(encoding, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    write_line("é 图 \udcff")
    expected = "é 图 \\udcff\n".encode(encoding, "backslashreplace")
    assert written.getvalue() == expected


def test_lines_need_no_standard_streams(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    write_line("out"), write_error("error"), flush_output()
    assert Console().bar(3, 0, "title").disable


def test_a_log_takes_every_name(tmp_path):
    Console(tmp_path / "train.log").line("图 \udcff\n2")
    assert (tmp_path / "train.log").read_text(encoding="utf-8") == "图 \\udcff\\n2\n"
    write_text(tmp_path / "results.md", "图 \udcff\n")
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == "图 \\udcff\n"


@pytest.fixture
def reader_gone(monkeypatch):
    """A standard output that is a pipe which nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        yield


def test_a_reader_that_goes_is_no_error(reader_gone, capfd):
    for _ in range(2):
        write_line("line")
    sys.stdout.write("more")
    flush_output()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("words", [["ablate", "--list"], ["train", "--help"], ["--version"]])
def test_commands_end_quietly_when_their_reader_goes(words, reader_gone, capfd):
    try:
        code = main(words)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 0 and capfd.readouterr().err == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
def test_a_full_disk_under_standard_output_is_named(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["ablate", "--list"]) == 2
    assert capsys.readouterr().err == (
        "convmixer ablate: error: standard output: No space left on device\n"
    )


# Class names through an evaluation and its picture


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("names") / "weights.pt"
    torch.save(ConvMixer(8, 1, 3, 4, 2, dw_impl="torch").state_dict(), path)
    return path


def _images(place, names):
    write_image_folder(place, {"val": 1})
    for number, name in enumerate(names):
        (place / "val" / f"class{number}").rename(place / "val" / name)
    return place


@pytest.mark.parametrize("names", NAMES, ids=range(len(NAMES)))
def test_every_class_name_has_its_evaluation_and_picture(names, weights, tmp_path, monkeypatch):
    images, out = _images(tmp_path / "images", names), tmp_path / "out"
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    evaluate(weights, tiny_images_config(images), out=out)
    assert json.loads((out / "evaluation.json").read_text())["images"] == 2
    assert matplotlib.image.imread(out / "confusion.png").ndim == 3
    lines = written.getvalue().decode().splitlines()
    assert len(lines) == 7 and lines[3].startswith("confusion")
    shown = [printable(name).encode("ascii", "backslashreplace").decode() for name in names]
    assert all(any(name in line for line in lines[4:]) for name in shown)


def test_folders_may_have_any_name(weights, tmp_path, capsys):
    """The folder of the images stands in the settings, that of the results in lines."""
    place = tmp_path / os.fsdecode(b"f\xfflder $1_$")
    images = _images(place / "images", ("a", "b"))
    out = place / "out"
    assert evaluate(weights, tiny_images_config(images), out=out)["images"] == 2
    assert "weights.pt: ConvMixer-8/1" in capsys.readouterr().out
    assert (out / "confusion.png").exists()


@pytest.mark.parametrize(
    "failing",
    ["convmixer.training.plots.save_confusion", "convmixer.training.reporting.write_line"],
)
def test_results_are_written_before_anything_can_fail(failing, weights, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    images, out = _images(tmp_path / "images", ("a", "b")), tmp_path / "out"
    monkeypatch.setattr(failing, fail)
    with pytest.raises(OSError, match="No space left"):
        evaluate(weights, tiny_images_config(images), out=out)
    monkeypatch.undo()
    assert json.loads((out / "evaluation.json").read_text())["images"] == 2


def _texts(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]


def test_words_of_pictures_are_no_formulas(tmp_path, monkeypatch):
    figures = []
    original = plots.save_figure
    monkeypatch.setattr(
        plots, "save_figure", lambda figure, path: (figures.append(figure), original(figure, path))
    )
    names = ["$1_$5", "b$\\frac$", "n" * 200]
    with matplotlib.rc_context({"text.usetex": True}):
        plots.save_confusion(tmp_path / "a.png", torch.eye(3), names, "my $\\frac$ _ recipe ^{")
        plots.save_curves(tmp_path / "b.png", tiny_config(recipe="a$_$ $^{"), [], None)
    assert (tmp_path / "a.png").exists() and (tmp_path / "b.png").exists()
    texts = _texts(figures[0])
    assert {"$1_$5", "b$\\frac$", "my $\\frac$ _ recipe ^{"} <= set(texts)
    assert f"{'n' * 29}…" in texts


def test_a_missing_glyph_is_no_warning(tmp_path, recwarn):
    plots.save_confusion(tmp_path / "a.png", torch.eye(1), ["图像"], "title")
    assert [str(warning.message) for warning in recwarn.list] == []


def test_an_error_is_one_printable_line(monkeypatch, capsys):
    def wrong(_):
        raise OSError(2, "No such file or directory", "a\n\x1b[2J\udcff.png")

    monkeypatch.setattr("convmixer.cli.commands.COMMANDS", {"train": wrong})
    assert main(["train", "--recipe", "digits"]) == 2
    assert capsys.readouterr().err == (
        "convmixer train: error: a\\n\\x1b[2J\\udcff.png: No such file or directory\n"
    )
