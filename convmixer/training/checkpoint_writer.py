"""Writing checkpoints while training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from convmixer.model.checkpoints import save_checkpoint
from convmixer.training.run_folder import RunFolder


def snapshot(value: Any, copies: dict[int, Tensor] | None = None) -> Any:
    """Return a copy of nested dictionaries and lists, in which every tensor is a copy on the CPU.

    Args:
        value: dictionaries, lists, tensors and plain values.
        copies: the copies made so far by the id of their tensor; one that stands in several places
            is copied once.
    """
    copies = {} if copies is None else copies
    if isinstance(value, Tensor):
        if id(value) not in copies:
            copies[id(value)] = value.detach().to("cpu", copy=True)
        return copies[id(value)]
    if isinstance(value, Mapping):
        return {key: snapshot(item, copies) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(snapshot(item, copies) for item in value)
    return value


class CheckpointWriter:
    """A context in which a thread writes checkpoints, each in one step.

    `write` returns when it has copied the checkpoints; training may then change their tensors. The
    copy takes the memory of a checkpoint on the host until it is on the disk. There is one copy and
    one write at a time, so a write that is not done delays the next. An error of a write, such as
    a full disk, is raised by the next `write` or `wait`, or at the end of the context.

    Args:
        folder: the folder of the run.
        keep: number of states of the run to keep; see `RunFolder.keep_last`.
    """

    def __init__(self, folder: RunFolder, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._writing: Future[None] | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown()
        if error is None:
            self.wait()

    def write(self, checkpoints: Mapping[Path, Mapping[str, Any]], step: int) -> None:
        """Write checkpoints in the order of the mapping.

        Args:
            checkpoints: the contents of each file, among them the state of the run.
            step: number of optimizer steps of the run so far.

        Raises:
            OSError: the write before failed; the error names the file.
        """
        self.wait()
        copies: dict[int, Tensor] = {}
        states = {path: snapshot(state, copies) for path, state in checkpoints.items()}
        self._writing = self._thread.submit(self._write, states, step)

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            OSError: the write failed; the error names the file.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, states: Mapping[Path, Mapping[str, Any]], step: int) -> None:
        for path, state in states.items():
            save_checkpoint(state, path)
        if self._keep > 1:
            self._folder.keep_last(step, self._keep)
