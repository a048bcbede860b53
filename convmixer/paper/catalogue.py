"""The studies of the sources by the names that `convmixer ablate --table` takes."""

from __future__ import annotations

from convmixer.errors import UsageError, closest
from convmixer.paper import columbia, tables
from convmixer.studies.study import Study

TITLES: dict[str, str] = {str(number): title for number, title in tables.TITLES.items()}
TITLES |= columbia.TITLES


def find_study(name: str) -> Study:
    """Return a table of the paper, ``"1"`` to ``"8"``, or a study of `convmixer.paper.columbia`.

    Raises:
        UsageError: the name is unknown; the message names the closest.
    """
    if name not in TITLES:
        known = ", ".join(TITLES)
        raise UsageError(f"table: expected one of {known}, got {name}{closest(name, TITLES)}")
    return (
        columbia.columbia_study(name) if name in columbia.TITLES else tables.paper_table(int(name))
    )
