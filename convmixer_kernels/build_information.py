"""The record of setup.py about the CUDA extension: how it was built, or why it was not."""

from __future__ import annotations

import json
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent
_REMEDY = "build it with: pip install -e . (in the source folder)"
_PTX_ALONE = "-virtual"


def record() -> dict[str, Any] | None:
    """Read the record of the last build; None if this copy of the package was never built.

    Returns:
        ``extension`` (file name), ``nvcc`` (version) and ``architectures`` (such as ``["90"]``) if
        the extension was built, ``reason`` and ``remedy`` if it was not.
    """
    path = _FOLDER / "_build.json"
    if not path.exists():
        return None
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def cuda_missing_reason() -> str | None:
    """Say in a line why there is no CUDA extension and what helps; None if there is one."""
    build = record()
    if build is None:
        return f"this copy of convmixer_kernels was not built; {_REMEDY}"
    if "reason" in build:
        return f"{build['reason']}; {build['remedy']}"
    extension: str = build["extension"]
    if not any(extension == f"_cuda{suffix}" for suffix in EXTENSION_SUFFIXES):
        return f"the CUDA extension was built for another Python ({extension}); {_REMEDY}"
    if not (_FOLDER / extension).exists():
        return f"the CUDA extension {extension} has been removed since it was built; {_REMEDY}"
    return None


def summary() -> str:
    """Say in a line how the extension was built, or why there is none."""
    if reason := cuda_missing_reason():
        return f"not built: {reason}"
    build = record()
    assert build is not None
    entries: list[str] = build["architectures"]
    hint = ""
    if all(entry.endswith(_PTX_ALONE) for entry in entries):
        hint = " (PTX alone, which a driver compiles for its GPU at first use)"
    return f"built by nvcc {build['nvcc']} for {', '.join(map(_name, entries))}{hint}"


def _name(architecture: str) -> str:
    """The name of an architecture in CUDA: "90" is sm_90 and "90-virtual" compute_90."""
    if architecture.endswith(_PTX_ALONE):
        return f"compute_{architecture.removesuffix(_PTX_ALONE)}"
    return f"sm_{architecture}"
