"""The errors that end a command, which reports each as one line without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Settings, files or folders that cannot work as given; the message is one clear line."""


class ProcessError(UsageError):
    """A mistake that one of several processes has met and the others have not."""


class LostProcessError(RuntimeError):
    """Another process of the run has ended, and this one cannot go on without it."""


class LostWorkerError(RuntimeError):
    """A process that loads images has ended before its time."""


class TrainingDivergedError(RuntimeError):
    """The loss became infinite or not a number."""


class TrainingInterruptedError(Exception):
    """A run stopped on request, after it was saved; the message says how to continue."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def one_line(error: BaseException) -> str:
    """Return the message of an error as one line; that of an OSError begins with its file."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename2 or error.filename}: {error.strerror}"
    text = str(error).strip() or type(error).__name__
    if "Traceback" in text:
        # A DataLoader passes on the whole traceback of its worker, whose last line is the message.
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())


def closest(word: str, choices: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the nearest choice, or "" where nothing is near."""
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.7)
    return f" (did you mean {near[0]!r}?)" if near else ""
