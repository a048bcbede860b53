"""Lines on standard output and standard error, for any text and any terminal."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

NAMES_IN_LINES = 3


def printable(text: str) -> str:
    """Return `text` with escapes in the place of characters that are not to be printed.

    Control characters could rewrite a terminal, and file names may hold bytes that are no text.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def few(names: Sequence[str]) -> str:
    """Return the first of several names for a line, and how many more there are."""
    more = f" and {len(names) - NAMES_IN_LINES} more" if len(names) > NAMES_IN_LINES else ""
    return ", ".join(printable(name) for name in names[:NAMES_IN_LINES]) + more


def write_line(text: str) -> None:
    """Print one line on standard output, with escapes for characters that it cannot show.

    Once the reader of standard output has gone, as in `convmixer ... | head`, lines are dropped.

    Raises:
        OSError: the line cannot be written for another reason, such as a full disk.
    """
    if sys.stdout is None:
        return
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    shown = printable(text).encode(encoding, "backslashreplace").decode(encoding)
    with _until_the_reader_goes():
        sys.stdout.write(f"{shown}\n")
        sys.stdout.flush()


def write_error(text: str) -> None:
    """Print one line on standard error, if there is one."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{printable(text)}\n")


def flush_output() -> None:
    """Flush standard output; a failure is a line on standard error."""
    if sys.stdout is not None:
        try:
            with _until_the_reader_goes():
                sys.stdout.flush()
        except OSError as error:
            write_error(f"{error.filename}: {error.strerror}")


@contextlib.contextmanager
def _until_the_reader_goes() -> Iterator[None]:
    """Send standard output nowhere once writing fails; a reader that has gone is no error."""
    try:
        yield
    except OSError as error:
        # The interpreter flushes standard output when it ends, and would fail once more.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        if not isinstance(error, BrokenPipeError):
            raise OSError(error.errno, error.strerror, "standard output") from None
