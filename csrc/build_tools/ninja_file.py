"""Writes a build down for ninja, which runs what has changed, as much as possible at a time."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import toolchain


class Edge(NamedTuple):
    """One file to make: by which rule, from which files, with which macros defined."""

    target: Path
    rule: str
    sources: Sequence[Path]
    macros: Sequence[str] = ()


def run(
    folder: Path,
    rules: Mapping[str, str],
    edges: Iterable[Edge],
    quiet: bool = False,
) -> None:
    """Brings every target up to date; MAX_JOBS limits how many commands run at a time.

    Args:
        folder: where the build file lies.
        rules: the command of each rule; ``$in`` and ``$out`` stand for the files, ``$out.d`` for
            the list of headers that the compiler is to write, ``$macros`` for the options that
            define the macros of an edge.
        edges: the files to make.
        quiet: print nothing but what commands that fail have printed.

    Raises:
        subprocess.CalledProcessError: a command has failed; its output has been passed on.
    """
    lines = []
    for name, command in rules.items():
        lines += [f"rule {name}", f"  command = {command}", f"  description = {name} $out"]
        if "$out.d" in command:
            lines += ["  depfile = $out.d", "  deps = gcc"]
    for target, rule, sources, macros in edges:
        lines.append(f"build {_path(target)}: {rule} {' '.join(map(_path, sources))}")
        if macros:
            lines.append(f"  macros = {quoted(*(f'-D{macro}' for macro in macros))}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    jobs = os.environ.get("MAX_JOBS")
    flags = ["-C", str(folder), *([f"-j{int(jobs)}"] if jobs else [])]
    subprocess.run([toolchain.find_ninja(), *flags, *(["--quiet"] if quiet else [])], check=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from building in a folder."""
    import fcntl  # not on every system where this file is imported

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def quoted(*words: object) -> str:
    """Words of a shell command, for a rule."""
    return shlex.join(map(str, words)).replace("$", "$$")


def _path(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
