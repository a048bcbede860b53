"""The command line, `convmixer` and `python -m convmixer`."""

from convmixer.cli.command_line import main

__all__ = ["main"]
