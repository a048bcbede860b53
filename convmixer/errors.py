"""Mistakes of the user, which the command line reports as one line without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Settings, files or folders that cannot work as given; the message is one clear line."""


class TrainingDivergedError(RuntimeError):
    """The loss became infinite or not a number."""


def closest(word: str, choices: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the nearest choice, or "" where nothing is near."""
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""
