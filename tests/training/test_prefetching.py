"""Batches are made on a side stream of a GPU while the model uses those before."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from convmixer.config.recipes import load_recipe
from convmixer.data.sources import ArrayImages, load_splits
from convmixer.training.loaders import EpochBatches, TrainingLoader
from convmixer.training.prefetching import prefetched
from tests.helpers.training import tiny_config

GPU, CPU = torch.device("cuda"), torch.device("cpu")


class _Stream:
    """A stream that notes in `log` what it waits for."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: _Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


class _Tensor:
    """A tensor whose memory is that of the side stream."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def record_stream(self, stream: _Stream) -> None:
        self.log.append(f"{self.name} is used by {stream.name}")


@pytest.fixture
def log(monkeypatch) -> list[str]:
    """The events on the streams of a GPU that is not there."""
    log: list[str] = []
    current = [_Stream("main", log)]

    @contextlib.contextmanager
    def on(stream: _Stream) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "Stream", lambda _: _Stream("side", log))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _=None: current[-1])
    monkeypatch.setattr(torch.cuda, "stream", on)
    return log


def _batches(count: int, log: list[str]) -> Iterator[tuple[_Tensor, _Tensor]]:
    for number in range(count):
        log.append(f"{number} is made on {torch.cuda.current_stream().name}")
        yield _Tensor(f"images {number}", log), _Tensor(f"targets {number}", log)


def test_a_batch_is_made_on_the_side_stream_while_the_one_before_is_used(log):
    for number, (images, _) in enumerate(prefetched(_batches(3, log), GPU)):
        assert images.name == f"images {number}"
        log.append(f"{number} is used on {torch.cuda.current_stream().name}")
    expected = ["side waits for main", "0 is made on side"]
    for number in range(3):
        expected += ["main waits for side"]
        expected += [f"{kind} {number} is used by main" for kind in ("images", "targets")]
        expected += [f"{number + 1} is made on side"] if number < 2 else []
        expected += [f"{number} is used on main"]
    assert log == expected


def test_an_error_comes_where_its_batch_would_come(log):
    def failing() -> Iterator[tuple[_Tensor, _Tensor]]:
        yield from _batches(2, log)
        raise ValueError("no image")

    found = prefetched(failing(), GPU)
    assert [next(found)[0].name for _ in range(2)] == ["images 0", "images 1"]
    with pytest.raises(ValueError, match="no image"):
        next(found)


def test_on_a_cpu_batches_stay_as_they_are():
    batches = iter([(torch.ones(1), torch.ones(1))])
    assert prefetched(batches, CPU) is batches


class _Operators(TorchDispatchMode):
    """Counts operators of PyTorch and copies to another device, and refuses what waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.copies = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.count += 1
        if func is torch.ops.aten._to_copy.default and args[0].device != result.device:
            assert kwargs.get("non_blocking")
            self.copies += 1
        if func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default):
            assert all(index is None or index.dtype == torch.int64 for index in args[1])
        return result


class _NoTensorOfNumbers(TorchFunctionMode):
    """Refuses tensors made of Python's numbers, whose copy to a GPU waits for it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func is not torch.tensor
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("recipe", "most"), [("cifar10-quick", 620), ("cifar10", 1450), ("digits", 870)]
)
def test_the_making_of_batches_on_the_device_takes_few_operators_and_never_waits(recipe, most):
    # A tensor on this device has no values: an operator that would wait for them raises an error.
    device = torch.device("meta")
    config = load_recipe(recipe, {"data.device_resident": "true", "augment.erasing_mode": "const"})
    side, channels = config.data.image_size, config.model.in_chans
    pixels = np.zeros((1024, side, side, channels), np.uint8)
    mode = "RGB" if channels == 3 else "L"
    images = ArrayImages(pixels if mode == "RGB" else pixels[..., 0], np.arange(1024) % 10, mode)
    batches = EpochBatches(1024, 64, seed=0)
    loader = TrainingLoader(images, config, batches, workers=0, device=device)
    list(loader.epoch(0))  # Some constants are copied once.
    loaded = list(loader.loaded(1))
    loader.loaded = lambda *_: iter(loaded)
    with _NoTensorOfNumbers(), _Operators() as operators:
        assert len(list(loader.epoch(1))) == 16
    assert operators.count < most and operators.copies < 12


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("resident", ["true", "false"])
def test_batches_on_a_gpu_are_those_of_the_cpu(workers, resident):
    # The noise of erasing would come from a generator of each device.
    config = tiny_config(augment__random_erasing=0, data__device_resident=resident)
    images = load_splits(config.data, channels=1).train.select(np.arange(64))

    def epoch(device: torch.device) -> list[torch.Tensor]:
        batches = EpochBatches(64, 4, seed=0)
        loader = TrainingLoader(images, config, batches, workers=workers, device=device)
        found = []
        for batch in loader.epoch(1):
            # The model would take its time before it reads the batch.
            torch.ones(2048, 2048, device=device).matrix_power(5)
            found += [tensor.clone() for tensor in batch]
        return [tensor.cpu() for tensor in found]

    for ours, expected in zip(epoch(GPU), epoch(CPU), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
