"""Classes that put one of this package before a user's, so that modules stay of their own class."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn


@functools.cache
def mixed_class(name: str, first: Any, original: Any) -> type[Any]:
    """Make the class that inherits from `first` and then from `original`, once.

    Args:
        name: put before the name of `original`.
        first, original: classes of modules.
    """
    # Pickle could not find a class that is made here by its name.
    members = {"__reduce_ex__": _reduce, "_mixed_from": (name, first, original)}
    return type(f"{name}{original.__name__}", (first, original), members)


def _reduce(module: Any, protocol: int) -> tuple[Any, ...]:
    reduced = nn.Module.__reduce_ex__(module, max(protocol, 2))
    assert isinstance(reduced, tuple)
    return _new, module._mixed_from, *reduced[2:]


def _new(name: str, first: Any, original: Any) -> Any:
    cls: Any = mixed_class(name, first, original)
    return cls.__new__(cls)
