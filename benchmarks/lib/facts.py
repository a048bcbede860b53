"""Facts as JSON lines, each on disk as soon as it is known. No PyTorch here."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

Fact = dict[str, Any]
_LONGEST_TEXT = 600


class Facts:
    """A file to which several processes add facts, each in one write that a kill cannot tear."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begun = time.monotonic()

    def add(self, fact: str, **fields: Any) -> None:
        """Add a line of JSON; it is on disk afterwards.

        The line begins with the name of the fact and the seconds since this object was made, which
        tell what the time of a visit goes into.
        """
        seconds = round(time.monotonic() - self._begun, 2)
        line = json.dumps({"fact": fact, "at": seconds, **fields}) + "\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode())
            os.fsync(file)
        finally:
            os.close(file)

    def read(self) -> list[Fact]:
        return read(self.path) if self.path.exists() else []


def read(path: Path) -> list[Fact]:
    """The facts of a file in their order.

    Raises:
        ValueError: a line is not a fact; says which.
    """
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            fact = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is not JSON ({error})") from None
        if not isinstance(fact, dict) or "fact" not in fact:
            raise ValueError(f'line {number} is not an object with a "fact"')
        found.append(fact)
    return found


def of(facts: list[Fact], name: str) -> list[Fact]:
    return [fact for fact in facts if fact["fact"] == name]


def fields(fact: Fact) -> Fact:
    """Return the fields of a fact except its name and its time."""
    return {name: value for name, value in fact.items() if name not in ("fact", "at")}


def shortened(text: object) -> str:
    """The end of a long text, where tools and compilers say what went wrong."""
    whole = str(text).strip()
    return whole if len(whole) <= _LONGEST_TEXT else f"... {whole[-_LONGEST_TEXT:]}"


def message(error: BaseException) -> str:
    return f"{type(error).__name__}: {shortened(error)}"
