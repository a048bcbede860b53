"""Running the rows of a study over several seeds, and gathering what a folder holds of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convmixer.config.fields import CHANGEABLE_ON_RESUME, FIELDS, get_value, override
from convmixer.config.settings import Config
from convmixer.errors import TrainingDivergedError
from convmixer.studies.plan import Result, chosen, plan
from convmixer.studies.results import check_folder, draw, markdown, write_tables
from convmixer.studies.study import Study, folder_name
from convmixer.training.distributed import Processes, running_processes
from convmixer.training.reporting import Console
from convmixer.training.run_folder import RunFolder
from convmixer.training.run_state import StopRequest
from convmixer.training.runs import train

MAY_DIFFER = CHANGEABLE_ON_RESUME | {"seed", "recipe", "description"}
"""The fields in which the runs of a row may differ."""


def same_study(config: Config, other: Config) -> bool:
    """Return whether two settings agree in all fields that change the result, but for the seed."""
    return all(
        get_value(config, name) == get_value(other, name)
        for name in FIELDS
        if name not in MAY_DIFFER
    )


def run_study(
    study: Study,
    recipe: Config,
    out: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    seeds: int = 1,
    labels: Sequence[str] = (),
    silent: bool = False,
) -> list[Result]:
    """Train the rows of a study on a recipe, write a table of its results and draw them.

    Finished runs under `out/runs` are kept and interrupted ones continue, so that the same call
    goes on after an interruption. Rows that an earlier call has trained in the folder stand in the
    results too. Rows with the settings of an earlier row share its runs. The table is written again
    after every row, and the pictures at the end.

    Args:
        study: the rows; see `convmixer.paper.catalogue` and `convmixer.studies.sweeps`.
        recipe: the settings that the rows change, with the first seed.
        out: folder of the study.
        overrides: fields to change in all rows, the model's among them.
        seeds: runs of each row, with seeds one after another.
        labels: the rows to run, as `folder_name` spells them; none for all.
        silent: print nothing.

    Returns:
        the rows that have been trained or do not fit the images, in order.

    Raises:
        UsageError: settings or images cannot work, or there are other runs under `out`.
        TrainingInterruptedError: after SIGINT or SIGTERM, when the run has been saved.
    """
    base = study.base(recipe, overrides or {})
    results = plan(study, base)
    wanted = chosen(study, results, labels)
    check_folder(study, base, out)
    shown: list[Result] = []
    with StopRequest() as stop, running_processes(base.device) as processes:
        console = Console(silent=silent or not processes.is_main)
        for result in results:
            # A twin that is wanted trains the row whose runs it shares.
            needed = any(each.summaries is result.summaries for each in wanted)
            if result.config is not None and not result.twin:
                if needed:
                    _run_row(result, out, seeds, console, processes, stop, silent=silent)
                else:
                    _gather(result, out)
            if needed or result.summaries:
                shown.append(result)
                if processes.is_main:
                    write_tables(study, base, shown, out)
        if processes.is_main:
            draw(study, base, shown, out)
        for line in markdown(study, base, shown).splitlines():
            console.line(line)
        console.line(f"results: {out / 'results.md'}")
    return shown


def _folder(result: Result, out: Path) -> RunFolder:
    return RunFolder(out / "runs" / folder_name(result.label))


def _add(result: Result, run: RunFolder, summary: dict[str, Any]) -> None:
    result.summaries.append(summary)
    result.histories.append(run.load_metrics())


def _gather(result: Result, out: Path) -> None:
    """Add the finished runs of an earlier call to a row that is not to be run now."""
    assert result.config is not None
    folder = _folder(result, out)
    for run in map(folder.of_seed, folder.seeds):
        if run.is_finished and same_study(run.load_config(), result.config):
            _add(result, run, run.load_summary())


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
    """Train the seeds of a row and add their summaries to `result`."""
    assert result.config is not None
    folder = _folder(result, out)
    for seed in range(result.config.seed, result.config.seed + seeds):
        run = folder.of_seed(seed)
        if stop.wanted(processes):
            raise stop.interruption(f"before row {result.label!r}, seed {seed}")
        console.line(f"{result.label}, seed {seed}: {run.path}")
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
            _add(result, run, summary)
