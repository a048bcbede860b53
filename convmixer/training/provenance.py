"""A record of every start of a run: the command, the versions of packages, the machine."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from convmixer.training.distributed import Processes
from convmixer.training.environment import device_name
from convmixer.training.run_folder import write_json
from convmixer_kernels import __version__

PACKAGES = ("torchvision", "timm", "triton", "numpy", "Pillow")


def versions() -> dict[str, str]:
    """Return the versions of this package, of Python and of the packages that training uses."""
    found = {
        "convmixer-kernels": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe_start(processes: Processes) -> dict[str, Any]:
    """Return the command, versions, device and time of this start of a run."""
    return {
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "versions": versions(),
        "device": device_name(processes.device),
        "cuda": torch.version.cuda if processes.device.type == "cuda" else None,
        "processes": processes.world,
        "platform": platform.platform(),
    }


def record_start(path: Path, processes: Processes) -> None:
    """Add this start to the file `environment.json` of a run, which lists all of them."""
    try:
        starts = json.loads(path.read_text(encoding="utf-8"))["starts"]
    except (OSError, ValueError, KeyError, TypeError):
        starts = []  # The file is new, or somebody has edited it.
    write_json(path, {"starts": [*starts, describe_start(processes)]})
