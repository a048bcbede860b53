"""The folder of a run and its files, which no other run overwrites."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import platform
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from convmixer.config.recipes import load_yaml, to_yaml
from convmixer.config.settings import Config
from convmixer.errors import UsageError
from convmixer.files import link_or_copy, remove_temporary_files, replacing
from convmixer.training.metrics import EPOCH_COLUMNS

try:
    import fcntl
except ImportError:  # Windows has other locks.
    fcntl = None  # type: ignore[assignment]

COLUMNS = ("epoch", "learning_rate", *EPOCH_COLUMNS, "images_per_second", "seconds")
"""The columns of `metrics.csv`."""

SUMMARY_NUMBERS = ("test_accuracy", "parameters", "epochs", "seed")
"""The entries of a summary that are read again and have to be numbers."""
SUMMARY_TEXTS = ("recipe", "data", "torch", "images_per_second")
"""The other entries of a summary that are read again."""

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
"""The errors of file systems without locks."""
_WITHOUT_LOCKS = (
    "this file system has no locks, so nothing keeps a second process from training here"
)


@contextlib.contextmanager
def _of_any_content(path: Path, remedy: str) -> Iterator[None]:
    """Report whatever an edited file makes its reader raise as a damaged file, in a line."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise UsageError(f"{path} is damaged ({type(error).__name__}): {remedy}") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step."""
    with replacing(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a dictionary as JSON in one step.

    Raises:
        ValueError: a number is not finite, for which JSON has no form.
    """
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as CSV in one step; a cell that its row lacks stays empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def prepare_folder(path: Path) -> None:
    """Create a folder if it does not exist.

    Raises:
        UsageError: the folder cannot be written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise UsageError(f"cannot write to {path}: {error.strerror}") from None


def _lock(file: IO[str]) -> bool:
    """Lock an open file for this process, and return whether its file system has locks.

    The lock is the process's own: it ends with the process, however that ends, and processes that
    load images do not inherit it. It also ends when this process closes the file, even if it has
    the file open a second time.

    Raises:
        BlockingIOError, PermissionError: another process holds the lock.
    """
    if fcntl is None:
        return False
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


class RunFolder:
    """The files of a run, or of the runs of several seeds in folders of their own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.csv"
        self.summary = path / "summary.json"
        self.curves = path / "curves.png"
        self.log = path / "train.log"
        self.last = path / "last.pt"
        self.best = path / "best.pt"
        self.checkpoints = path / "checkpoints"
        self.lock = path / ".lock"

    @property
    def holds_run(self) -> bool:
        """True if a run was started here."""
        files = (self.config, self.metrics, self.summary, self.last)
        return any(path.exists() for path in files) or bool(self.seeds)

    @property
    def seeds(self) -> list[int]:
        """The seeds with a run in a folder of their own here, ascending."""
        names = [path.parent.name for path in self.path.glob("seed-*/config.yaml")]
        numbers = [name.removeprefix("seed-") for name in names]
        return sorted(int(number) for number in numbers if number.isdecimal())

    def of_seed(self, seed: int) -> RunFolder:
        """Return the folder of the run with this seed, among several."""
        return RunFolder(self.path / f"seed-{seed}")

    @property
    def is_finished(self) -> bool:
        """True if the run came to its end."""
        return self.summary.exists()

    def check_free(self) -> None:
        """Check that no run was started here.

        Raises:
            UsageError: the folder already holds a run.
        """
        if self.holds_run:
            raise UsageError(
                f"{self.path} already holds a run: continue it with --resume --out {self.path}, "
                "or name another folder with --out"
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[str | None]:
        """Keep other processes from running here, and remove what a killed one left half written.

        The folder is created if it does not exist.

        Yields:
            a line for the reader if the file system has no locks, else None.

        Raises:
            UsageError: another process runs here, or the folder cannot be written to.
        """
        prepare_folder(self.path)
        with self.lock.open("a+", encoding="utf-8") as file:
            try:
                has_locks = _lock(file)
            except (BlockingIOError, PermissionError):
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise UsageError(f"{self.path} is in use by {holder}, which trains there") from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
            for folder in (self.path, self.checkpoints):
                remove_temporary_files(folder)
            yield None if has_locks else f"{self.path}: {_WITHOUT_LOCKS}"

    def keep_last(self, step: int, count: int) -> None:
        """Keep `last.pt` among the latest `count` states, as `checkpoints/step-N.pt`.

        Args:
            step: number of optimizer steps of the run before this state.
            count: number of states to keep; older ones are removed.
        """
        self.checkpoints.mkdir(exist_ok=True)
        kept = self.checkpoints / f"step-{step:08}.pt"
        link_or_copy(self.last, kept)
        # A run that went back to an earlier state writes lower numbers after higher ones.
        by_age = sorted(
            self.checkpoints.glob("step-*.pt"), key=lambda path: (path.stat().st_mtime_ns, path)
        )
        for path in by_age[:-count]:
            path.unlink()

    def create(self, config: Config) -> None:
        """Start a run here.

        Raises:
            UsageError: the folder already holds a run, or cannot be written to.
        """
        self.check_free()
        prepare_folder(self.path)
        write_text(self.config, to_yaml(config))

    def load_config(self) -> Config:
        """Return the settings of the run here, or of the first seed.

        Raises:
            UsageError: there is no run.
        """
        if self.seeds:
            return self.of_seed(self.seeds[0]).load_config()
        if not self.config.exists():
            raise UsageError(f"no run to resume in {self.path}: it has no config.yaml")
        return load_yaml(self.config)

    def load_summary(self) -> dict[str, Any]:
        """Return the summary of a finished run.

        Raises:
            UsageError: the file is damaged.
        """
        with _of_any_content(self.summary, "remove it, and --resume writes it again"):
            summary: dict[str, Any] = json.loads(self.summary.read_text(encoding="utf-8"))
            for name in SUMMARY_NUMBERS:
                float(summary[name])
            for name in SUMMARY_TEXTS:
                summary[name]
        return summary

    def load_metrics(self) -> list[dict[str, float]]:
        """Return the numbers of `metrics.csv`, a dictionary for each epoch, without empty cells.

        Raises:
            UsageError: the file is damaged.
        """
        expected = "expected a line of names and a line of numbers for each epoch"
        with _of_any_content(self.metrics, expected):
            with self.metrics.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            metrics = [{key: float(cell) for key, cell in row.items() if cell} for row in rows]
            for row in metrics:
                row["epoch"], row["train_loss"], row["train_accuracy"]
        return metrics

    def write_metrics(self, history: Iterable[Mapping[str, Any]]) -> None:
        """Write `metrics.csv`, a line for each epoch."""
        write_csv(self.metrics, COLUMNS, history)


def weights_file(path: Path) -> Path:
    """Return the tested weights in the folder of a run, or `path` if it is something else."""
    best = RunFolder(path).best
    return best if best.is_file() else path
