"""The packages of `convmixer` import one another in one direction, and no module imports itself."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import convmixer
import convmixer_kernels

CONVMIXER, KERNELS = (Path(package.__path__[0]) for package in (convmixer, convmixer_kernels))
LEVELS = (
    {"errors", "files", "terminal"},
    {"torchrun", "config", "model"},
    {"data", "timm_models"},
    {"training"},
    {"studies"},
    {"paper"},
    {"cli"},
    {"", "__main__"},
)
"""The parts of `convmixer`, from the lowest: each imports only itself and parts of lower levels."""


def _modules(package: Path) -> dict[str, Path]:
    """Return the files of a package by the names under which they are imported."""
    modules = {}
    for path in package.rglob("*.py"):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def _imports(source: str, known: set[str]) -> Iterator[str]:
    """Yield the known modules that a source imports, at its top or in a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path of a module"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if (found := name if name in known else str(node.module)) in known:
                    yield found


def _graph() -> dict[str, set[str]]:
    modules = _modules(CONVMIXER)
    return {
        name: set(_imports(path.read_text(encoding="utf-8"), set(modules)))
        for name, path in modules.items()
    }


def _room(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]


def _level(module: str) -> int:
    return next(number for number, rooms in enumerate(LEVELS) if _room(module) in rooms)


def _wrong_way(graph: dict[str, set[str]]) -> list[str]:
    """Return the imports that lead to another room of the same level or of a higher one."""
    return [
        f"{module} imports {imported}"
        for module, found in sorted(graph.items())
        for imported in sorted(found)
        if _room(imported) != _room(module) and _level(imported) >= _level(module)
    ]


def test_every_room_imports_only_rooms_below_it():
    graph = _graph()
    assert {_room(module) for module in graph} == set().union(*LEVELS)
    assert _wrong_way(graph) == []


def test_no_module_imports_itself_by_way_of_others():
    graphlib.TopologicalSorter(_graph()).prepare()


def test_the_kernels_import_nothing_of_the_model():
    modules = set(_modules(CONVMIXER))
    for path in KERNELS.rglob("*.py"):
        assert not list(_imports(path.read_text(encoding="utf-8"), modules)), path


def test_an_import_up_and_a_circle_are_found():
    known = {"convmixer.cli.parser", "convmixer.data.sources"}
    source = "def late():\n    from convmixer.cli import parser\n"
    up = {"convmixer.data.sources": set(_imports(source, known)), "convmixer.cli.parser": set()}
    assert _wrong_way(up) == ["convmixer.data.sources imports convmixer.cli.parser"]
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()
