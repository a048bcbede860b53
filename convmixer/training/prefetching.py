"""Batches that are copied to a GPU and prepared there while the model computes on those before."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_Batch = tuple[Tensor, Tensor]


def prefetched(batches: Iterator[_Batch], device: torch.device) -> Iterator[_Batch]:
    """Return the batches, each made on a side stream of a GPU while the model uses the one before.

    An error in the making of a batch is raised where the batch would come.

    Args:
        batches: makes each batch on the current stream, from pinned memory without waiting.
        device: of the batches; on a CPU they stay as they are.
    """
    return _prefetched(batches, device) if device.type == "cuda" else batches


def _prefetched(batches: Iterator[_Batch], device: torch.device) -> Iterator[_Batch]:
    side = torch.cuda.Stream(device)
    # The means and deviations of a normalisation may still be on their way to the GPU.
    side.wait_stream(torch.cuda.current_stream(device))

    def made() -> _Batch | Exception | None:
        try:
            with torch.cuda.stream(side):
                return next(batches, None)
        except Exception as error:  # Decoders raise errors of any class.
            return error

    batch = made()
    while batch is not None:
        if isinstance(batch, Exception):
            raise batch
        stream = torch.cuda.current_stream(device)
        # It waits for all that the side stream has to do, to which the next batch is added after.
        stream.wait_stream(side)
        for tensor in batch:
            # The side stream must not reuse the memory before the model is done with it.
            tensor.record_stream(stream)
        following = made()
        yield batch
        batch = following
