"""Lines on standard output and standard error, for any text and any terminal."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


def printable(text: str) -> str:
    """Return `text` with escapes in the place of what is not to be printed.

    These are control characters, which could rewrite a terminal, and the bytes of file names that
    no character stands for.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def write_line(text: str) -> None:
    """Print one line on standard output, with escapes for characters that it cannot show.

    After the reader of standard output has gone, as in `convmixer ... | head`, nothing is printed.

    Raises:
        OSError: it cannot be written for another reason, such as a full disk.
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
    """Write out what was printed on standard output; a failure is a line on standard error."""
    if sys.stdout is not None:
        try:
            with _until_the_reader_goes():
                sys.stdout.flush()
        except OSError as error:
            write_error(f"{error.filename}: {error.strerror}")


@contextlib.contextmanager
def _until_the_reader_goes() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # The interpreter writes out what is left when it ends, and would fail once more.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        if not isinstance(error, BrokenPipeError):
            raise OSError(error.errno, error.strerror, "standard output") from None
