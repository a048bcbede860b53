"""The emulated GPU as tests want it: another chip, other orders, counters."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from convmixer_kernels import architectures, emulated_gpu
from convmixer_kernels.backends.cuda import device as cuda_device


def use(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """Change some of `emulated_gpu.settings`."""
    for name, value in changes.items():
        monkeypatch.setitem(emulated_gpu.settings, name, value)


def pretend(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """Choose kernels for an architecture and give a block as much shared memory as it has."""
    shared_bytes = architectures.find(capability).shared_bytes
    number = 10 * capability[0] + capability[1]
    chip = cuda_device.EMULATED_CHIP._replace(shared_bytes=shared_bytes, capability=number)
    monkeypatch.setattr(cuda_device, "EMULATED_CHIP", chip)
    use(monkeypatch, shared_bytes_per_block=shared_bytes)


def set_multiprocessors(monkeypatch: pytest.MonkeyPatch, multiprocessors: int) -> None:
    """Change the number of multiprocessors, by which passes are cut into shares; 0: one share."""
    chip = cuda_device.EMULATED_CHIP._replace(multiprocessors=multiprocessors)
    monkeypatch.setattr(cuda_device, "EMULATED_CHIP", chip)


def count(operation: Callable[..., object], *arguments: object) -> dict[str, int]:
    """Count the requests that the kernels of an operation make of the machine."""
    emulated_gpu.extension()
    emulated_gpu.interpreter().take_counters()
    operation(*arguments)
    counters: dict[str, int] = emulated_gpu.interpreter().take_counters()
    return counters


def moved(operation: Callable[..., object], *arguments: object) -> int:
    """Bytes of global memory that the kernels of an operation have read and written."""
    counters = count(operation, *arguments)
    return counters["global_bytes_read"] + counters["global_bytes_written"]
