"""What inference computes from parameters alone, kept for as long as they stay as they are.

Inference normalises every batch by the same numbers, so the tables that kernels read are computed
once. They are computed anew when one of their tensors is another object, has been changed in place
(PyTorch counts the versions of a tensor), or has been given other memory (``.data =``, as
``nn.Module.to`` does). Nothing is kept

- of inference tensors, which have no version;
- while a CUDA graph is captured, so that a replay sees the statistics of its own time;
- of tensors that a captured graph trains, since a replay changes them without a new version.

Whoever writes to one of the tensors past PyTorch, through ``.data`` or its address, tells of it by
``torch.autograd.graph.increment_version(tensor)``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

MOST_ENTRIES = 1024
_entries: dict[tuple[Any, ...], _Entry] = {}
# By the identity of a tensor that a captured graph trains.
_trained_by_graphs: dict[int, weakref.ref[Tensor]] = {}


class Sources(NamedTuple):
    """The tensors that tables are computed from, (C,) each."""

    running_mean: Tensor
    running_var: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    bias: Tensor | None


class Tables(NamedTuple):
    """What kernels read in inference: the normalisation (5, C), and the bias (C,) if there is one.

    Both are contiguous and in the dtype of sums.
    """

    normalisation: Tensor
    bias: Tensor | None


class _Source(NamedTuple):
    """A tensor as it was when tables were computed from it."""

    reference: weakref.ref[Tensor]
    version: int
    address: int
    # Kept alive: other memory at the same address would look like this one.
    storage: torch.UntypedStorage

    @classmethod
    def of(cls, tensor: Tensor, forget: Callable[[weakref.ref[Tensor]], None]) -> _Source:
        """Describe a tensor; `forget` is called when it is freed."""
        reference = weakref.ref(tensor, forget)
        return cls(reference, tensor._version, tensor.data_ptr(), tensor.untyped_storage())

    def is_now(self, tensor: Tensor) -> bool:
        """Tell whether `tensor` is the one that this describes, and as it was then."""
        return (
            self.reference() is tensor
            and self.version == tensor._version
            and self.address == tensor.data_ptr()
        )


class _Entry(NamedTuple):
    sources: tuple[_Source | None, ...]
    tables: Tables


def kept(sources: Sources, impl: str, eps: float, device: int) -> Tables | None:
    """Return the tables of `sources` if they are kept and up to date.

    Args:
        impl: the implementation that computed them.
        device: the index of a CUDA device, or -1 for the CPU.
    """
    entry = _entries.get(_key(sources, impl, eps, device))
    if entry is None:
        return None
    for source, tensor in zip(entry.sources, sources, strict=True):
        if source is None or tensor is None:
            continue  # The key tells None from tensors.
        if not source.is_now(tensor):
            return None
    if device >= 0 and torch.cuda.is_current_stream_capturing():
        return None
    return entry.tables


def keep(
    sources: Sources, impl: str, eps: float, device: int, compute: Callable[[], Tables]
) -> Tables:
    """Compute the tables of `sources`, and keep them if changes of `sources` will be seen."""
    if _may_change_unseen(sources, device):
        return compute()
    key = _key(sources, impl, eps, device)

    def forget(_: weakref.ref[Tensor]) -> None:
        _entries.pop(key, None)

    remembered = tuple(None if each is None else _Source.of(each, forget) for each in sources)
    tables = compute()
    if len(_entries) >= MOST_ENTRIES:
        _entries.clear()
    _entries[key] = _Entry(remembered, tables)
    return tables


def trained(tensors: Iterable[Tensor | None], device: int) -> None:
    """Take note of a training pass: tensors that a captured graph trains are not kept."""
    if device < 0 or not torch.cuda.is_current_stream_capturing():
        return
    for tensor in tensors:
        if tensor is not None:
            number = id(tensor)
            _trained_by_graphs[number] = weakref.ref(
                tensor, lambda _, number=number: _trained_by_graphs.pop(number, None)
            )


def _key(sources: Sources, impl: str, eps: float, device: int) -> tuple[Any, ...]:
    # Work on another stream would not wait for the kernel that computes the tables.
    stream = torch._C._cuda_getCurrentRawStream(device) if device >= 0 else 0
    return (*map(id, sources), eps, impl, device, stream)


def _may_change_unseen(sources: Sources, device: int) -> bool:
    if device >= 0 and torch.cuda.is_current_stream_capturing():
        return True
    return any(
        tensor is not None and (tensor.is_inference() or id(tensor) in _trained_by_graphs)
        for tensor in sources
    )
