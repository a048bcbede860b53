"""Finding the images in folders, and reading an image file as 8 bits a channel."""

from __future__ import annotations

import io
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torchvision.io import decode_jpeg

from convmixer.errors import UsageError
from convmixer.files import IMAGE, kind_of_file

Pixels = NDArray[np.uint8]
"""An image, uint8 (H, W) or (H, W, 3)."""

_NOT_READ = frozenset({"EPS", "MPEG", "WMF", "BUFR", "GRIB", "HDF5"})
"""Formats that Pillow only names, or decodes by starting another program."""

SUFFIXES = {
    suffix: name
    for suffix, name in Image.registered_extensions().items()
    if name in Image.OPEN and name not in _NOT_READ
}
"""The format of an image by the suffix of its file, in lower case."""

_UNDER_ANY_SUFFIX = tuple(
    name
    for name in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
    if name in Image.OPEN
)
"""Formats whose files begin with a signature, so that they are recognised under any suffix."""

LONGEST_SHAPE = 1000
"""Images are at most this many times as long as they are wide."""

_BITS_PER_SAMPLE = 258
"""The tag of TIFF for the bits of a sample."""
_FULL_SCALES = (1.0, 255.0, 65535.0)
"""The values that may stand for white in images of 32 bits."""
_SUFFIXES_IN_NOTES = 3


class UnreadableImageError(UsageError):
    """An image file that cannot be read."""


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, its name beginning with a dot."""
    return name.startswith(".")


def class_folders(folder: Path) -> tuple[str, ...]:
    """Return the sorted names of the folders in `folder` that are not hidden."""
    with os.scandir(folder) as entries:
        return tuple(
            sorted(entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name))
        )


def image_files(folder: Path) -> tuple[list[str], Counter[str]]:
    """Find the images in `folder` and in the folders below it.

    Hidden files and folders are left out, and a folder that links lead to again is read once.

    Returns:
        the sorted paths of the images, and the number of other files by their suffix.
    """
    images: list[str] = []
    others: Counter[str] = Counter()
    for path in _files(os.fspath(folder), set()):
        suffix = PurePath(path).suffix.lower()
        if suffix in SUFFIXES:
            images.append(path)
        else:
            others[suffix] += 1
    return sorted(images), others


def _files(folder: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    """Yield the files below a folder; `seen` holds device and inode of the folders read so far."""
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                yield from _files(entry.path, seen)
            else:
                yield entry.path


def left_out_note(folder: Path, others: Counter[str]) -> str:
    """Return a line on the files in class folders that are no images, from their suffixes."""
    suffixes = sorted(others, key=lambda suffix: (-others[suffix], suffix))
    shown = [suffix or "no suffix" for suffix in suffixes[:_SUFFIXES_IN_NOTES]]
    more = ", ..." if len(others) > _SUFFIXES_IN_NOTES else ""
    count = others.total()
    files = "1 file that is no image" if count == 1 else f"{count:,} files that are no images"
    return f"{folder}: left out {files} in the folder of a class ({', '.join(shown)}{more})"


def read_image(path: str, mode: str) -> Pixels:
    """Read an image file, the first image of several in it.

    16-bit samples are scaled to 8 bits. Samples of 32 bits are scaled too; no file names their
    scale, so it is the smallest of 1 (floating point alone), 255 and 65,535 that holds all samples.
    Transparent parts show white.

    Args:
        path: the file.
        mode: "RGB" or "L", Pillow's names of colour and of grey.

    Raises:
        UnreadableImageError: the file is gone, damaged or no image; the message names it.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of damaged metadata and of large images, which can be read.
            warnings.simplefilter("ignore")
            return _read(path, mode)
    except Exception as error:  # Decoders raise errors of any class on a damaged file.
        raise UnreadableImageError(f"cannot read image {path}: {_reason(path, error)}") from None


def _read(path: str, mode: str) -> Pixels:
    if os.path.exists(path) and not os.path.isfile(path):
        raise UsageError("it is no file")  # Opening a pipe would wait for its writer.
    return _decode(path, path, mode)


def read_encoded(contents: bytes, mode: str, name: str) -> Pixels:
    """Read an image from the contents of a file; see `read_image`.

    Args:
        contents: the bytes of the file.
        mode: "RGB" or "L", Pillow's names of colour and of grey.
        name: the name of the file, for its suffix and for messages.

    Raises:
        UnreadableImageError: the contents are damaged or no image; the message has the name.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(io.BytesIO(contents), name, mode)
    except Exception as error:  # Decoders raise errors of any class on damaged contents.
        raise UnreadableImageError(f"cannot read image {name}: {_reason(None, error)}") from None


def _decode(source: str | io.BytesIO, name: str, mode: str) -> Pixels:
    own = SUFFIXES.get(os.path.splitext(name)[1].lower())
    formats = [own] if own is not None else []
    formats += [name for name in _UNDER_ANY_SUFFIX if name != own]
    with Image.open(source, formats=formats) as opened:
        shorter, longer = sorted(opened.size)
        if longer > LONGEST_SHAPE * shorter:
            width, height = opened.size
            raise UsageError(
                f"{width} x {height} pixels; expected at most {LONGEST_SHAPE} times as long as wide"
            )
        if opened.format == "JPEG" and opened.mode == mode:
            pixels = _decode_jpeg(source)
            if pixels is not None:
                return pixels
        return np.array(_converted(opened, mode))


def _decode_jpeg(source: str | io.BytesIO) -> Pixels | None:
    """Return the pixels of a JPEG, or None for one that torchvision refuses.

    torchvision and Pillow decode by the same library, of which Pillow's build may accept more.
    torchvision makes no copies, and is faster.
    """
    if isinstance(source, str):
        encoded = np.fromfile(source, np.uint8)
    else:
        encoded = np.array(source.getbuffer())
    try:
        pixels: Pixels = decode_jpeg(torch.from_numpy(encoded)).permute(1, 2, 0).numpy()
    except RuntimeError:
        return None
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """Return an image in a mode, as `read_image` describes."""
    if image.mode in ("F", "I") or image.mode.startswith("I;"):
        return _in_8_bits(image).convert(mode)
    if image.has_transparency_data:
        visible = image.convert("RGBA")
        white = Image.new("RGBA", visible.size, "white")
        return Image.alpha_composite(white, visible).convert(mode)
    return image.convert(mode)


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Scale samples of more than 8 bits to 8 bits, as `read_image` describes."""
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;"):
        # Samples of TIFF may have 12 bits as well.
        (bits, *_) = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))
        full_scale: float | None = 2.0**bits - 1
    elif image.format == "PPM" and image.mode == "I":
        full_scale = 65535.0
    else:
        scales = _FULL_SCALES if image.mode == "F" else _FULL_SCALES[1:]
        full_scale = next((scale for scale in scales if high <= scale), None)
    if full_scale is None or not 0 <= low <= high <= full_scale:
        raise UsageError(
            f"its values go from {low:g} to {high:g}; expected 0 to 1, to 255 or to 65535"
        )
    return Image.fromarray(np.rint(values * (255.0 / full_scale)).astype(np.uint8))


def _reason(path: str | None, error: Exception) -> str:
    """Return the reason for which a file could not be read as an image, in one line."""
    if isinstance(error, UsageError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnidentifiedImageError):
        kind = None if path is None else kind_of_file(path)
        return (
            f"it is {kind}" if kind not in (None, IMAGE) else "it is damaged, or of no known format"
        )
    text = " ".join(str(error).split()) or type(error).__name__
    return f"it is damaged, or more than Pillow accepts ({text[:200]})"
