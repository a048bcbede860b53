"""Running the ablations of the paper on any recipe, and comparing the results with the paper's."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convmixer.config.fields import FIELDS, get_value, override
from convmixer.config.settings import Config
from convmixer.errors import TrainingDivergedError, UsageError, closest
from convmixer.paper.ablation_sets import AblationSet, Row, ablation_set
from convmixer.training import plots
from convmixer.training.distributed import Processes, running_processes
from convmixer.training.reporting import Console
from convmixer.training.run_folder import RunFolder, write_csv, write_text
from convmixer.training.run_state import StopRequest
from convmixer.training.runs import train

COLUMNS = (
    "table",
    "row",
    "recipe",
    "measured_on",
    "test_accuracy",
    "test_accuracy_deviation",
    "seeds",
    "parameters",
    "changes",
    "note",
    "paper_measured_on",
    "paper_accuracy",
)


@dataclass
class Result:
    """A row with its settings and its measurements."""

    row: Row
    config: Config | None
    note: str = ""
    accuracies: list[float] = field(default_factory=list)
    parameters: int | None = None

    @property
    def mean(self) -> float | None:
        """Mean test accuracy in percent over the seeds that finished."""
        return statistics.fmean(self.accuracies) if self.accuracies else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the seeds, None for fewer than two."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None


def folder_name(label: str) -> str:
    """Return a row's label as the name of a folder."""
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-")


def _changes(config: Config, baseline: Config) -> str:
    """Return the fields in which two settings differ, in words."""
    different = [name for name in FIELDS if get_value(config, name) != get_value(baseline, name)]
    return "; ".join(f"{name} {get_value(config, name)}" for name in different)


def plan(ablation: AblationSet, base: Config, labels: Sequence[str] = ()) -> list[Result]:
    """Return the rows to run over the settings `base`, in the order of the table.

    Rows that do not fit the images have no settings, and a note with the reason.

    Raises:
        UsageError: the table has no row with one of the labels.
    """
    known = [folder_name(row.label) for row in ablation.rows]
    for label in labels:
        if label not in known:
            raise UsageError(f"table {ablation.table} has no row {label!r}{closest(label, known)}")
    results = []
    for name, row in zip(known, ablation.rows, strict=True):
        if labels and name not in labels:
            continue
        try:
            results.append(Result(row, ablation.settings(row, base)))
        except UsageError as error:
            results.append(Result(row, None, note=f"not run: {error}"))
    return results


def ablate(
    table: int,
    recipe: Config,
    out: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    seeds: int = 1,
    labels: Sequence[str] = (),
    silent: bool = False,
) -> list[Result]:
    """Run a table of the paper on a recipe and write `results.csv`, `results.md`, `results.png`.

    Finished runs under `out/runs` are kept and interrupted ones continue, so that the same call
    goes on after an interruption. Rows with the settings of an earlier row share its runs. The
    results are written again after every row.

    Args:
        table: 3 to 8.
        recipe: the settings that the rows change, with the first seed. On the table's own recipe
            the model is the paper's.
        overrides: fields to change in all rows, the model's among them.
        out: folder of the ablation.
        seeds: runs of each row, with seeds one after another.
        labels: the rows to run, as `folder_name` spells them; none for all.
        silent: print nothing.

    Raises:
        UsageError: settings or images cannot work, or there are other runs under `out`.
        TrainingInterruptedError: after SIGINT or SIGTERM, when the run has been saved.
    """
    ablation = ablation_set(table)
    base = ablation.base(recipe, overrides or {})
    results = plan(ablation, base, labels)
    done: list[Result] = []
    with StopRequest() as stop, running_processes(base.device) as processes:
        console = Console(silent=silent or not processes.is_main)
        for result in results:
            twin = next((d for d in done if d.config and d.config == result.config), None)
            if twin is not None:
                result.note = f"same settings as {twin.row.label!r}"
                result.accuracies, result.parameters = twin.accuracies, twin.parameters
            elif result.config is not None:
                _run_row(result, out, seeds, console, processes, stop, silent=silent)
            done.append(result)
            if processes.is_main:
                write_results(ablation, base, done, out)
        for line in markdown(ablation, base, done).splitlines():
            console.line(line)
        console.line(f"results: {out / 'results.md'}")
    return done


def _run_row(
    result: Result,
    out: Path,
    seeds: int,
    console: Console,
    processes: Processes,
    stop: StopRequest,
    *,
    silent: bool,
) -> None:
    """Train the seeds of a row and add their accuracies to `result`."""
    assert result.config is not None
    folder = RunFolder(out / "runs" / folder_name(result.row.label))
    for seed in range(result.config.seed, result.config.seed + seeds):
        run = folder.of_seed(seed)
        if stop.wanted(processes):
            raise stop.interruption(f"before row {result.row.label!r}, seed {seed}")
        console.line(f"{result.row.label}, seed {seed}: {run.path}")
        try:
            summary = train(
                override(result.config, {"seed": seed}),
                run.path,
                resume=run.holds_run,
                silent=silent,
                stop=stop,
            )
        except TrainingDivergedError as error:
            result.note = f"seed {seed}: {error}"
            console.line(result.note)
        else:
            result.accuracies.append(summary["test_accuracy"])
            result.parameters = summary["parameters"]


def _cells(ablation: AblationSet, recipe: Config, result: Result) -> dict[str, Any]:
    """Return the cells of a row of `results.csv`, by their columns."""
    return {
        "table": ablation.table,
        "row": result.row.label,
        "recipe": recipe.recipe,
        "measured_on": recipe.data.source,
        "test_accuracy": "" if result.mean is None else f"{result.mean:.3f}",
        "test_accuracy_deviation": "" if result.deviation is None else f"{result.deviation:.3f}",
        "seeds": len(result.accuracies),
        "parameters": result.parameters or "",
        "changes": "" if result.config is None else _changes(result.config, recipe),
        "note": result.note,
        "paper_measured_on": ablation.paper_data,
        "paper_accuracy": f"{result.row.paper_accuracy:.2f}",
    }


def markdown(ablation: AblationSet, recipe: Config, results: Sequence[Result]) -> str:
    """Return the results as a Markdown table, the paper's accuracies in a column of their own."""
    epochs = f"{recipe.epochs} epoch" + ("s" if recipe.epochs > 1 else "")
    caution = (
        f" Rows are named as in the paper: {recipe.recipe} takes width, depth and patch size in "
        "proportion to its own model. Images and training differ from the paper's, so compare rows "
        "with rows, not the two columns."
        if recipe.recipe != ablation.own_recipe
        else ""
    )
    lines = [
        f"# Table {ablation.table}: {ablation.title}",
        "",
        f"Measured here with the recipe {recipe.recipe} ({epochs}): mean and sample standard "
        "deviation of the test accuracy over the seeds. The last column of numbers is what the "
        f"paper reports on {ablation.paper_data}.{caution}",
        "",
        f"| row | {recipe.recipe}: accuracy (%) | seeds | parameters | paper, "
        f"{ablation.paper_data} (%) | note |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        accuracy = "-" if result.mean is None else f"{result.mean:.2f}"
        if result.deviation is not None:
            accuracy += f" ± {result.deviation:.2f}"
        parameters = "-" if result.parameters is None else f"{result.parameters:,}"
        lines.append(
            f"| {result.row.label} | {accuracy} | {len(result.accuracies)} | {parameters} | "
            f"{result.row.paper_accuracy:.2f} | {result.note} |"
        )
    return "\n".join(lines) + "\n"


def write_results(
    ablation: AblationSet, recipe: Config, results: Sequence[Result], out: Path
) -> None:
    """Write the results so far as CSV, Markdown and a picture."""
    out.mkdir(parents=True, exist_ok=True)
    cells = [_cells(ablation, recipe, result) for result in results]
    write_csv(out / "results.csv", COLUMNS, cells)
    write_text(out / "results.md", markdown(ablation, recipe, results))
    plots.save_ablation(
        out / "results.png",
        title=f"Table {ablation.table}: {ablation.title}",
        labels=[result.row.label for result in results],
        accuracies=[result.accuracies for result in results],
        measured_on=f"{recipe.recipe} recipe, measured here",
        paper=[result.row.paper_accuracy for result in results],
        paper_measured_on=f"{ablation.paper_data}, as the paper reports",
        baseline=next((i for i, r in enumerate(results) if r.row.label == "baseline"), None),
    )
