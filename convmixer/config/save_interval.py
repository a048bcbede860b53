"""The interval at which a run is saved inside an epoch, as the settings spell it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from convmixer.errors import UsageError

_FORM = re.compile(r"(\d+(?:\.\d+)?)\s*(steps?|m|min|minutes?|h|hours?)")
_SECONDS = {"m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class SaveInterval:
    """A number of optimizer steps, or of seconds; the other of the two is None."""

    steps: int | None = None
    seconds: float | None = None


def parse_save_interval(text: str) -> SaveInterval:
    """Return the interval that `text` spells: `500 steps`, `10 minutes` (`10m`) or `2 hours`.

    Raises:
        UsageError: the text has another form, or the interval is not positive.
    """
    match = _FORM.fullmatch(text.strip().lower())
    number, unit = (match[1], match[2]) if match else ("0", "")
    of_steps = unit.startswith("step")
    if float(number) == 0 or (of_steps and "." in number):
        raise UsageError(
            f"save_every: expected steps or minutes such as 500 steps, 10 minutes or 10m, got "
            f"{text!r}"
        )
    if of_steps:
        return SaveInterval(steps=int(number))
    return SaveInterval(seconds=float(number) * _SECONDS[unit[0]])
