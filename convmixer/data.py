"""Image sources and their splits: the digits of scikit-learn, CIFAR-10, and folders of images."""

from __future__ import annotations

import io
import pickle
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from convmixer.config import DataConfig
from convmixer.errors import UsageError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".gif", ".tiff"})
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

    def image(self, index: int) -> Image.Image:
        """Return one image."""

    def select(self, indices: Indices) -> Images:
        """Return the images at `indices`."""


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory: uint8 pixels (N, H, W) or (N, H, W, 3)."""

    pixels: NDArray[np.uint8]
    labels: Indices
    mode: str

    def image(self, index: int) -> Image.Image:
        """Return one image."""
        return Image.fromarray(self.pixels[index]).convert(self.mode)

    def select(self, indices: Indices) -> ArrayImages:
        """Return the images at `indices`."""
        return ArrayImages(self.pixels[indices], self.labels[indices], self.mode)


@dataclass(frozen=True)
class FileImages:
    """Images in files, read when they are needed."""

    paths: tuple[str, ...]
    labels: Indices
    mode: str

    def image(self, index: int) -> Image.Image:
        """Return one image.

        Raises:
            UsageError: for a file that is gone or damaged.
        """
        try:
            with Image.open(self.paths[index]) as opened:
                return opened.convert(self.mode)
        except (UnidentifiedImageError, OSError) as error:
            raise UsageError(f"cannot read image {self.paths[index]}: {error}") from None

    def select(self, indices: Indices) -> FileImages:
        """Return the images at `indices`."""
        paths = tuple(self.paths[index] for index in indices)
        return FileImages(paths, self.labels[indices], self.mode)


@dataclass(frozen=True)
class Splits:
    """The images of a run. The test images play no part in any choice made during training."""

    train: Images
    validation: Images | None
    test: Images
    class_names: tuple[str, ...]


def stratified_split(labels: Indices, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Split indices into a rest and a held-out part that has `fraction` of every class.

    Every class with two images or more keeps at least one on either side.

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
        UsageError: for images that are missing, naming what was looked for.
    """
    mode = _mode(channels)
    if config.source == "digits":
        return _load_digits(config, mode)
    if config.source == "cifar10":
        return _load_cifar10(config, mode)
    if config.folder is None:
        raise UsageError("this recipe reads images from a folder: name it with --data FOLDER")
    return _load_image_folder(Path(config.folder).expanduser(), config, mode)


def load_split(config: DataConfig, channels: int, name: str) -> tuple[Images, tuple[str, ...]]:
    """Return the images of one split, and the names of the classes.

    Test images in folders need no training images beside them.

    Args:
        config, channels: as for `load_splits`.
        name: train, validation or test.

    Raises:
        UsageError: for images that are missing, naming what was looked for.
    """
    if name == "test" and config.source != "digits" and config.folder is not None:
        folder = Path(config.folder).expanduser()
        if not (folder / "train").is_dir() and (found := _evaluation_folders(folder)):
            class_names = _class_names(found[0])
            return _scan_images(found[0], class_names, _mode(channels)), class_names
    splits = load_splits(config, channels)
    images = {"train": splits.train, "validation": splits.validation, "test": splits.test}[name]
    if images is None:
        raise UsageError("there are no validation images: data.validation_fraction is 0")
    return images, splits.class_names


def _mode(channels: int) -> str:
    return "L" if channels == 1 else "RGB"


def _load_digits(config: DataConfig, mode: str) -> Splits:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255.0 / 16.0)).astype(np.uint8)
    images = ArrayImages(pixels, digits.target.astype(np.int64), mode)
    rest, test = stratified_split(images.labels, config.test_fraction, config.split_seed)
    train, validation = _hold_out_validation(images.select(rest), config)
    return Splits(train, validation, images.select(test), tuple(map(str, range(10))))


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles dictionaries, lists, strings and NumPy arrays, and refuses anything else."""

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
        pixels = np.asarray(batch["data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
        labels = np.asarray(batch["labels"], dtype=np.int64)
    except (pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is not a CIFAR-10 batch: {error}") from None
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), labels


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
    for place in (folder / CIFAR10_FOLDER, folder):
        missing = [name for name in CIFAR10_FILES if not (place / name).is_file()]
        if not missing:
            return place
        if len(missing) < len(CIFAR10_FILES):
            raise UsageError(f"{place} holds CIFAR-10 without {', '.join(missing)}")
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


def _scan_images(folder: Path, class_names: tuple[str, ...], mode: str) -> FileImages:
    paths: list[str] = []
    labels: list[int] = []
    for path in sorted(folder.iterdir()):
        if not path.is_dir():
            continue
        if path.name not in class_names:
            raise UsageError(f"{path} is a class that the training images do not have")
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)
        paths += [str(file) for file in files]
        labels += [class_names.index(path.name)] * len(files)
    if not paths:
        raise UsageError(f"no images in {folder}: looked for one folder a class with images")
    return FileImages(tuple(paths), np.asarray(labels, dtype=np.int64), mode)


def _evaluation_folders(folder: Path) -> list[Path]:
    """Return the folders with images to test on, then to validate on, as far as there are any."""
    return [folder / name for name in ("test", "val") if (folder / name).is_dir()]


def _class_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir()))


def _load_image_folder(folder: Path, config: DataConfig, mode: str) -> Splits:
    """Read `train/` with a folder a class, and `test/`, or `val/` where there is no `test/`.

    With both, `val/` is the validation split; else validation images are held out of `train/`.
    """
    if not (folder / "train").is_dir():
        raise UsageError(f"no images found: looked for {folder / 'train'} with a folder a class")
    evaluation = _evaluation_folders(folder)
    if not evaluation:
        raise UsageError(f"no test images found: looked for {folder / 'test'} and {folder / 'val'}")
    class_names = _class_names(folder / "train")
    train: Images = _scan_images(folder / "train", class_names, mode)
    test = _scan_images(evaluation[0], class_names, mode)
    validation: Images | None
    if len(evaluation) == 2:
        validation = _scan_images(evaluation[1], class_names, mode)
    else:
        train, validation = _hold_out_validation(train, config)
    return Splits(train, validation, test, class_names)
