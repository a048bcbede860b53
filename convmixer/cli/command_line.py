"""The command line; `convmixer.cli.commands` has its commands.

A mistake of the user ends a command with one line on standard error and exit code 2; if several
processes meet the mistake, the first one prints the line. The exit code is 1 for a run that
diverges, and 130 (SIGINT) or 143 (SIGTERM) for an interrupted one.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from convmixer.cli.parser import build_parser
from convmixer.errors import (
    LostProcessError,
    LostWorkerError,
    ProcessError,
    TrainingDivergedError,
    TrainingInterruptedError,
    UsageError,
    one_line,
)
from convmixer.terminal import flush_output, write_error
from convmixer.torchrun import is_first_process, report_once, start_command

TRAINING_PACKAGES = frozenset(
    {"matplotlib", "PIL", "sklearn", "timm", "torchvision", "tqdm", "yaml"}
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in TRAINING_PACKAGES:
            raise
        write_error(
            f"convmixer: error: the package {error.name} is missing: install the extra 'train'"
        )
        return 2
    finally:
        flush_output()


def _run(words: Sequence[str]) -> int:
    parser, commands = build_parser()
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        commands[arguments.command].unknown(unknown[0])
    # PyTorch takes seconds to import, and neither --help nor a mistyped option needs it.
    import torch

    from convmixer.cli.commands import COMMANDS

    program = f"convmixer {arguments.command}"
    try:
        COMMANDS[arguments.command](arguments)
    except ProcessError as error:
        write_error(f"{program}: error: {error}")
        return 2
    except (UsageError, OSError) as error:
        report_once(f"{program}: error: {one_line(error)}")
        return 2
    except torch.OutOfMemoryError:
        write_error(
            f"{program}: out of GPU memory: lower --batch_size, raise --accumulation_steps, or set "
            "--gradient_checkpointing"
        )
        return 1
    except (TrainingDivergedError, LostProcessError) as error:
        report_once(f"{program}: {one_line(error)}")
        return 1
    except LostWorkerError as error:
        report_once(f"{program}: {error}. {_continuation(arguments, words)}")
        return 1
    except TrainingInterruptedError as interruption:
        if is_first_process():
            write_error(f"{interruption}. {_continuation(arguments, words)}")
        return interruption.exit_code
    except KeyboardInterrupt:
        write_error(f"{program}: interrupted")
        return 130
    return 0


def _continuation(arguments: argparse.Namespace, words: Sequence[str]) -> str:
    """Return the sentence that says how to go on with an interrupted command."""
    from convmixer.cli.commands import training_folder

    if arguments.command == "train":
        words = ["train", "--resume", "--out", str(training_folder(arguments))]
        if arguments.seeds > 1:
            words += ["--seeds", str(arguments.seeds)]
    return f"Continue with: {start_command()} {shlex.join(words)}"
