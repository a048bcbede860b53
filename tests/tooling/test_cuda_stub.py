"""The stub of the CUDA extension declares the functions that the extension has."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _stub() -> dict[str, int | None]:
    """Return the public names of the stub with their numbers of arguments, None for a constant."""
    found: dict[str, int | None] = {}
    for node in ast.parse((ROOT / "convmixer_kernels" / "_cuda.pyi").read_text()).body:
        if isinstance(node, ast.FunctionDef):
            arguments = node.args
            assert not arguments.args and not arguments.kwonlyargs, f"{node.name}: positional only"
            found[node.name] = len(arguments.posonlyargs)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = None
    return {name: count for name, count in found.items() if not name.startswith("_")}


def test_names_are_those_of_the_source() -> None:
    source = (ROOT / "csrc" / "bindings.cpp").read_text()
    assert sorted(_stub()) == sorted(re.findall(r'extension\.(?:def|attr)\("(\w+)"', source))


def test_arguments_are_those_of_the_built_module() -> None:
    try:
        extension = importlib.import_module("convmixer_kernels._cuda")
    except ImportError:
        pytest.skip("the extension is not built")
    built = {
        name: len(set(re.findall(r"\barg\d+", member.__doc__))) if callable(member) else None
        for name, member in vars(extension).items()
        if not name.startswith("_")
    }
    assert built == _stub()
