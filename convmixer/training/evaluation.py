"""Evaluating a checkpoint: its metrics and its confusion."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from convmixer.config.fields import from_dict, override
from convmixer.config.recipes import load_recipe
from convmixer.config.settings import Config
from convmixer.data.sources import Split, load_split
from convmixer.errors import UsageError
from convmixer.model.checkpoints import load_checkpoint
from convmixer.model.variants import get_variant
from convmixer.terminal import few, printable
from convmixer.training import plots
from convmixer.training.bad_images import check_bad_images
from convmixer.training.class_names import class_name_warning
from convmixer.training.distributed import Processes, running_processes
from convmixer.training.environment import build_model, cpu_threads, device_name, numerics
from convmixer.training.loaders import EvaluationLoader, worker_count
from convmixer.training.metrics import METRICS
from convmixer.training.reporting import Console
from convmixer.training.run_folder import prepare_folder, weights_file, write_json
from convmixer.training.run_state import read_checkpoint
from convmixer.training.scoring import augmented_views, score

LARGEST_CONFUSION = 20
"""Confusion is shown for at most this many classes."""
WITH_AUGMENTATION = "_with_augmentation"
"""The suffix of the names of results with test-time augmentation."""


def checkpoint_config(
    checkpoint: Path,
    *,
    recipe: str | None = None,
    variant: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """Return the settings that go with a checkpoint.

    Checkpoints of `convmixer train` hold their settings. For others name a `recipe`, or a `variant`
    of the paper, which means the recipe of its images (imagenet or cifar10) with its architecture.

    Args:
        checkpoint: a file, or the folder of a run, whose tested weights are meant.
        recipe: name of a recipe, or path of a .yaml file.
        variant: one of `convmixer.list_variants()`.
        overrides: fields to change by their full or last names.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: the settings are neither in the file nor named, or recipe, variant or a field of
            the overrides is unknown.
    """
    checkpoint = weights_file(checkpoint)
    saved = None if recipe or variant else read_checkpoint(checkpoint).get("config")
    config: Config | None
    if variant is not None:
        arguments = get_variant(variant).arguments
        config = load_recipe(recipe or ("cifar10" if arguments["n_classes"] == 10 else "imagenet"))
        config = override(config, {f"model.{name}": value for name, value in arguments.items()})
    elif recipe is not None:
        config = load_recipe(recipe)
    else:
        try:
            config = from_dict(saved) if isinstance(saved, Mapping) else None
        except UsageError:
            config = None  # Another program has written these settings.
        if config is None:
            raise UsageError(
                f"{checkpoint} does not say which model it belongs to: name it with --variant (one "
                "of convmixer.list_variants()) or with --recipe and --model.* fields"
            )
    return override(config, overrides or {})


def confusion_table(confusion: Tensor, class_names: tuple[str, ...]) -> list[str]:
    """Return the lines of a table: a row for each true class, a column for each predicted one."""
    names = [printable(name) for name in class_names]
    counts = [[str(int(count)) for count in row] for row in confusion]
    table = [["", *names], *([name, *row] for name, row in zip(names, counts, strict=True))]
    first, *others = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        " ".join([name.ljust(first), *(c.rjust(w) for c, w in zip(cells, others, strict=True))])
        for name, *cells in table
    ]


def _load_images(config: Config, split: str, processes: Processes) -> Split:
    """Return the images to evaluate on, in all processes.

    Raises:
        UsageError: images are missing, or have other classes than the model.
    """
    # The main process may have to download the images.
    with processes.main_first():
        found = load_split(config.data, config.model.in_chans, split)
    if len(found.class_names) != config.model.n_classes:
        raise UsageError(
            f"the images have {len(found.class_names)} classes ({few(found.class_names)}), the "
            f"model has {config.model.n_classes}"
        )
    return found


def evaluate(
    checkpoint: str | os.PathLike[str],
    config: Config | None = None,
    *,
    split: str = "test",
    test_time_augmentation: bool = False,
    out: str | os.PathLike[str] | None = None,
    silent: bool = False,
) -> dict[str, Any]:
    """Evaluate a checkpoint and return its scores; accuracies are in percent.

    Args:
        checkpoint: any file that `convmixer.load_checkpoint` takes, or the folder of a run, whose
            tested weights are meant.
        config: settings of the checkpoint; by default those that it holds, see `checkpoint_config`.
        split: test, validation or train (without augmentation).
        test_time_augmentation: evaluate again with the mean of the probabilities of several views
            of each image; the names of these results end in `_with_augmentation`.
        out: folder for `evaluation.json` and, with few classes, `confusion.png`.
        silent: print nothing.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        UsageError: the checkpoint does not fit the settings, images are missing, or `out` already
            holds an evaluation.
    """
    checkpoint = weights_file(Path(checkpoint))
    if config is None:
        config = checkpoint_config(checkpoint)
    folder = None if out is None else Path(out)
    if folder is not None and (folder / "evaluation.json").exists():
        raise UsageError(
            f"{folder} already holds an evaluation.json: name another folder with --out"
        )
    with (
        cpu_threads(config.threads),
        numerics(config),
        running_processes(config.device) as processes,
    ):
        model = build_model(config, processes.device)
        with processes.together():
            load_checkpoint(model, checkpoint)
        with processes.together():
            images, class_names, notes = _load_images(config, split, processes)
            if folder is not None:
                prepare_folder(folder)
        batch_size = max(1, config.batch_size // processes.world)
        loader = EvaluationLoader(
            images, config, batch_size, processes, workers=worker_count(config.data)
        )
        with processes.alone():
            scores = score(model, loader, config, processes)
        found = processes.gather(loader.bad_images.unreported())
        bad_images = [line for lines in found for line in lines]
        check_bad_images(bad_images, config.data.bad_images)
        loss = scores.means.loss
        if not math.isfinite(loss):
            raise UsageError(f"{checkpoint}: the loss of this model is {loss}, no score")
        result: dict[str, Any] = {
            "checkpoint": str(checkpoint),
            "recipe": config.recipe,
            "split": split,
            "images": scores.means.images,
            "bad_images": len(bad_images),
            **scores.means.columns(split),
            "parameters": sum(p.numel() for p in model.parameters()),
            "device": device_name(processes.device),
        }
        if test_time_augmentation:
            views = augmented_views(config.augment.flip > 0)
            with processes.alone():
                augmented = score(model, loader, config, processes, views)
            for name, value in augmented.means.metrics.items():
                result[f"{split}_{name}{WITH_AUGMENTATION}"] = value
    if processes.is_main:
        confusion = scores.confusion if len(class_names) <= LARGEST_CONFUSION else None
        if folder is not None:
            write_json(folder / "evaluation.json", result)
        console = Console(silent=silent)
        warning = class_name_warning(checkpoint, class_names)
        for line in (
            *notes,
            *(f"skipped: {line}" for line in bad_images),
            *([] if warning is None else [warning]),
        ):
            console.line(line)
        _report(result, config, confusion, class_names, console)
        if folder is not None and confusion is not None:
            _draw(folder / "confusion.png", result, confusion, class_names)
    return result


def _report(
    result: Mapping[str, Any],
    config: Config,
    confusion: Tensor | None,
    class_names: tuple[str, ...],
    console: Console,
) -> None:
    split, model = result["split"], config.model
    console.line(
        f"{result['checkpoint']}: ConvMixer-{model.dim}/{model.depth}, "
        f"{result['parameters']:,} parameters"
    )
    console.line(
        f"{result['recipe']}, {split} split, {result['images']:,} images, {result['device']}"
    )
    console.line(f"{_metrics(result)}  loss {result[f'{split}_loss']:.4f}")
    if augmented := _metrics(result, WITH_AUGMENTATION):
        console.line(f"with test-time augmentation: {augmented}")
    if confusion is not None:
        console.line("confusion (rows: true class, columns: predicted class)")
        for line in confusion_table(confusion, class_names):
            console.line(line)


def _metrics(result: Mapping[str, Any], suffix: str = "") -> str:
    """Return the metrics of a result whose names end in `suffix` for a line."""
    named = ((metric, f"{result['split']}_{metric.name}{suffix}") for metric in METRICS)
    return "  ".join(f"{m.title} {result[name]:.2f}%" for m, name in named if name in result)


def _draw(
    path: Path, result: Mapping[str, Any], confusion: Tensor, class_names: tuple[str, ...]
) -> None:
    split = result["split"]
    title = (
        f"{result['recipe']}, {split} split: {result[f'{split}_accuracy']:.2f} % of "
        f"{result['images']:,} images"
    )
    plots.save_confusion(path, confusion, class_names, title)
