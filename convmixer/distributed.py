"""The processes of a run: one, or several under torchrun."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from convmixer.building import resolve_device
from convmixer.errors import UsageError


@dataclass(frozen=True)
class Processes:
    """This process among all of the run."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and lines."""
        return self.rank == 0

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum of `tensor` over all processes."""
        if self.world > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return (
            flag
            if self.world == 1
            else bool(self.total(torch.tensor(float(flag), device=self.device)) > 0)
        )

    def gather(self, value: Any) -> list[Any]:
        """Return `value` of every process, in the order of their ranks."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until every process has come here."""
        if self.world > 1:
            dist.barrier()


@contextlib.contextmanager
def running_processes(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started, if it did, and leave them at the end.

    Under torchrun every process takes the GPU of its local rank, or the CPU.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes(resolve_device(device))
        return
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if device.startswith("cuda:"):
        raise UsageError(f"device: torchrun gives each process its GPU; use cuda, not {device}")
    place = resolve_device(device)
    if place.type == "cuda":
        place = resolve_device(f"cuda:{local_rank}")
        torch.cuda.set_device(place)
    started_here = not dist.is_initialized()
    if started_here:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Processes(place, rank, world)
    finally:
        if started_here:
            dist.destroy_process_group()
