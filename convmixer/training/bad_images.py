"""Image files that cannot be read: skipped, counted and named, up to a limit."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from convmixer.data.image_files import UnreadableImageError
from convmixer.data.sources import Images
from convmixer.errors import UsageError


def _too_many(reason: str, count: int, limit: int) -> str:
    """Return the message that one image more than the limit cannot be read."""
    return f"{reason}; data.bad_images {limit} allows fewer than these {count}" if limit else reason


class BadImages:
    """The images that could not be read and were skipped, up to a limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._reasons: dict[str, None] = {}
        self._reported = 0

    def add(self, reasons: Sequence[str]) -> None:
        """Add images by lines that name them; an image counts once.

        Raises:
            UsageError: there are more than the limit.
        """
        self._reasons.update(dict.fromkeys(reasons))
        if len(self._reasons) > self._limit:
            last = list(self._reasons)[-1]
            raise UsageError(_too_many(last, len(self._reasons), self._limit))

    def unreported(self) -> list[str]:
        """Return the lines that no call has returned yet."""
        lines = list(self._reasons)[self._reported :]
        self._reported = len(self._reasons)
        return lines


class ImageReader:
    """Reading of images in one process, which remembers those that cannot be read."""

    def __init__(self, images: Images, limit: int) -> None:
        self._images, self._limit = images, limit
        self._reasons: dict[int, str] = {}

    def read(self, index: int) -> Image.Image | str:
        """Return an image, or a line that names it if it cannot be read.

        Raises:
            UsageError: more images than the limit cannot be read.
        """
        if index in self._reasons:
            return self._reasons[index]
        try:
            return self._images.image(index)
        except UnreadableImageError as error:
            self._reasons[index] = str(error)
        count = len(self._reasons)
        if count > self._limit:
            raise UsageError(_too_many(self._reasons[index], count, self._limit))
        return self._reasons[index]

    def readable(self, index: int) -> tuple[Image.Image, int, list[str]]:
        """Return the first image from `index` on that can be read, its index, and the others.

        The first image follows the last.

        Raises:
            UsageError: more images than the limit cannot be read, or none can.
        """
        bad: list[str] = []
        count = len(self._images.labels)
        for place in range(index, index + count):
            found = place % count
            image = self.read(found)
            if not isinstance(image, str):
                return image, found, bad
            bad.append(image)
        raise UsageError(f"none of the {count} training images can be read: {bad[0]}")
