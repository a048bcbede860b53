"""The command line: `convmixer train`, `evaluate`, `ablate`, `plot-weights`.

A mistake of the user is one line on stderr and exit code 2. A run that diverges leaves with 1, an
interrupted one with 130 (SIGINT) or 143 (SIGTERM).
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

TRAINING_PACKAGES = frozenset(
    {"matplotlib", "PIL", "sklearn", "timm", "torchvision", "tqdm", "yaml"}
)


def _positive(name: str, value: int) -> int:
    from convmixer.errors import UsageError

    if value < 1:
        raise UsageError(f"{name}: expected at least 1, got {value}")
    return value


def _train(arguments: argparse.Namespace) -> None:
    from convmixer.cli_parser import field_overrides
    from convmixer.config_io import load_recipe, override
    from convmixer.errors import UsageError
    from convmixer.run_folder import RunFolder
    from convmixer.train import train, train_seeds

    seeds = _positive("--seeds", arguments.seeds)
    if arguments.recipe is None and (not arguments.resume or arguments.out is None):
        raise UsageError(
            "--resume needs --out FOLDER" if arguments.resume else "name a recipe with --recipe"
        )
    out: Path = arguments.out or Path("runs", Path(arguments.recipe).stem)
    if arguments.resume:
        config = RunFolder(out).load_config()
        if arguments.recipe is not None and load_recipe(arguments.recipe).recipe != config.recipe:
            raise UsageError(f"the run in {out} is of recipe {config.recipe}")
        several = any(out.glob("seed-*"))
        if several and seeds == 1:
            raise UsageError(f"{out} holds several seeds: say how many with --seeds N")
        if seeds > 1 and not several:
            raise UsageError(f"{out} holds a run of one seed: leave out --seeds")
    else:
        config = load_recipe(arguments.recipe)
    config = override(config, field_overrides(arguments))
    if seeds > 1:
        train_seeds(config, out, seeds, resume=arguments.resume)
    else:
        train(config, out, resume=arguments.resume)


def _evaluate(arguments: argparse.Namespace) -> None:
    from convmixer.cli_parser import field_overrides
    from convmixer.evaluate import checkpoint_config, evaluate

    config = checkpoint_config(
        arguments.checkpoint,
        recipe=arguments.recipe,
        variant=arguments.variant,
        overrides=field_overrides(arguments),
    )
    evaluate(
        arguments.checkpoint,
        config,
        split=arguments.split,
        test_time_augmentation=arguments.tta,
        out=arguments.out,
    )


def _ablate(arguments: argparse.Namespace) -> None:
    from convmixer.ablation_sets import TITLES, ablation_set
    from convmixer.ablations import ablate, folder_name
    from convmixer.cli_parser import field_overrides
    from convmixer.config_io import load_recipe, override
    from convmixer.errors import UsageError

    if arguments.list:
        for table in TITLES if arguments.table is None else (arguments.table,):
            listed = ablation_set(table)
            print(
                f"table {table}: {listed.title} ({len(listed.rows)} rows; the paper: "
                f"{listed.paper_data}, recipe {listed.own_recipe})"
            )
            for row in listed.rows if arguments.table is not None else ():
                print(f"  {folder_name(row.label):44} paper {row.paper_accuracy:.2f}%")
        return
    if arguments.table is None:
        raise UsageError("name a table with --table, or see them with --list")
    recipe = load_recipe(arguments.recipe or ablation_set(arguments.table).own_recipe)
    ablate(
        arguments.table,
        override(recipe, field_overrides(arguments)),
        arguments.out or Path("runs", f"table-{arguments.table}-{recipe.recipe}"),
        seeds=_positive("--seeds", arguments.seeds),
        labels=arguments.rows.split(",") if arguments.rows else (),
    )


def _plot_weights(arguments: argparse.Namespace) -> None:
    from convmixer.weight_plots import plot_weights

    pictures = plot_weights(
        arguments.checkpoint,
        arguments.out or arguments.checkpoint.parent,
        layers=_positive("--layers", arguments.layers),
        seed=arguments.seed,
    )
    for picture in pictures:
        print(picture)


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "train": _train,
    "evaluate": _evaluate,
    "ablate": _ablate,
    "plot-weights": _plot_weights,
}


def _one_line(error: BaseException) -> str:
    """Return the message of an error as one line; a worker process sends a whole traceback."""
    text = str(error).strip() or type(error).__name__
    if "Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in TRAINING_PACKAGES:
            raise
        print(
            f"convmixer: error: the package {error.name} is missing: install the extra 'train'",
            file=sys.stderr,
        )
        return 2


def _run(words: Sequence[str]) -> int:
    import torch

    from convmixer.cli_parser import build_parser
    from convmixer.errors import TrainingDivergedError, UsageError
    from convmixer.run_state import TrainingInterruptedError

    parser, commands = build_parser()
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        commands[arguments.command].unknown(unknown[0])
    program = f"convmixer {arguments.command}"
    try:
        COMMANDS[arguments.command](arguments)
    except (UsageError, OSError) as error:
        print(f"{program}: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError:
        print(
            f"{program}: out of GPU memory: lower --batch_size, raise --accumulation_steps, or set "
            "--gradient_checkpointing",
            file=sys.stderr,
        )
        return 1
    except TrainingDivergedError as error:
        print(f"{program}: {_one_line(error)}", file=sys.stderr)
        return 1
    except TrainingInterruptedError as interruption:
        print(f"{interruption}. {_continuation(arguments, words)}", file=sys.stderr)
        return interruption.exit_code
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    return 0


def _continuation(arguments: argparse.Namespace, words: Sequence[str]) -> str:
    if arguments.command == "ablate":
        return f"Continue with: convmixer {shlex.join(words)}"
    out = arguments.out or Path("runs", Path(arguments.recipe).stem)
    seeds = f" --seeds {arguments.seeds}" if arguments.seeds > 1 else ""
    return f"Continue with: convmixer train --resume --out {shlex.quote(str(out))}{seeds}"
