"""Training a recipe: one run or several seeds, from the start or continued."""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from convmixer.config.fields import check_same_run, override
from convmixer.config.settings import Config
from convmixer.data.sources import Splits, load_splits
from convmixer.errors import TrainingInterruptedError, UsageError
from convmixer.model.checkpoints import load_checkpoint
from convmixer.training import plots
from convmixer.training.class_names import class_name_warning
from convmixer.training.distributed import Processes, running_processes
from convmixer.training.environment import (
    cpu_threads,
    depthwise_implementation,
    device_name,
    effective_amp,
    numerics,
)
from convmixer.training.provenance import record_start
from convmixer.training.reporting import (
    WARMUP_STEPS,
    Console,
    rounded,
    run_line,
    training_accuracy_note,
)
from convmixer.training.run_folder import RunFolder, write_json
from convmixer.training.run_state import StopRequest
from convmixer.training.scoring import Scores
from convmixer.training.trackers import check_tracker, open_tracker
from convmixer.training.trainer import Trainer, read_state


def train(
    config: Config,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    silent: bool = False,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """Train one run and return its summary.

    The folder `out` then holds `config.yaml`, `metrics.csv` (a line an epoch), `summary.json`,
    `curves.png`, `train.log`, `environment.json` (versions and commands), `last.pt` (everything a
    continuation needs) and `best.pt` (the tested weights). Accuracies are in percent.

    Args:
        config: the settings; see `convmixer.load_recipe`.
        out: folder of the run.
        resume: continue the run in `out` exactly where it stopped; a finished run is left as it is.
        silent: print nothing.
        stop: the stop request of a command with several runs; by default the run has its own.

    Raises:
        UsageError: settings, images or folder cannot work.
        TrainingInterruptedError: SIGINT or SIGTERM has ended the run, which has been saved.
        TrainingDivergedError: the loss is no longer finite.
        LostWorkerError: a process that loads images is gone; the run has been saved.
        OSError: a file cannot be written, as on a full disk; the error names it.
    """
    check_tracker(config)
    folder = RunFolder(Path(out))
    if resume:
        if folder.seeds:
            raise UsageError(f"{out} holds several seeds: say how many with --seeds N")
        check_same_run(folder.load_config(), config, f"the run in {out}")
        if folder.is_finished:
            summary = folder.load_summary()
            Console(silent=silent).line(
                f"{out} is finished already: test accuracy {summary['test_accuracy']:.2f}%"
            )
            return summary
    else:
        folder.check_free()
    with contextlib.ExitStack() as stack:
        stop = stop or stack.enter_context(StopRequest())
        stack.enter_context(cpu_threads(config.threads))
        stack.enter_context(numerics(config))
        processes = stack.enter_context(running_processes(config.device))
        return _run(config, folder, processes, stop, stack, resume=resume, silent=silent)


def _run(
    config: Config,
    folder: RunFolder,
    processes: Processes,
    stop: StopRequest,
    stack: contextlib.ExitStack,
    *,
    resume: bool,
    silent: bool,
) -> dict[str, Any]:
    console = Console(folder.log, silent=silent or not processes.is_main)
    state: dict[str, Any] | None = None
    if resume:
        # A second process is refused before it reads anything.
        with processes.together():
            _lock(folder, processes, console, stack)
            if folder.last.exists():
                state = read_state(folder.last)
    # The images may have to be downloaded.
    with processes.together(), processes.main_first():
        splits = load_splits(config.data, config.model.in_chans)
    continued = state is not None
    # Earlier versions saved neither of the two.
    parts, started_in = ((state or {}).get(name) for name in ("parts", "processes"))
    trainer = Trainer(config, splits, folder, processes, console, parts, started_in)
    with processes.together():
        if config.initial_checkpoint and not continued:
            trainer.stepper.start_from(Path(config.initial_checkpoint))
        if not resume:
            # Mistakes that were met up to here leave no folder behind.
            _lock(folder, processes, console, stack)
            if processes.is_main:
                folder.create(config)
        if state is not None:
            trainer.continue_from(folder.last, state)
            state = None  # The run has its own copy.
            console.line(f"continuing {folder.path} before {trainer.position}")
        described = run_line(config, splits, trainer.parameters, processes.device)
        for line in (described, trainer.loader.description, *splits.notes):
            console.line(line)
        for line in _warnings(config, splits, continued=resume):
            console.line(line)
        if processes.is_main:
            record_start(folder.path / "environment.json", processes)
            console.tracker = open_tracker(config, folder.path, trainer.epoch)
    try:
        trainer.run(stop)
    except TrainingInterruptedError:
        if processes.is_main:
            plots.save_curves(folder.curves, config, trainer.history, None)
        raise
    with processes.alone():
        load_checkpoint(trainer.stepper.evaluated, folder.best)
        scores = trainer.test()
        trainer.report_bad_images()
    summary = _summary(trainer, scores)
    if processes.is_main:
        write_json(folder.summary, summary)
        plots.save_curves(folder.curves, config, trainer.history, scores.accuracy)
    console.line(f"images/s {rounded(summary['images_per_second'])} in training")
    console.line(f"test accuracy {scores.accuracy:.2f}% ({scores.means.images:,} images)")
    console.line(f"curves: {folder.curves}")
    return summary


def _lock(
    folder: RunFolder, processes: Processes, console: Console, stack: contextlib.ExitStack
) -> None:
    """Let the main process hold the folder until the end of `stack`."""
    if processes.is_main:
        note = stack.enter_context(folder.locked())
        if note is not None:
            console.line(note)


def _warnings(config: Config, splits: Splits, *, continued: bool) -> list[str]:
    """Return lines on what a reader of the results may misunderstand."""
    found = [training_accuracy_note(config)]
    if config.initial_checkpoint and not continued:
        found.append(class_name_warning(Path(config.initial_checkpoint), splits.class_names))
    return [line for line in found if line is not None]


def _summary(trainer: Trainer, scores: Scores) -> dict[str, Any]:
    """Return the contents of `summary.json`."""
    config, processes = trainer.config, trainer.processes
    return {
        "recipe": config.recipe,
        "data": config.data.source,
        **scores.means.columns("test"),
        "test_images": scores.means.images,
        "bad_images": len(trainer.bad_images),
        "tested_epoch": trainer.best_epoch,
        "selection": (
            "best epoch on validation images" if config.select == "best" else "last epoch"
        ),
        "validation_accuracy": trainer.history[trainer.best_epoch - 1].get("validation_accuracy"),
        "parameters": trainer.parameters,
        "images_per_second": trainer.throughput.mean,
        "images_per_second_counts": (
            "training loop with data loading, without evaluation, after the first "
            f"{WARMUP_STEPS} steps of the process"
        ),
        "training_seconds": sum(row["seconds"] for row in trainer.history),
        "epochs": config.epochs,
        "seed": config.seed,
        "dw_impl": depthwise_implementation(config, processes.device),
        "amp": effective_amp(config, processes.device),
        "device": device_name(processes.device),
        "processes": processes.world,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def train_seeds(
    config: Config, out: Path, seeds: int, *, resume: bool = False, silent: bool = False
) -> dict[str, Any]:
    """Train two or more `seeds`, from `config.seed` on, and return mean and deviation.

    The run of seed N is kept in `out/seed-N`; `out` has a `summary.json` with the mean and the
    sample standard deviation (n - 1) of the test accuracy, and the `curves.png` of all runs.
    Arguments and errors are those of `train`; `resume` skips the finished runs.
    """
    if seeds < 2:
        raise UsageError(f"seeds: expected at least 2, got {seeds}")
    group = RunFolder(out)
    if resume:
        saved = group.load_config()
        if not group.seeds:
            raise UsageError(f"{out} holds a run of one seed: leave out --seeds")
        check_same_run(saved, config, f"the run in {out}")
    else:
        group.check_free()
    summaries, histories = [], {}
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        processes = stack.enter_context(running_processes(config.device))
        console = Console(silent=silent or not processes.is_main)
        if resume:
            with processes.together():
                _lock(group, processes, console, stack)
        for seed in range(config.seed, config.seed + seeds):
            run = group.of_seed(seed)
            if stop.wanted(processes):
                raise stop.interruption(f"before seed {seed}")
            console.line(f"seed {seed}: {run.path}")
            summaries.append(
                train(
                    override(config, {"seed": seed}),
                    run.path,
                    resume=run.holds_run,
                    silent=silent,
                    stop=stop,
                )
            )
            histories[run.path.name] = run.load_metrics()
        summary = summarize_seeds(summaries)
        if processes.is_main:
            write_json(group.summary, summary)
            plots.save_seed_curves(group.curves, config, histories, summary)
    console.line(
        f"test accuracy {summary['test_accuracy']:.2f}% +- "
        f"{summary['test_accuracy_deviation']:.2f} ({seeds} seeds)"
    )
    console.line(f"curves: {group.curves}")
    return summary


def summarize_seeds(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean and sample standard deviation over two or more runs that differ in their seed."""
    accuracies = [summary["test_accuracy"] for summary in summaries]
    rates = [s["images_per_second"] for s in summaries if s["images_per_second"] is not None]
    return {
        **{key: summaries[0][key] for key in ("recipe", "data", "parameters", "epochs", "torch")},
        "test_accuracy": statistics.fmean(accuracies),
        "test_accuracy_deviation": statistics.stdev(accuracies),
        "test_accuracies": accuracies,
        "images_per_second": statistics.fmean(rates) if rates else None,
        "seeds": [summary["seed"] for summary in summaries],
        "seed": summaries[0]["seed"],
    }
