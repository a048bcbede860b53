"""Writing files in one step, and telling the kind of a file by its first bytes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_BEGINNING = 512
"""The kind of a file is told by this many bytes."""

_TEMPORARY = ".tmp"
_TEMPORARY_NAME = re.compile(rf"\..+\.[0-9a-f]{{32}}{re.escape(_TEMPORARY)}")
"""The names of new files before they take the place of others."""

PICKLED = "a pickled file"
ZIP = "a zip archive"
IMAGE = "an image"

_KINDS = (
    (rb"\Z", "an empty file"),
    (rb"\0+\Z", "a file of zeros, as a download or copy leaves that did not come to its end"),
    (
        rb"version https://git-lfs\.",
        "a Git LFS pointer, which stands for a file not fetched yet: run git lfs pull",
    ),
    (
        rb"(?i)(\xef\xbb\xbf)?\s*(<!--.*?-->\s*)?<(!doctype html|html|head|body)",
        "a web page (HTML) in the place of what was to be downloaded",
    ),
    (rb"(?i)(\xef\xbb\xbf)?\s*<(\?xml|svg|error)", "an XML file"),
    (rb"PK\x03\x04", ZIP),
    (rb"\x1f\x8b|BZh|\xfd7zXZ\0|\x28\xb5\x2f\xfd", "a compressed file: unpack it"),
    (rb"Rar!|7z\xbc\xaf", "an archive: unpack it"),
    (rb"\x89HDF", "an HDF5 file"),
    (rb"\x93NUMPY", "a NumPy array"),
    (rb"\x80[\x02-\x05]", PICKLED),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP|II\*\0|MM\0\*", IMAGE),
    (rb"%PDF", "a PDF"),
    (rb"\s*[{\[][\s\"{\[\]}]", "a JSON file"),
    (rb"[\t\n\r\x20-\x7e]+\Z", "a text file"),
)


def kind_of_file(path: str | os.PathLike[str]) -> str | None:
    """Return the kind of a file in words, with a remedy if there is one; None for an unknown kind.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        beginning = file.read(_BEGINNING)
    kinds = (words for pattern, words in _KINDS if re.match(pattern, beginning, re.DOTALL))
    return next(kinds, None)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the name of the file to an OSError of the block that writes it, as on a full disk.

    Raises:
        OSError: the error of the block, with the name of the file.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save raises a RuntimeError whose context is the OSError of writing.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError) and cause.errno is not None:
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise


def _temporary(path: Path) -> Path:
    """Return the name of a new file beside `path` that is to take its place."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{_TEMPORARY}")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of `path` in one step when the block ends.

    The new file is written in the same folder and is on the disk before it is renamed. If the block
    fails, `path` is untouched and the new file is removed.

    Raises:
        FileNotFoundError: the folder does not exist.
        OSError: the file cannot be written, as on a full disk; the error names it.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist")
    temporary = _temporary(path)
    try:
        with naming(path):
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":
        # The new name is on the disk only after its folder has been synchronised.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def link_or_copy(path: Path, name: Path) -> None:
    """Give a file a second name, which replaces a file of this name in one step.

    Where the file system has no second names, the file is copied.

    Raises:
        OSError: the file cannot be written, as on a full disk; the error names it.
    """
    link = _temporary(name)
    try:
        os.link(path, link)
        os.replace(link, name)
    except OSError:
        with path.open("rb") as source, replacing(name) as target:
            shutil.copyfileobj(source, target)


def remove_temporary_files(folder: Path) -> None:
    """Remove the new files in a folder whose process was killed before they had their names.

    No other process may be writing in the folder.
    """
    for path in folder.glob(f".*{_TEMPORARY}"):
        if _TEMPORARY_NAME.fullmatch(path.name):
            path.unlink(missing_ok=True)
