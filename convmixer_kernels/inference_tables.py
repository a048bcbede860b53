"""Tables that inference computes from parameters alone, kept while those stay as they are.

Inference normalises every batch by the same numbers and convolves it with the same merged filters,
so what kernels read of them is computed once. It is computed anew when one of the tensors behind it
is another object, has been changed in place (PyTorch counts the versions of a tensor), or has been
given other memory (``.data =``, as ``nn.Module.to`` does). Nothing is kept

- of inference tensors, which have no version;
- while a CUDA graph is captured, so that a replay sees the statistics of its own time;
- of tensors that a captured graph trains, since a replay changes them without a new version.

Whoever writes to one of the tensors past PyTorch's count, through ``.data``, its address or a
collective of `torch.distributed`, says so: ``torch.autograd.graph.increment_version(tensor)``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")

MOST_ENTRIES = 1024
_entries: dict[tuple[Any, ...], _Entry] = {}
# The tensors that captured graphs train, by their identity.
_trained_by_graphs: dict[int, weakref.ref[Tensor]] = {}


class Sources(NamedTuple):
    """The tensors that tables of normalisation are computed from, (C,) each."""

    running_mean: Tensor
    running_var: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    bias: Tensor | None


class Tables(NamedTuple):
    """The tables of inference: the normalisation (5, C), and the bias (C,) if there is one.

    Both are contiguous and in the dtype of sums.
    """

    normalisation: Tensor
    bias: Tensor | None


class _Entry(NamedTuple):
    """Tables, and what their sources were when they were computed.

    Args:
        state: as `_state` gives it.
        references: to the sources; the entry goes with the first that is freed.
        storages: kept alive, because other memory at the same address would look like theirs.
    """

    state: list[tuple[int, int] | None]
    references: list[weakref.ref[Tensor]]
    storages: list[torch.UntypedStorage]
    tables: Any


def _state(sources: Sequence[Tensor | None]) -> list[tuple[int, int] | None]:
    """Return the version and the address of each tensor."""
    return [None if each is None else (each._version, each.data_ptr()) for each in sources]


def kept(
    sources: Sequence[Tensor | None], settings: tuple[Hashable, ...], device: int
) -> Any | None:
    """Return the tables of `sources` if they are kept and up to date.

    The identities of tensors are the key. An entry goes with the first of its tensors that is
    freed, before another one can have the same identity.

    Args:
        settings: everything else that the tables depend on.
        device: the index of a CUDA device, or -1 for the CPU.
    """
    entry = _entries.get(_key(sources, settings, device))
    if entry is None or entry.state != _state(sources):
        return None
    if device >= 0 and _is_capturing():
        return None
    return entry.tables


def keep(
    sources: Sequence[Tensor | None],
    settings: tuple[Hashable, ...],
    device: int,
    compute: Callable[[], _T],
) -> _T:
    """Compute the tables of `sources`, and keep them if changes of `sources` will be seen."""
    if _may_change_unseen(sources):
        return compute()
    key = _key(sources, settings, device)

    def forget(_: weakref.ref[Tensor]) -> None:
        _entries.pop(key, None)

    present = [each for each in sources if each is not None]
    entry = _Entry(
        _state(sources),
        [weakref.ref(each, forget) for each in present],
        [each.untyped_storage() for each in present],
        compute(),
    )
    if len(_entries) >= MOST_ENTRIES:
        _entries.clear()
    _entries[key] = entry
    tables: _T = entry.tables
    return tables


def forget(tensors: Iterable[Tensor | None]) -> None:
    """Drop the tables of buffers that PyTorch's own batch normalisation has trained.

    It counts no version of them.
    """
    if not _entries:
        return
    changed = {id(tensor) for tensor in tensors if tensor is not None}
    if not changed:
        return
    for key, entry in list(_entries.items()):
        if any(id(reference()) in changed for reference in entry.references):
            _entries.pop(key, None)


def trained(tensors: Iterable[Tensor | None]) -> None:
    """Take note of tensors that a training pass changes, now or in the optimizer's next step.

    A graph that is being captured will change them in every replay, so nothing is kept of them.
    """
    if not _is_capturing():
        return
    for tensor in tensors:
        if tensor is not None:
            identity = id(tensor)

            def forget(_: weakref.ref[Tensor], identity: int = identity) -> None:
                _trained_by_graphs.pop(identity, None)

            _trained_by_graphs[identity] = weakref.ref(tensor, forget)


def _is_capturing() -> bool:
    """Tell whether a CUDA graph captures what is launched; without a GPU in use, none does."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _key(
    sources: Sequence[Tensor | None], settings: tuple[Hashable, ...], device: int
) -> tuple[Any, ...]:
    # Work on another stream would not wait for the kernel that computes the tables.
    stream = torch._C._cuda_getCurrentRawStream(device) if device >= 0 else 0
    return (*map(id, sources), *settings, device, stream)


def _may_change_unseen(sources: Sequence[Tensor | None]) -> bool:
    return _is_capturing() or any(
        tensor is not None and (tensor.is_inference() or id(tensor) in _trained_by_graphs)
        for tensor in sources
    )
