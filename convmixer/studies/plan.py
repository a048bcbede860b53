"""The rows of a study over the settings of a recipe, before and after they have run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from convmixer.config.recipes import load_recipe
from convmixer.config.settings import Config
from convmixer.errors import UsageError, closest
from convmixer.studies.study import Row, Study, folder_name


@dataclass
class Result:
    """A row with its settings and its measurements.

    Attributes:
        row: the row.
        label: the name of what runs; of a row that does not fit the images, the publication's.
        config: its settings, None if they do not fit the images.
        printed: the settings of the publication, if there is one.
        note: a line for the reader.
        twin: whether an earlier row has the same settings and shares its runs.
        summaries: the summary of every seed that finished.
        histories: the rows of `metrics.csv` of every seed that finished.
    """

    row: Row
    label: str
    config: Config | None
    printed: Config | None = None
    note: str = ""
    twin: bool = False
    summaries: list[dict[str, Any]] = field(default_factory=list)
    histories: list[list[dict[str, float]]] = field(default_factory=list)

    @property
    def accuracies(self) -> list[float]:
        """Test accuracy in percent of every seed that finished."""
        return [summary["test_accuracy"] for summary in self.summaries]

    @property
    def mean(self) -> float | None:
        """Mean test accuracy in percent over the seeds that finished."""
        return statistics.fmean(self.accuracies) if self.summaries else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the seeds, None for fewer than two."""
        return statistics.stdev(self.accuracies) if len(self.summaries) > 1 else None

    @property
    def validation_accuracy(self) -> float | None:
        """Mean accuracy on held-out training images, if there are any."""
        found = [summary.get("validation_accuracy") for summary in self.summaries]
        numbers = [number for number in found if number is not None]
        return statistics.fmean(numbers) if numbers and len(numbers) == len(found) else None

    @property
    def parameters(self) -> int | None:
        """Parameters of the model, once a seed has finished."""
        return self.summaries[0]["parameters"] if self.summaries else None


def plan(study: Study, base: Config) -> list[Result]:
    """Return the rows of a study over the settings `base`, in order, without measurements.

    Rows that do not fit the images have no settings, and a note with the reason.
    """
    own_base = study.base(load_recipe(study.own_recipe), {}) if study.own_recipe else None
    results: list[Result] = []
    for row in study.rows:
        printed = study.settings(row, own_base) if own_base else None
        try:
            config = study.settings(row, base)
        except UsageError as error:
            label = row.label(printed or base)
            results.append(Result(row, label, None, printed, note=f"not run: {error}"))
            continue
        result = Result(row, row.label(config), config, printed)
        if first := next((each for each in results if each.config == config), None):
            result.twin, result.note = True, f"same settings as {first.label!r}"
            result.summaries, result.histories = first.summaries, first.histories
        results.append(result)
    return results


def chosen(study: Study, results: Sequence[Result], labels: Sequence[str]) -> list[Result]:
    """Return the rows with the given labels, as `folder_name` spells them; all for none.

    A label is that of the row that runs or, where none runs under it, that of the publication.

    Raises:
        UsageError: no row has one of the labels.
    """
    if not labels:
        return list(results)
    own = [folder_name(result.label) for result in results]
    printed = [folder_name(r.row.label(r.printed)) if r.printed else "" for r in results]
    positions: set[int] = set()
    for label in labels:
        names = own if label in own else printed
        if label not in names:
            raise UsageError(f"{study.name} has no row {label!r}{closest(label, own)}")
        positions |= {position for position, name in enumerate(names) if name == label}
    return [results[position] for position in sorted(positions)]
