"""The processes of a run: one, or several under torchrun."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from convmixer.errors import LostProcessError, ProcessError, UsageError, one_line
from convmixer.training.environment import resolve_device


@dataclass(frozen=True)
class Processes:
    """The device and rank of this process, and the number of processes of the run."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """True in the process that writes files and lines."""
        return self.rank == 0

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum of `tensor` over all processes."""
        if self.world > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        (found,) = self.any_of_each(flag)
        return found

    def any_of_each(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is set in any process."""
        if self.world == 1:
            return list(flags)
        counts = self.total(torch.tensor(flags, dtype=torch.float32))
        return [count > 0 for count in counts.tolist()]

    def average_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over all processes."""
        if self.world > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)
                tensor /= self.world

    def gather(self, value: Any) -> list[Any]:
        """Return the `value` of every process, in the order of ranks."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until every process has called this method."""
        if self.world > 1:
            dist.barrier()

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block in the main process first, then in the others."""
        if not self.is_main:
            self.barrier()
        try:
            yield
        finally:
            if self.is_main:
                self.barrier()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Run the block in every process; if one process fails, fail in all.

        Raises:
            UsageError: another process has met a mistake; the message is that of its error.
        """
        if self.world == 1:
            yield
            return
        mistake: UsageError | OSError | None = None
        try:
            yield
        except (UsageError, OSError) as error:
            mistake = error
        met = self.gather(None if mistake is None else one_line(mistake))
        if mistake is not None:
            raise mistake
        if messages := [message for message in met if message is not None]:
            raise UsageError(messages[0])

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Run a block in which this process may meet a mistake that the others do not meet.

        Raises:
            ProcessError: this process has met a mistake, and there are others.
        """
        try:
            yield
        except (UsageError, OSError) as error:
            if self.world == 1:
                raise
            raise ProcessError(one_line(error)) from error


@contextlib.contextmanager
def running_processes(device: str) -> Iterator[Processes]:
    """Join the other processes of torchrun, if there are any, and leave them at the end.

    Under torchrun every process takes the GPU of its local rank, or the CPU.

    Raises:
        UsageError: a GPU is missing, or the environment is not that of torchrun.
        LostProcessError: another process has ended while this one was waiting for it.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes(resolve_device(device))
        return
    if unset := [name for name in ("RANK", "LOCAL_RANK") if name not in os.environ]:
        raise UsageError(
            f"WORLD_SIZE is {world} without {' and '.join(unset)}: start several processes with "
            "torchrun"
        )
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if device.startswith("cuda:"):
        raise UsageError(f"device: torchrun gives each process its GPU; use cuda, not {device}")
    own_device = resolve_device(device)
    if own_device.type == "cuda":
        own_device = resolve_device(f"cuda:{local_rank}")
        torch.cuda.set_device(own_device)
    started_here = not dist.is_initialized()
    if started_here:
        # Messages between the processes go through the CPU, so that they do not wait for the GPU.
        dist.init_process_group("cpu:gloo,cuda:nccl" if own_device.type == "cuda" else "gloo")
    try:
        yield Processes(own_device, rank, world)
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        raise LostProcessError("another process of the run has ended; see its message") from error
    finally:
        if started_here:
            dist.destroy_process_group()


def _is_lost_connection(error: RuntimeError) -> bool:
    """Return whether a process is gone; gloo has no class for this error, so its text decides."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)
