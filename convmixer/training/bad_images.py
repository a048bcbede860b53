"""Image files that cannot be read: skipped, counted and named, up to a limit."""

from __future__ import annotations

from collections.abc import Sequence

from convmixer.data.image_files import Pixels, UnreadableImageError
from convmixer.data.sources import Images
from convmixer.errors import UsageError


def check_bad_images(reasons: Sequence[str], limit: int) -> None:
    """Check that no more images than the limit cannot be read.

    Args:
        reasons: lines that name each of the images.
        limit: `data.bad_images`.

    Raises:
        UsageError: there are more; the message is the last line, and says how many there are.
    """
    if len(reasons) > limit:
        count = f"{len(reasons)} images cannot be read, and data.bad_images allows {limit}"
        raise UsageError(f"{reasons[-1]}; {count}" if limit else reasons[-1])


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
        if reasons:
            self._reasons.update(dict.fromkeys(reasons))
            check_bad_images(list(self._reasons), self._limit)

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

    def read(self, index: int) -> Pixels | str:
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
        check_bad_images(list(self._reasons.values()), self._limit)
        return self._reasons[index]

    def readable(self, index: int) -> tuple[Pixels, int, list[str]]:
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
