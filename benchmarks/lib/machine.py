"""Hardware, versions and commit of a run, without names of hosts or people."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
# Written by `make gpu-carry` for machines that get the files without their history.
COMMIT_FILE = ROOT / "build" / "commit"
_DIRTY = "-dirty"


def commit(root: Path = ROOT, file: Path = COMMIT_FILE) -> dict[str, Any]:
    """The "id" of the checked-out commit and whether files are changed ("dirty").

    The file holds what `git describe --always --dirty --exclude='*' --abbrev=40` said elsewhere. It
    counts where git does not know the commit that it names: a repository made of a copy of the
    files has commits of its own, which mean nothing. Else git answers; "unknown" without either.
    """
    recorded = file.read_text().strip() if file.exists() else ""
    text = recorded
    if (root / ".git").exists() and (not recorded or _knows(root, recorded.removesuffix(_DIRTY))):
        text = _answer("git", "-C", str(root), *_DESCRIBE) or recorded
    text = text or "unknown"
    return {"id": text.removesuffix(_DIRTY), "dirty": text.endswith(_DIRTY)}


def _knows(root: Path, commit: str) -> bool:
    """Tell whether the repository holds a commit."""
    return _answer("git", "-C", str(root), "cat-file", "-e", f"{commit}^{{commit}}") is not None


_DESCRIBE = ("describe", "--always", "--dirty", "--exclude=*", "--abbrev=40")


def describe(device: torch.device) -> dict[str, Any]:
    """Describe this machine for a table of results; None stands for what is not there."""
    found: dict[str, Any] = {
        "device": _processor(),
        "kind": device.type,
        "driver": None,
        "cuda": torch.version.cuda,
        "cudnn": None,
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "triton", "timm")},
        "cpus": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "driver": _driver(),
            "cudnn": _cudnn(),
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "capability": [properties.major, properties.minor],
            "cache_bytes": properties.L2_cache_size,
            "clocks": clocks(),
        }
    return found


def clocks() -> str | None:
    """SM clock and its most, memory clock, power limit and temperature of the first GPU now."""
    return _query(_CLOCKS)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cudnn() -> str | None:
    number = torch.backends.cudnn.version()
    return None if number is None else f"{number // 10000}.{number // 100 % 100}.{number % 100}"


def _driver() -> str | None:
    return _query("driver_version")


_CLOCKS = "clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"


def _query(names: str) -> str | None:
    """The answer of nvidia-smi about the first GPU; None without nvidia-smi."""
    answer = _answer("nvidia-smi", f"--query-gpu={names}", "--format=csv,noheader")
    return answer.split("\n")[0].strip() if answer else None


def _answer(*command: str) -> str | None:
    """The output of a command; None where it fails or is not there."""
    if shutil.which(command[0]) is None:
        return None
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else None


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
