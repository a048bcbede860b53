"""Data sets in files that hold many images: .npz, tar archives, Hugging Face data sets on disk."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convmixer.data.image_files import SUFFIXES, Pixels, read_encoded, read_image
from convmixer.errors import UsageError
from convmixer.files import kind_of_file

Indices = NDArray[np.int64]
Arrays = tuple[NDArray[np.uint8], Indices]

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test",),
}
"""The names of each split."""
CLASS_NAMES = "classes.txt"
"""The file beside tar archives with the name of a class in each line."""


@dataclass(frozen=True)
class ReadImages:
    """Images that a function reads on demand, by their number in its container."""

    read: Callable[[int], Pixels]
    labels: Indices
    numbers: Indices

    def image(self, index: int) -> Pixels:
        """Return one image."""
        return self.read(int(self.numbers[index]))

    def select(self, indices: Indices) -> ReadImages:
        """Return the images at `indices`."""
        return replace(self, labels=self.labels[indices], numbers=self.numbers[indices])


@dataclass(frozen=True)
class Container:
    """The splits of a container that exist, and the names of the classes."""

    splits: Mapping[str, ReadImages | Arrays]
    class_names: tuple[str, ...]


def _numbered(labels: Sequence[Indices]) -> tuple[str, ...]:
    """Return numbers as the names of all classes."""
    return tuple(map(str, range(1 + max(int(each.max(initial=0)) for each in labels))))


def open_npz(path: Path, _: str) -> Container:
    """Open a .npz file with the arrays of Keras (x_train, y_train) or MedMNIST (train_images, ...).

    Pixels are uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3); labels are whole numbers (N,) or
    (N, 1).

    Raises:
        UsageError: it is no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UsageError(f"no images found: there is no file {path}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        kind = kind_of_file(path) if path.is_file() else "a folder"
        raise UsageError(f"{path} is no .npz file of arrays ({kind or error})") from None
    splits: dict[str, Arrays] = {}
    for split, names in SPLITS.items():
        for name in names:
            for images, labels in (
                (f"x_{name}", f"y_{name}"),
                (f"{name}_images", f"{name}_labels"),
            ):
                if images in arrays and labels in arrays:
                    splits[split] = _checked(path, images, arrays[images], arrays[labels])
    if not splits:
        raise UsageError(
            f"{path} holds {', '.join(sorted(arrays)[:6]) or 'nothing'}; expected x_train, "
            "y_train, x_test, y_test, or train_images, train_labels, test_images, test_labels"
        )
    return Container(splits, _numbered([labels for _, labels in splits.values()]))


def _checked(path: Path, name: str, pixels: NDArray[Any], labels: NDArray[Any]) -> Arrays:
    """Return pixels and labels in their final form.

    Raises:
        UsageError: their types or shapes are others.
    """
    if pixels.ndim == 4 and pixels.shape[3] == 1:
        pixels = pixels[..., 0]
    labels = labels.reshape(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    shaped = pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] == 3)
    if pixels.dtype != np.uint8 or not shaped or not len(pixels):
        raise UsageError(
            f"{path}: {name} is {pixels.dtype} {pixels.shape}; expected uint8 (N, H, W), "
            "(N, H, W, 1) or (N, H, W, 3)"
        )
    if labels.dtype.kind not in "iu" or labels.shape != pixels.shape[:1] or labels.min() < 0:
        raise UsageError(
            f"{path}: the labels of {name} are {labels.dtype} {labels.shape}; expected "
            f"({len(pixels)},) whole numbers from 0"
        )
    return pixels, labels.astype(np.int64)


@dataclass(frozen=True)
class _Members:
    """Image files inside tar archives, read without unpacking."""

    places: tuple[tuple[str, str, int, int], ...]
    """Archive, name of the member, offset and size in bytes of each."""
    mode: str

    def __call__(self, number: int) -> Pixels:
        archive, name, offset, size = self.places[number]
        with open(archive, "rb") as file:
            file.seek(offset)
            contents = file.read(size)
        return read_encoded(contents, self.mode, f"{archive}: {name}")


def open_tar(folder: Path, mode: str) -> Container:
    """Open the tar archives in a folder, as webdataset writes them.

    Names begin with that of the split: `train-000.tar`, `val.tar`, `test-0.tar`. A sample is an
    image and the number of its class in a file `.cls`, both with the same name up to the first dot.
    The file `classes.txt`, if there is one, has the name of a class in each line.

    Raises:
        UsageError: there are no archives, or they hold other things.
    """
    if not folder.is_dir():
        raise UsageError(f"no images found: there is no folder {folder}")
    splits: dict[str, ReadImages] = {}
    for split, names in SPLITS.items():
        # "train" is the beginning of "training", and each archive belongs to one split.
        archives = sorted(
            path
            for path in folder.glob("*.tar")
            if any(
                path.stem == name or path.stem.startswith((f"{name}-", f"{name}_"))
                for name in names
            )
        )
        if archives:
            splits[split] = _members(archives, mode)
    if not splits:
        raise UsageError(f"no images found: looked for {folder / 'train*.tar'} and test*.tar")
    file = folder / CLASS_NAMES
    if not file.exists():
        return Container(splits, _numbered([images.labels for images in splits.values()]))
    class_names = tuple(file.read_text(encoding="utf-8").splitlines())
    for split, images in splits.items():
        if (largest := int(images.labels.max())) >= len(class_names):
            raise UsageError(
                f"{file} names {len(class_names)} classes, and images of {split} have class "
                f"{largest}"
            )
    return Container(splits, class_names)


def _members(archives: Sequence[Path], mode: str) -> ReadImages:
    """Find the images and labels in tar archives, without reading the images."""
    places: list[tuple[str, str, int, int]] = []
    labels: list[int] = []
    for archive in archives:
        images: dict[str, tuple[str, str, int, int]] = {}
        classes: dict[str, int] = {}
        try:
            with tarfile.open(archive, "r:") as file:
                for member in file:
                    path = PurePath(member.name)
                    key = str(path.with_name(path.name.partition(".")[0]))
                    if path.suffix.lower() in SUFFIXES:
                        images[key] = (str(archive), member.name, member.offset_data, member.size)
                    elif path.suffix == ".cls" and (contents := file.extractfile(member)):
                        classes[key] = int(contents.read())
        except (tarfile.TarError, ValueError, OSError) as error:
            raise UsageError(f"{archive}: {error}") from None
        for key, place in images.items():
            if classes.get(key, -1) < 0:
                raise UsageError(f"{archive}: {place[1]} has no class: expected a file {key}.cls")
            places.append(place)
            labels.append(classes[key])
    if not places:
        raise UsageError(f"no images in {archives[0]}")
    return _read_on_demand(_Members(tuple(places), mode), np.asarray(labels, dtype=np.int64))


def _read_on_demand(read: Callable[[int], Pixels], labels: Indices) -> ReadImages:
    return ReadImages(read, labels, np.arange(len(labels)))


@dataclass(frozen=True)
class _Column:
    """The images in a column of a Hugging Face data set."""

    data: Any
    name: str
    mode: str

    def __call__(self, number: int) -> Pixels:
        image = self.data[number][self.name]
        name = f"{number} of the column {self.name}"
        if image["bytes"] is None:
            return read_image(image["path"], self.mode)
        return read_encoded(image["bytes"], self.mode, name)


def open_huggingface(folder: Path, mode: str) -> Container:
    """Open a folder that `datasets.DatasetDict.save_to_disk` has written.

    It has a column of images and a column of class labels.

    Raises:
        UsageError: the package datasets is missing, or the folder holds something else.
    """
    try:
        import datasets
    except ImportError:
        raise UsageError(
            "data.source huggingface: the package datasets is missing: pip install datasets"
        ) from None
    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # The library lets errors of several others through.
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{folder} is no Hugging Face data set on disk ({reason})") from None
    if not isinstance(found, dict):
        raise UsageError(f"{folder} holds one split; expected several, such as train and test")
    features = next(iter(found.values())).features
    kinds = {column: type(feature).__name__ for column, feature in features.items()}
    images = [column for column, kind in kinds.items() if kind == "Image"]
    labels_in = [column for column, kind in kinds.items() if kind == "ClassLabel"]
    if len(images) != 1 or len(labels_in) != 1:
        columns = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
        raise UsageError(f"{folder}: expected one column Image and one ClassLabel, got {columns}")
    image, label = images[0], labels_in[0]
    splits: dict[str, ReadImages] = {}
    class_names = tuple(features[label].names)
    for split, names in SPLITS.items():
        for name in names:
            if name in found:
                data = found[name]
                labels = np.asarray(data[label], dtype=np.int64)
                encoded = data.cast_column(image, datasets.Image(decode=False))
                splits[split] = _read_on_demand(_Column(encoded, image, mode), labels)
    if not splits:
        raise UsageError(f"{folder} has the splits {', '.join(found)}; expected train and test")
    return Container(splits, class_names)


CONTAINERS: dict[str, Callable[[Path, str], Container]] = {
    "npz": open_npz,
    "tar": open_tar,
    "huggingface": open_huggingface,
}
"""The functions that open a container, by the name of the `data.source`."""
