"""The options of the commands of `convmixer`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from convmixer.config.fields import FIELDS, usual_name
from convmixer.config.recipes import recipe_names
from convmixer.config.setting_types import FieldInfo, is_list
from convmixer.errors import closest
from convmixer.terminal import write_line
from convmixer.torchrun import report_once

FIELD_PREFIX = "field:"
NOT_ON_THE_COMMAND_LINE = frozenset({"recipe", "description"})
_OF_EVALUATION = frozenset(
    {
        "augment.flip", "batch_size", "device", "threads", "amp", "channels_last", "compile",
        "cudnn_benchmark", "deterministic",
    }
)  # fmt: skip
EVALUATION_FIELDS = tuple(
    name for name in FIELDS if name.startswith(("model.", "data.")) or name in _OF_EVALUATION
)
"""The fields on which evaluation depends; with `augment.flip`, --tta mirrors images."""
SECTIONS = {
    "": "run",
    "model": "model",
    "data": "data",
    "augment": "augmentation",
    "optimizer": "optimizer and schedule",
}

TRAIN = """\
Train a recipe. Every field of the recipe can be set by its name below, with or without the part
before the dot: --model.dim 64 and --dim 64 are the same."""

TRAIN_EXAMPLES = """\
examples:
  convmixer train --recipe digits
  convmixer train --recipe digits --epochs 5 --model.dim 32 --device cpu --out runs/small
  convmixer train --recipe digits --seeds 3 --out runs/three
  convmixer train --resume --out runs/small
  convmixer train --recipe cifar10 --data path/to/cifar --amp bf16
  convmixer train --recipe imagenet --data path/to/images --n_classes 102 --lr 0.001 \\
      --initial_checkpoint weights.pt
  torchrun --nproc-per-node 8 -m convmixer train --recipe imagenet --data path/to/imagenet
"""

ABLATE = """\
Run a table of the paper, or of its reproduction at Columbia University, on a recipe. Finished runs
in the folder are kept, so that the same command goes on after an interruption, and rows of earlier
calls stand in the results too. Fields of the recipe can be set as for convmixer train."""

SWEEP = """\
Train a recipe with every combination of some values of some fields, and compare the accuracies on
the test images. Finished runs in the folder are kept, as with convmixer ablate."""

SWEEP_EXAMPLES = """\
examples:
  convmixer sweep kernel_size=3,5,7,9 --recipe digits --seeds 3
  convmixer sweep lr=0.003,0.01,0.03 dim=32,64 --recipe digits --epochs 10
  convmixer sweep "scale=0.5,1;0.75,1;1,1" --recipe digits
"""


class Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line, with the closest option to a mistyped one.

    Its options are added when they are needed, because a command line has one command.
    """

    def __init__(
        self, *arguments: Any, options: Callable[[Parser], None] | None = None, **keywords: Any
    ) -> None:
        keywords.setdefault("allow_abbrev", False)
        keywords.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*arguments, **keywords)
        self._options = options

    def complete(self) -> None:
        """Add the options."""
        options, self._options = self._options, None
        if options is not None:
            options(self)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Add the options and parse; see argparse."""
        self.complete()
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print one line and leave with exit code 2."""
        report_once(f"{self.prog}: error: {message}")
        sys.exit(2)

    def unknown(self, argument: str) -> NoReturn:
        """Report an argument that is no option."""
        option, has_value, _ = argument.partition("=")
        kind = "option" if argument.startswith("-") else "argument"
        options = [name for action in self._actions for name in action.option_strings]
        # A word without a value is hardly an option that lacks its dashes.
        near = (
            closest(f"--{usual_name(option.lstrip('-'))}", options)
            if kind == "option" or has_value
            else ""
        )
        self.error(f"unknown {kind} {option}{near}")


class _Version(argparse.Action):
    """An option that imports and prints the version; importing it brings in PyTorch."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from convmixer_kernels import __version__

        write_line(f"convmixer {__version__}")
        parser.exit()


def _spellings(name: str) -> list[str]:
    """Return the options for a field: full or last name, with underscores or dashes."""
    names = [name, name.rsplit(".", 1)[-1]]
    both = [spelling for each in names for spelling in (each, each.replace("_", "-"))]
    return [f"--{spelling}" for spelling in dict.fromkeys(both)]


def _field_help(info: FieldInfo) -> str:
    text: str = info.metadata["help"]
    choices = info.metadata["choices"]
    accepted = " or ".join(choices) if choices else info.type_name
    return f"{text} [{accepted}]".replace("%", "%%")


def _add_fields(parser: Parser, names: Iterable[str]) -> None:
    """Add an option for each field, in groups by section; other spellings are not shown."""
    wanted = [FIELDS[name] for name in names if name not in NOT_ON_THE_COMMAND_LINE]
    sections = {info.name.rpartition(".")[0] for info in wanted}
    groups = {
        section: parser.add_argument_group(title)
        for section, title in SECTIONS.items()
        if section in sections
    }
    for info in wanted:
        shown, *hidden = _spellings(info.name)
        if info.name == "data.folder":
            hidden.append("--data")
        options: dict[str, Any] = {
            "dest": FIELD_PREFIX + info.name,
            "default": argparse.SUPPRESS,
            "metavar": "VALUE",
        }
        if info.type_name == "true or false":
            options |= {"nargs": "?", "const": "true"}
        if is_list(info.hint):
            options |= {"nargs": "+"}
        group = groups[info.name.rpartition(".")[0]]
        group.add_argument(shown, help=_field_help(info), **options)
        if hidden:
            group.add_argument(*hidden, help=argparse.SUPPRESS, **options)


def _add_recipe(parser: Parser, help: str, required: bool = False) -> None:
    names = ", ".join(recipe_names())
    parser.add_argument(
        "--recipe", metavar="NAME", required=required, help=f"{help}: {names}, or a .yaml file"
    )


def _add_out(parser: Parser, help: str, metavar: str = "FOLDER") -> None:
    parser.add_argument("--out", type=Path, metavar=metavar, help=help)


def _add_checkpoint(parser: Parser, required: bool = True) -> None:
    help = "file of weights, or folder of a run"
    parser.add_argument("--checkpoint", type=Path, required=required, metavar="PATH", help=help)


def _add_model(parser: Parser, required: bool = True) -> None:
    """Add the options that name weights, and the model that they belong to."""
    _add_checkpoint(parser, required)
    _add_recipe(parser, "for a checkpoint that does not hold its settings")
    parser.add_argument(
        "--variant", metavar="NAME", help="model of the paper that the checkpoint belongs to"
    )


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    """Return the parser and the parsers of its commands by name."""
    parser = Parser(
        prog="convmixer",
        description='Train, evaluate and look into ConvMixer ("Patches Are All You Need?").',
    )
    parser.add_argument("--version", action=_Version, help="show the version and exit")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=Parser
    )
    parsers: dict[str, Parser] = {}
    for name, help, usage, options in _COMMANDS:
        parsers[name] = commands.add_parser(
            name, help=help, usage=f"convmixer {name} {usage}", options=options
        )
    return parser, parsers


def _train_options(parser: Parser) -> None:
    parser.description, parser.epilog = TRAIN, TRAIN_EXAMPLES
    _add_recipe(parser, "what to train")
    parser.add_argument(
        "--variant", metavar="NAME", help="model of the paper, with its epochs; see list_variants()"
    )
    _add_out(parser, "folder of the run (default: runs/RECIPE)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out exactly")
    parser.add_argument(
        "--show", action="store_true", help="print the settings with their origin; train nothing"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="train N seeds; mean and deviation"
    )
    _add_fields(parser, FIELDS)


def _evaluate_options(parser: Parser) -> None:
    parser.description = "Evaluate a checkpoint on the images of its recipe."
    _add_model(parser)
    parser.add_argument(
        "--split", choices=("test", "validation", "train"), default="test", help="default: test"
    )
    parser.add_argument(
        "--tta", action="store_true", help="test-time augmentation too, reported separately"
    )
    _add_out(parser, "write evaluation.json and confusion.png here")
    _add_fields(parser, EVALUATION_FIELDS)


def _predict_options(parser: Parser) -> None:
    parser.description = (
        "Name the most probable classes of images. Without --checkpoint, the published weights of "
        "--variant are fetched from the Hugging Face hub."
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file, or folder of them")
    _add_model(parser, required=False)
    parser.add_argument(
        "--top", type=int, default=5, metavar="N", help="classes for each image (default: 5)"
    )
    _add_fields(parser, EVALUATION_FIELDS)


def _export_options(parser: Parser) -> None:
    parser.description = (
        "Write a model for other programs: .safetensors holds the weights under timm's names; .pt2 "
        "(torch.export) and .onnx hold the whole model, without this package and its kernels."
    )
    _add_model(parser)
    _add_out(parser, "file to write; its suffix is the format", metavar="FILE")
    _add_fields(parser, EVALUATION_FIELDS)


def _ablate_options(parser: Parser) -> None:
    from convmixer.paper.catalogue import TITLES

    parser.description = ABLATE
    parser.add_argument(
        "--list", action="store_true", help="list the tables, or the rows of --table"
    )
    parser.add_argument(
        "--table", metavar="NAME", choices=tuple(TITLES), help=f"one of {', '.join(TITLES)}"
    )
    _add_recipe(parser, "what to run it on (default: the recipe of the table)")
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="runs of each row (default: 1)"
    )
    parser.add_argument(
        "--rows", metavar="NAME,NAME", help="only these rows, named as --list shows them"
    )
    _add_out(parser, "default: runs/table-NAME-RECIPE")
    _add_fields(parser, FIELDS)


def _sweep_options(parser: Parser) -> None:
    parser.description, parser.epilog = SWEEP, SWEEP_EXAMPLES
    parser.add_argument(
        "fields", nargs="+", metavar="FIELD=VALUES", help="values, separated by commas; lists by ;"
    )
    _add_recipe(parser, "what to train", required=True)
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="runs of each row (default: 1)"
    )
    _add_out(parser, "default: runs/sweep-FIELD-RECIPE")
    _add_fields(parser, FIELDS)


def _plot_weights_options(parser: Parser) -> None:
    parser.description = "Draw the patch embedding and depthwise kernels, as in figures 5 to 7."
    _add_checkpoint(parser)
    _add_out(parser, "default: the folder of the checkpoint")
    parser.add_argument(
        "--layers", type=int, default=8, metavar="N", help="layers to show, evenly spaced"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of kernels")


def _receptive_field_options(parser: Parser) -> None:
    parser.description = (
        "Measure and draw the effective receptive field: how much each pixel of an image moves the "
        "middle of the last feature map, the mean over images."
    )
    _add_model(parser)
    parser.add_argument(
        "--images", type=int, default=64, metavar="N", help="test images to use (default: 64)"
    )
    _add_out(parser, "default: the folder of the checkpoint")
    _add_fields(parser, EVALUATION_FIELDS)


_MODEL = "[--recipe NAME] [--variant NAME]"
_COMMANDS: tuple[tuple[str, str, str, Callable[[Parser], None]], ...] = (
    (
        "train",
        "train a recipe",
        "--recipe NAME [--variant NAME] [--out FOLDER] [--resume] [--seeds N] [--show] "
        "[--FIELD VALUE ...]",
        _train_options,
    ),
    (
        "evaluate",
        "top-1, top-5 and confusion of a checkpoint",
        f"--checkpoint PATH {_MODEL} [--data FOLDER] [--split NAME] [--tta] [--out FOLDER] "
        "[--FIELD VALUE ...]",
        _evaluate_options,
    ),
    (
        "predict",
        "the most probable classes of images",
        f"IMAGE... --checkpoint PATH {_MODEL} [--top N] [--FIELD VALUE ...]",
        _predict_options,
    ),
    (
        "export",
        "a model for other programs",
        f"--checkpoint PATH --out FILE {_MODEL} [--FIELD VALUE ...]",
        _export_options,
    ),
    (
        "ablate",
        "run a table of the paper",
        "[--list] [--table NAME] [--recipe NAME] [--seeds N] [--rows NAME,NAME] [--out FOLDER] "
        "[--FIELD VALUE ...]",
        _ablate_options,
    ),
    (
        "sweep",
        "compare values of fields",
        "FIELD=VALUE,VALUE,... [FIELD=...] --recipe NAME [--seeds N] [--out FOLDER] "
        "[--FIELD VALUE ...]",
        _sweep_options,
    ),
    (
        "plot-weights",
        "pictures of the weights",
        "--checkpoint PATH [--out FOLDER] [--layers N] [--seed N]",
        _plot_weights_options,
    ),
    (
        "receptive-field",
        "picture of the effective receptive field",
        f"--checkpoint PATH {_MODEL} [--images N] [--out FOLDER] [--FIELD VALUE ...]",
        _receptive_field_options,
    ),
)
"""Name, help, usage and options of every command."""


def field_overrides(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the fields set on the command line, by their full names."""
    return {
        name.removeprefix(FIELD_PREFIX): " ".join(value) if isinstance(value, list) else value
        for name, value in vars(arguments).items()
        if name.startswith(FIELD_PREFIX)
    }
