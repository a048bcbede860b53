"""Image sources and their splits: in packages, CIFAR-10, folders of images, containers."""

from __future__ import annotations

import io
import pickle
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convmixer.config.settings import DataConfig
from convmixer.data.containers import CONTAINERS
from convmixer.data.image_files import (
    Pixels,
    class_folders,
    image_files,
    is_hidden,
    left_out_note,
    read_image,
)
from convmixer.data.packaged import PACKAGED
from convmixer.errors import UsageError
from convmixer.files import PICKLED, kind_of_file
from convmixer.terminal import few

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
CIFAR10_FOLDER = "cifar-10-batches-py"
CIFAR10_TRAINING_FILES = tuple(f"data_batch_{number}" for number in range(1, 6))
CIFAR10_TEST_FILE = "test_batch"
CIFAR10_FILES = (*CIFAR10_TRAINING_FILES, CIFAR10_TEST_FILE)
DOWNLOAD_TIMEOUT_SECONDS = 20.0

Indices = NDArray[np.int64]


class Images(Protocol):
    """A list of labelled images."""

    @property
    def labels(self) -> Indices:
        """Class of every image, int64 (N,)."""

    def image(self, index: int) -> Pixels:
        """Return one image."""

    def select(self, indices: Indices) -> Images:
        """Return the images at `indices`."""


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory: uint8 pixels (N, H, W) or (N, H, W, 3)."""

    pixels: NDArray[np.uint8]
    labels: Indices
    mode: str

    def image(self, index: int) -> Pixels:
        """Return one image."""
        return np.array(Image.fromarray(self.pixels[index]).convert(self.mode))

    def select(self, indices: Indices) -> ArrayImages:
        """Return the images at `indices`."""
        return ArrayImages(self.pixels[indices], self.labels[indices], self.mode)


@dataclass(frozen=True)
class FileImages:
    """Images in files, each read on demand."""

    paths: tuple[str, ...]
    labels: Indices
    mode: str

    def image(self, index: int) -> Pixels:
        """Return one image; see `convmixer.data.image_files.read_image`."""
        return read_image(self.paths[index], self.mode)

    def select(self, indices: Indices) -> FileImages:
        """Return the images at `indices`."""
        paths = tuple(self.paths[index] for index in indices)
        return FileImages(paths, self.labels[indices], self.mode)


@dataclass(frozen=True)
class Splits:
    """The images of a run; test images take no part in any choice made during training."""

    train: Images
    validation: Images | None
    test: Images
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """Lines on files that were left out and classes without images."""


class Split(NamedTuple):
    """The images of one split."""

    images: Images
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """The notes of `Splits`."""


def stratified_split(labels: Indices, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Split indices into a rest and a held-out part with `fraction` of the images of every class.

    A class with two images or more has at least one in either part.

    Args:
        labels: class of every image, int64 (N,).
        fraction: of the images of each class, from 0 to 1.
        seed: of the choice of images.

    Returns:
        the indices of the rest and of the held-out part, both ascending.
    """
    generator = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        held_out[members[:count]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _hold_out_validation(images: Images, config: DataConfig) -> tuple[Images, Images | None]:
    if config.validation_fraction == 0:
        return images, None
    rest, held_out = stratified_split(
        images.labels, config.validation_fraction, config.split_seed + 1
    )
    return images.select(rest), images.select(held_out)


def load_splits(config: DataConfig, channels: int) -> Splits:
    """Return the training, validation and test images that `config` names.

    Args:
        config: source, folder and fractions.
        channels: 3 reads colour images, 1 grey ones.

    Raises:
        UsageError: images are missing; the message names the files that were looked for.
    """
    mode = _mode(channels)
    if config.source in PACKAGED:
        return _load_packaged(config, mode)
    if config.source == "cifar10":
        return _load_cifar10(config, mode)
    if config.source in CONTAINERS:
        return _load_container(config, mode)
    if config.folder is None:
        raise UsageError("this recipe reads images from a folder: name it with --data FOLDER")
    return _load_image_folder(Path(config.folder).expanduser(), config, mode)


def load_split(config: DataConfig, channels: int, name: str) -> Split:
    """Return the images of one split, and the names of the classes.

    Test images in folders need no training images beside them: without `train/`, the classes are
    the folders of the test images in alphabetical order.

    Args:
        config: source, folder and fractions.
        channels: 3 reads colour images, 1 grey ones.
        name: train, validation or test.

    Raises:
        UsageError: images are missing; the message names the files that were looked for.
    """
    if name == "test" and config.source not in PACKAGED and config.folder is not None:
        folder = Path(config.folder).expanduser()
        if found := _evaluation_folders(folder):
            training = folder / "train"
            class_names = class_folders(training if training.is_dir() else found[0])
            scan = _scan(found[0], class_names, _mode(channels))
            return Split(scan.images, class_names, scan.notes)
        if config.source == "images":
            raise UsageError(_missing_folders(folder, "test", "val"))
    splits = load_splits(config, channels)
    images = {"train": splits.train, "validation": splits.validation, "test": splits.test}[name]
    if images is None:
        raise UsageError("there are no validation images: data.validation_fraction is 0")
    return Split(images, splits.class_names, splits.notes)


def _mode(channels: int) -> str:
    return "L" if channels == 1 else "RGB"


def _load_packaged(config: DataConfig, mode: str) -> Splits:
    if config.folder is not None:
        raise UsageError(
            f"data.folder: got {config.folder}, but the images of data.source {config.source} come "
            "with a package: leave it out"
        )
    pixels, labels = PACKAGED[config.source]()
    images = ArrayImages(pixels, labels, mode)
    rest, test = stratified_split(images.labels, config.test_fraction, config.split_seed)
    train, validation = _hold_out_validation(images.select(rest), config)
    return Splits(train, validation, images.select(test), tuple(map(str, range(10))))


def _load_container(config: DataConfig, mode: str) -> Splits:
    if config.folder is None:
        raise UsageError(f"data.source {config.source} reads a file or folder: name it with --data")
    path = Path(config.folder).expanduser()
    container = CONTAINERS[config.source](path, mode)
    found: dict[str, Images] = {
        name: ArrayImages(*images, mode) if isinstance(images, tuple) else images
        for name, images in container.splits.items()
    }
    train, validation, test = (found.get(name) for name in ("train", "validation", "test"))
    if test is None:
        validation, test = None, validation
    if train is None or test is None:
        raise UsageError(f"{path} has {' and '.join(found)} images; expected train and test")
    if validation is None:
        train, validation = _hold_out_validation(train, config)
    return Splits(train, validation, test, container.class_names)


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler of dictionaries, lists, strings and NumPy arrays that refuses anything else."""

    _ACCEPTED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.numeric", "_frombuffer"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ACCEPTED:
            raise pickle.UnpicklingError(f"{module}.{name} does not belong in a file of images")
        return super().find_class(module, name)


def _read_cifar10_batch(path: Path) -> tuple[NDArray[np.uint8], Indices]:
    try:
        batch = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        pixels, labels = batch["data"], np.asarray(batch["labels"])
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), 3 * 32 * 32):
            raise ValueError(f"{len(labels)} labels beside {pixels.dtype} pixels {pixels.shape}")
        if labels.dtype.kind not in "iu" or not np.isin(labels, range(10)).all():
            raise ValueError("labels that are no whole numbers from 0 to 9")
    except OSError:
        raise
    except Exception as error:  # A damaged pickle raises errors of any class.
        kind = kind_of_file(path)
        reason = kind if kind and kind != PICKLED else f"{type(error).__name__}: {error}"
        raise UsageError(f"{path} is not a CIFAR-10 batch: {' '.join(reason.split())}") from None
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels.astype(np.int64)


def _read_cifar10(paths: Sequence[Path], mode: str) -> ArrayImages:
    batches = [_read_cifar10_batch(path) for path in paths]
    pixels, labels = zip(*batches, strict=True)
    return ArrayImages(np.concatenate(pixels), np.concatenate(labels), mode)


def _load_cifar10(config: DataConfig, mode: str) -> Splits:
    folder = Path(config.folder or "data/cifar10").expanduser()
    if (folder / "train").is_dir():
        return _load_image_folder(folder, config, mode)
    batches = _find_cifar10_batches(folder)
    if batches is None:
        _download_cifar10(folder, config.download)
        batches = _find_cifar10_batches(folder)
    if batches is None:
        raise UsageError(f"the download left no CIFAR-10 batches in {folder}")
    training = [batches / name for name in CIFAR10_TRAINING_FILES]
    train, validation = _hold_out_validation(_read_cifar10(training, mode), config)
    test = _read_cifar10([batches / CIFAR10_TEST_FILE], mode)
    return Splits(train, validation, test, CIFAR10_CLASSES)


def _find_cifar10_batches(folder: Path) -> Path | None:
    for batches in (folder / CIFAR10_FOLDER, folder):
        missing = [name for name in CIFAR10_FILES if not (batches / name).is_file()]
        if not missing:
            return batches
        if len(missing) < len(CIFAR10_FILES):
            raise UsageError(f"{batches} holds CIFAR-10 without {', '.join(missing)}")
    return None


def _download_cifar10(folder: Path, allowed: bool) -> None:
    looked_for = (
        f"CIFAR-10 was not found: looked for data_batch_1 .. data_batch_5 and test_batch in "
        f"{folder} and {folder / CIFAR10_FOLDER}, and for the image folders train and test in "
        f"{folder}"
    )
    if not allowed:
        raise UsageError(f"{looked_for}; name the folder with --data FOLDER")
    from torchvision.datasets import CIFAR10

    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        CIFAR10(str(folder), download=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"{looked_for}; downloading it failed ({reason}); name the folder with --data FOLDER"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)


def _evaluation_folders(folder: Path) -> list[Path]:
    """Return the folders of test and validation images that exist, the folder to test on first."""
    return [folder / name for name in ("test", "val") if (folder / name).is_dir()]


def _missing_folders(folder: Path, *names: str) -> str:
    """Return the message that `folder` has none of the folders `names`, with a hint."""
    looked_for = f"looked for {' and '.join(str(folder / name) for name in names)}"
    if not folder.is_dir():
        return f"no images found: there is no folder {folder} ({looked_for} with a folder a class)"
    inside = folder.name in ("train", "test", "val")
    hint = f"; --data names the folder above, {folder.parent}" if inside else ""
    return f"no images found: {looked_for} with a folder a class{hint}"


@dataclass(frozen=True)
class _Scan:
    """The images in the class folders of a folder."""

    images: FileImages
    notes: tuple[str, ...]
    """Lines on files that were left out and classes without images."""


def _scan(folder: Path, class_names: tuple[str, ...], mode: str) -> _Scan:
    """Find the images of every class, and note the classes without images.

    Raises:
        UsageError: there is no image, or a folder that is not one of the classes.
    """
    numbers = {name: number for number, name in enumerate(class_names)}
    paths: list[str] = []
    labels: list[int] = []
    others = Counter(path.suffix.lower() for path in folder.iterdir() if _is_left_out(path))
    for name in class_folders(folder):
        if name not in numbers:
            raise UsageError(f"{folder / name} is a class that the training images do not have")
        found, left_out = image_files(folder / name)
        paths += found
        labels += [numbers[name]] * len(found)
        others += left_out
    if not paths:
        raise UsageError(f"no images in {folder}: looked for one folder a class with images")
    notes: tuple[str, ...] = (left_out_note(folder, others),) if others else ()
    if empty := _without_images(class_names, labels):
        notes += (f"{folder}: no images of {few(empty)}",)
    return _Scan(FileImages(tuple(paths), np.asarray(labels, dtype=np.int64), mode), notes)


def _is_left_out(path: Path) -> bool:
    """Return whether a path beside the class folders is a file that is not hidden."""
    return not is_hidden(path.name) and not path.is_dir()


def _without_images(class_names: Sequence[str], labels: Sequence[int]) -> list[str]:
    """Return the names of the classes that have no label."""
    present = set(labels)
    return [name for number, name in enumerate(class_names) if number not in present]


def _load_image_folder(folder: Path, config: DataConfig, mode: str) -> Splits:
    """Read `train/` and `test/` with a folder a class; `val/` takes the place of a missing `test/`.

    With both, `val/` is the validation split; else validation images are held out of `train/`.
    """
    if not (folder / "train").is_dir():
        raise UsageError(_missing_folders(folder, "train"))
    evaluation = _evaluation_folders(folder)
    if not evaluation:
        raise UsageError(f"no test images found: looked for {folder / 'test'} and {folder / 'val'}")
    class_names = class_folders(folder / "train")
    train = _scan(folder / "train", class_names, mode)
    if empty := _without_images(class_names, train.images.labels.tolist()):
        raise UsageError(
            f"{folder / 'train'} has folders without images: {few(empty)}; remove them, or add "
            "images"
        )
    test = _scan(evaluation[0], class_names, mode)
    notes = train.notes + test.notes
    if len(evaluation) == 2:
        validation = _scan(evaluation[1], class_names, mode)
        return Splits(
            train.images, validation.images, test.images, class_names, notes + validation.notes
        )
    rest, held_out = _hold_out_validation(train.images, config)
    return Splits(rest, held_out, test.images, class_names, notes)
