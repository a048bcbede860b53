"""The processes of a run as the environment of torchrun describes them."""

from __future__ import annotations

import os
import time

from convmixer.terminal import write_error

SECONDS_TO_REPORT = 10.0
"""The time that the first process has to meet and report a mistake that another has met."""


def is_first_process() -> bool:
    """Return whether this is the only process, or the first that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def report_once(message: str) -> None:
    """Print a message that every process of the run has on standard error, in the first alone.

    torchrun ends all processes as soon as one has ended, so the others wait until the first has
    printed. A process that is still running then is the only one with this message, and prints it.
    """
    if not is_first_process():
        time.sleep(SECONDS_TO_REPORT)
    write_error(message)


def processes_of_machine() -> int:
    """Return how many processes of the run share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def start_command() -> str:
    """Return the command that starts convmixer in as many processes as there are now."""
    world, local = int(os.environ.get("WORLD_SIZE", "1")), processes_of_machine()
    if world == 1:
        return "convmixer"
    machines = f"--nnodes {world // local} " if world > local else ""
    return f"torchrun {machines}--nproc-per-node {local} -m convmixer"
