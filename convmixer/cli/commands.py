"""The commands of `convmixer`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from convmixer.cli.parser import field_overrides
from convmixer.config.fields import FIELDS, as_text, get_value, override
from convmixer.config.recipes import fields_of, load_recipe
from convmixer.config.settings import Config
from convmixer.errors import UsageError
from convmixer.model.pretrained import published_weights
from convmixer.model.variants import get_variant
from convmixer.paper.catalogue import TITLES, find_study
from convmixer.paper.variant_settings import recipe_of, variant_fields
from convmixer.paper.weight_plots import plot_weights
from convmixer.studies.plan import plan
from convmixer.studies.running import run_study
from convmixer.studies.study import folder_name
from convmixer.studies.sweeps import earlier_runs, parse_sweep, sweep_labels, sweep_study
from convmixer.terminal import write_line
from convmixer.training.evaluation import checkpoint_config, evaluate
from convmixer.training.run_folder import RunFolder, weights_file
from convmixer.training.runs import train, train_seeds

COMMAND_LINE = "command line"


def _positive(name: str, value: int) -> int:
    """Return the value of an option that has to be at least 1."""
    if value < 1:
        raise UsageError(f"{name}: expected at least 1, got {value}")
    return value


def training_folder(arguments: argparse.Namespace) -> Path:
    """Return the folder of the run of `convmixer train`."""
    return arguments.out or Path("runs", Path(arguments.recipe).stem)


def _train(arguments: argparse.Namespace) -> None:
    seeds = _positive("--seeds", arguments.seeds)
    if arguments.variant is not None and arguments.recipe is None and not arguments.resume:
        arguments.recipe = recipe_of(arguments.variant)
    if arguments.recipe is None and (not arguments.resume or arguments.out is None):
        raise UsageError(
            "--resume needs --out FOLDER" if arguments.resume else "name a recipe with --recipe"
        )
    out = training_folder(arguments)
    if arguments.resume:
        config = RunFolder(out).load_config()
        if arguments.recipe is not None and load_recipe(arguments.recipe).recipe != config.recipe:
            raise UsageError(f"the run in {out} is of recipe {config.recipe}")
    else:
        config = load_recipe(arguments.recipe)
    model = {} if arguments.variant is None else variant_fields(arguments.variant, config.recipe)
    overrides = field_overrides(arguments)
    config = override(config, model | overrides)
    if arguments.show:
        recipe_fields = set(FIELDS) if arguments.resume else fields_of(arguments.recipe)
        source = f"the run in {out}" if arguments.resume else f"recipe {arguments.recipe}"
        origins = dict.fromkeys(recipe_fields, source)
        origins |= dict.fromkeys(model, f"variant {arguments.variant}")
        origins |= dict.fromkeys(overrides, COMMAND_LINE)
        _show(config, origins)
    elif seeds > 1:
        train_seeds(config, out, seeds, resume=arguments.resume)
    else:
        train(config, out, resume=arguments.resume)


def _show(config: Config, origins: Mapping[str, str]) -> None:
    """Print every field of the settings with its value and its origin."""
    values = {name: as_text(get_value(config, name)) for name in FIELDS if name != "description"}
    names, width = max(map(len, values)), max(map(len, values.values()))
    for name, value in values.items():
        write_line(f"{name:{names}}  {value:{width}}  {origins.get(name, 'default')}")


def _settings(arguments: argparse.Namespace, checkpoint: Path) -> Config:
    """Return the settings of the checkpoint of a command."""
    return checkpoint_config(
        checkpoint,
        recipe=arguments.recipe,
        variant=arguments.variant,
        overrides=field_overrides(arguments),
    )


def _evaluate(arguments: argparse.Namespace) -> None:
    evaluate(
        arguments.checkpoint,
        _settings(arguments, arguments.checkpoint),
        split=arguments.split,
        test_time_augmentation=arguments.tta,
        out=arguments.out,
    )


def _predict(arguments: argparse.Namespace) -> None:
    from convmixer.training.prediction import predict

    top, checkpoint = _positive("--top", arguments.top), arguments.checkpoint
    if checkpoint is None:
        if arguments.variant is None:
            raise UsageError("name weights with --checkpoint, or published ones with --variant")
        checkpoint = published_weights(arguments.variant, get_variant(arguments.variant).hub_id)
    config = _settings(arguments, checkpoint)
    for prediction in predict(checkpoint, arguments.images, config, top=top):
        write_line(prediction.path)
        for name, probability in prediction.classes:
            write_line(f"  {100 * probability:5.1f}%  {name}")


def _export(arguments: argparse.Namespace) -> None:
    from convmixer.training.checkpoint_export import export_checkpoint

    if arguments.out is None:
        raise UsageError("name the file to write with --out")
    config = _settings(arguments, arguments.checkpoint)
    export_checkpoint(arguments.checkpoint, config, arguments.out)
    write_line(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")


def _list_studies(table: str | None, recipe: str | None) -> None:
    """Print the tables, or the rows of one with the names that they have on a recipe."""
    for name in TITLES if table is None else (table,):
        study = find_study(name)
        reports = ", ".join(f"{report.author}: {report.images}" for report in study.reports)
        write_line(
            f"{name}: {study.title} ({len(study.rows)} rows; recipe {study.own_recipe}"
            f"{f'; {reports}' if reports else ''})"
        )
        if table is None:
            continue
        for result in plan(study, study.base(load_recipe(recipe or str(study.own_recipe)), {})):
            reported = [
                f"{report.author} {value:.2f}%"
                for report, value in zip(study.reports, result.row.reported, strict=True)
            ]
            write_line(f"  {folder_name(result.label):44} {'  '.join(reported)}".rstrip())


def _ablate(arguments: argparse.Namespace) -> None:
    if arguments.list:
        _list_studies(arguments.table, arguments.recipe)
        return
    if arguments.table is None:
        raise UsageError("name a table with --table, or see them with --list")
    study = find_study(arguments.table)
    recipe = load_recipe(arguments.recipe or str(study.own_recipe))
    run_study(
        study,
        recipe,
        arguments.out or Path("runs", f"table-{arguments.table}-{recipe.recipe}"),
        overrides=field_overrides(arguments),
        seeds=_positive("--seeds", arguments.seeds),
        labels=arguments.rows.split(",") if arguments.rows else (),
    )


def _sweep(arguments: argparse.Namespace) -> None:
    axes = dict(map(parse_sweep, arguments.fields))
    if len(axes) < len(arguments.fields):
        raise UsageError("a field stands twice in the sweep")
    recipe, overrides = load_recipe(arguments.recipe), field_overrides(arguments)
    fields = "-".join(name.rpartition(".")[2] for name in axes)
    out = arguments.out or Path("runs", f"sweep-{fields}-{recipe.recipe}")
    run_study(
        sweep_study(axes, earlier_runs(axes, override(recipe, overrides), out)),
        recipe,
        out,
        overrides=overrides,
        seeds=_positive("--seeds", arguments.seeds),
        labels=sweep_labels(axes),
    )


def _plot_weights(arguments: argparse.Namespace) -> None:
    pictures = plot_weights(
        arguments.checkpoint,
        arguments.out or weights_file(arguments.checkpoint).parent,
        layers=_positive("--layers", arguments.layers),
        seed=arguments.seed,
    )
    for picture in pictures:
        write_line(str(picture))


def _receptive_field(arguments: argparse.Namespace) -> None:
    from convmixer.paper.receptive_field import plot_receptive_field

    checkpoint = weights_file(arguments.checkpoint)
    picture, shares = plot_receptive_field(
        checkpoint,
        _settings(arguments, checkpoint),
        arguments.out or checkpoint.parent,
        images=_positive("--images", arguments.images),
    )
    for share, side in shares.items():
        write_line(f"{share}% of the influence lies in the middle {side} x {side} pixels")
    write_line(str(picture))


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "export": _export,
    "ablate": _ablate,
    "sweep": _sweep,
    "plot-weights": _plot_weights,
    "receptive-field": _receptive_field,
}
