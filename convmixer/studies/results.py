"""The results of a study: a table as CSV and Markdown, and its pictures."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convmixer.config.settings import Config
from convmixer.errors import UsageError
from convmixer.model.variants import parameter_count
from convmixer.studies import pictures
from convmixer.studies.lines import Points, panels, words
from convmixer.studies.plan import Result
from convmixer.studies.study import Study
from convmixer.training.run_folder import write_csv, write_text

COLUMNS = (
    "study", "row", "recipe", "measured_on", "epochs", "test_accuracy", "test_accuracy_deviation",
    "validation_accuracy", "seeds", "test_images", "parameters", "changes", "note",
)  # fmt: skip
"""The columns of `results.csv` before those of publications."""


def check_folder(study: Study, base: Config, out: Path) -> None:
    """Check that a folder holds no results of another study or recipe.

    Raises:
        UsageError: it does.
    """
    try:
        with (out / "results.csv").open(encoding="utf-8", newline="") as file:
            row = next(csv.DictReader(file), {})
    except FileNotFoundError:
        return
    found, own = (row.get("study"), row.get("recipe")), (study.name, base.recipe)
    if found != own:
        raise UsageError(
            f"{out} holds the results of {found[0]} on the recipe {found[1]}, not of {own[0]} on "
            f"{own[1]}: name another folder with --out"
        )


def parameters_of(config: Config) -> int:
    """Return the number of parameters of the model of these settings."""
    m = config.model
    return parameter_count(
        m.dim, m.depth, m.kernel_size, m.patch_size, m.n_classes, m.in_chans, stacked=m.stacked
    )


def noise(results: Sequence[Result]) -> str:
    """Return a sentence on the differences that chance alone makes, "" for single seeds."""
    repeated = [result for result in results if len(result.summaries) > 1 and not result.twin]
    if not repeated:
        return ""
    pooled = math.sqrt(statistics.fmean(statistics.variance(r.accuracies) for r in repeated))
    seeds = min(len(result.summaries) for result in repeated)
    images = repeated[0].summaries[0]["test_images"]
    return (
        f"The standard deviation between seeds is {pooled:.2f} points over all rows. The means of "
        f"two rows of {seeds} seeds on the same {images:,} test images that differ by less than "
        f"{2 * pooled * math.sqrt(2 / seeds):.2f} points (two standard errors of a difference) "
        "cannot be told apart."
    )


def _cells(study: Study, base: Config, result: Result) -> dict[str, Any]:
    """Return the cells of a row of `results.csv`, by their columns."""
    config, validation = result.config, result.validation_accuracy
    cells = {
        "study": study.name,
        "row": result.label,
        "recipe": base.recipe,
        "measured_on": base.data.source,
        "epochs": "" if config is None else config.epochs,
        "test_accuracy": "" if result.mean is None else f"{result.mean:.3f}",
        "test_accuracy_deviation": "" if result.deviation is None else f"{result.deviation:.3f}",
        "validation_accuracy": "" if validation is None else f"{validation:.3f}",
        "seeds": len(result.summaries),
        "test_images": result.summaries[0].get("test_images", "") if result.summaries else "",
        "parameters": result.parameters or "",
        "changes": "" if config is None else words(config, base),
        "note": result.note,
    }
    for report, accuracy in zip(study.reports, result.row.reported, strict=True):
        cells[f"{report.name}_row"] = _printed_label(result)
        cells[f"{report.name}_measured_on"] = report.images
        cells[f"{report.name}_accuracy"] = "" if accuracy is None else f"{accuracy:.2f}"
    return cells


def _printed_label(result: Result) -> str:
    return result.label if result.printed is None else result.row.label(result.printed)


def heading(study: Study) -> str:
    """Return the heading of a study: its name and its title."""
    return f"{study.name[0].upper()}{study.name[1:]}: {study.title}"


def _introduction(study: Study, base: Config) -> str:
    epochs = f"{base.epochs} epoch" + ("s" if base.epochs > 1 else "")
    text = (
        f"Measured here with the recipe {base.recipe} ({epochs}, images: {base.data.source}): mean "
        "and sample standard deviation of the test accuracy over the seeds."
    )
    if study.reports:
        named = " and ".join(f"{report.author} on {report.images}" for report in study.reports)
        text += f" Beside it stands what is reported by {named}."
    if study.own_recipe and base.recipe != study.own_recipe:
        text += (
            f" Rows are named by the model that ran: {base.recipe} takes width, depth and patch "
            "size in proportion to its own model. Images and training are not those of the "
            "publication, so compare rows with rows, not columns."
        )
    return text


def markdown(study: Study, base: Config, results: Sequence[Result]) -> str:
    """Return the results as Markdown, the accuracies of publications in columns of their own."""
    validated = any(result.validation_accuracy is not None for result in results)
    renamed = any(_printed_label(result) != result.label for result in results)
    columns = [
        "row",
        *(["row of the publication"] if renamed else []),
        f"{base.recipe}: accuracy (%)",
        *(["on validation images (%)"] if validated else []),
        "seeds",
        "parameters",
        *(f"{report.author}, {report.images} (%)" for report in study.reports),
        "note",
    ]
    lines = [f"# {heading(study)}", "", _introduction(study, base), ""]
    lines += [_table_line(columns), "|" + "---|" * len(columns)]
    for result in results:
        accuracy = "-" if result.mean is None else f"{result.mean:.2f}"
        if result.deviation is not None:
            accuracy += f" ± {result.deviation:.2f}"
        validation = result.validation_accuracy
        cells = [
            result.label,
            *([_printed_label(result)] if renamed else []),
            accuracy,
            *(["-" if validation is None else f"{validation:.2f}"] if validated else []),
            str(len(result.summaries)),
            "-" if result.parameters is None else f"{result.parameters:,}",
            *("-" if value is None else f"{value:.2f}" for value in result.row.reported),
            result.note,
        ]
        lines.append(_table_line(cells))
    if sentence := noise(results):
        lines += ["", sentence]
    return "\n".join(lines) + "\n"


def _table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write_tables(study: Study, base: Config, results: Sequence[Result], out: Path) -> None:
    """Write `results.csv` and `results.md` with the results so far."""
    out.mkdir(parents=True, exist_ok=True)
    columns = [
        *COLUMNS,
        *(f"{r.name}_{part}" for r in study.reports for part in ("row", "measured_on", "accuracy")),
    ]
    write_csv(out / "results.csv", columns, [_cells(study, base, result) for result in results])
    write_text(out / "results.md", markdown(study, base, results))


def draw(study: Study, base: Config, results: Sequence[Result], out: Path) -> None:
    """Draw `results.png`, a row each, and what else there is to draw.

    That is `lines.png`, accuracy over the numeric fields that the rows vary and over the number of
    parameters, and `curves.png`, accuracy over the epochs. What was measured is drawn once for rows
    with the same settings.
    """
    own = [result for result in results if not result.twin]
    measured_on = f"measured here, recipe {base.recipe}"
    pictures.save_rows(
        out / "results.png",
        title=heading(study),
        labels=[result.label for result in own],
        accuracies=[result.accuracies for result in own],
        measured_on=measured_on,
        reported={
            f"{report.author}, {report.images}": [result.row.reported[number] for result in own]
            for number, report in enumerate(study.reports)
        },
        baseline=next((i for i, r in enumerate(own) if r.label == study.baseline), None),
    )
    _save_lines(study, results, measured_on, out)
    histories = {result.label: result.histories for result in own if result.histories}
    pictures.save_curves_of_rows(out / "curves.png", heading(study), measured_on, histories)


def _save_lines(study: Study, results: Sequence[Result], measured_on: str, out: Path) -> None:
    """Draw the lines of what was measured and of what is reported, if there are any."""
    run = [
        (r.config, r.accuracies)
        for r in results
        if r.config is not None and r.summaries and not r.twin
    ]
    sources = [pictures.Source(measured_on, panels(run), _networks(run))]
    peers = [pictures.Network(p.name, 1e6 * p.parameters, (p.accuracy,)) for p in study.peers]
    for number, report in enumerate(study.reports):
        printed = [
            (r.printed, (value,))
            for r in results
            if r.printed is not None and (value := r.row.reported[number]) is not None
        ]
        title = f"{report.author}, {report.images}, as reported"
        sources.append(pictures.Source(title, panels(printed), _networks(printed), peers))
    pictures.save_lines(out / "lines.png", heading(study), sources)


def _networks(points: Points) -> list[pictures.Network]:
    """Return the networks of rows with three different numbers of parameters or more, else none."""
    networks = [
        pictures.Network(f"{c.model.dim}/{c.model.depth}", parameters_of(c), accuracies)
        for c, accuracies in points
    ]
    return networks if len({each.parameters for each in networks}) > 2 else []
