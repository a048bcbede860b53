"""Images a second of whole networks at inference, as in tables 1, 2, 3 and 5 of the paper."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from benchmarks.lib import measure
from benchmarks.lib.measurement import Measurement, NotMeasured
from benchmarks.lib.networks import Network
from benchmarks.lib.peers import excused
from benchmarks.lib.shapes import Selection
from benchmarks.lib.ways import MEMORY_FORMATS, Way, dtype_on

# Half-precision roundings of two paths through dozens of layers lie well below this.
_MOST_RELATIVE_ERROR = 0.02


@dataclass
class Loaded:
    """A network in evaluation mode, a batch, and what PyTorch makes of it."""

    model: nn.Module
    images: Tensor
    logits: Tensor


@lru_cache(maxsize=1)
def load(network: Network, device: torch.device, batch: int) -> Loaded:
    model, images = built(network, device, batch)
    with torch.inference_mode():
        logits = Way("torch", "contiguous").prepare(model)(images)
    assert torch.isfinite(logits).all(), f"{network.name}: not all logits are finite"
    return Loaded(model, images, logits)


def built(network: Network, device: torch.device, batch: int) -> tuple[nn.Module, Tensor]:
    """The network in evaluation mode, and random images."""
    dtype = dtype_on(device)
    with torch.device(device):
        model = network.build().eval().to(dtype)
        images = torch.randn(batch, 3, network.image_size, network.image_size).to(dtype)
    return model, images


def run_once(network: Network, way: Way, device: torch.device, selection: Selection) -> None:
    """Run a network once, for what its kernels compile on the way."""
    model, images = built(network, device, selection.batch)
    with torch.inference_mode():
        way.prepare(model)(images.to(memory_format=MEMORY_FORMATS[way.layout]))


def measured(network: Network, way: Way, device: torch.device, selection: Selection) -> Measurement:
    """Compare the logits with PyTorch's, then time batches launched one by one.

    Raises:
        NotMeasured: the way is not available on this device, or its compiler fails.
        WrongResult: the kernels of this project give other logits.
    """
    if reason := way.unavailable(device):
        raise NotMeasured(reason)
    loaded = load(network, device, selection.batch)
    run = way.prepare(loaded.model)
    images = loaded.images.to(memory_format=MEMORY_FORMATS[way.layout])
    with torch.inference_mode(), excused(str(way), optional=way.compiled):
        step: Callable[[], Tensor] = partial(run, images)
        if way.graphed:
            step = measure.captured(step)
        error = measure.relative_error(step(), loaded.logits)
        samples, host_share = measure.batch_samples(step, selection.batches, device)
    return Measurement(
        "inference",
        {
            "network": network.name,
            "way": str(way),
            "batch": selection.batch,
            "image_size": network.image_size,
            "dtype": str(images.dtype).removeprefix("torch."),
        },
        samples,
        info={
            **way.judged("logits", error, _MOST_RELATIVE_ERROR),
            "images_per_second": selection.batch * len(samples) / sum(samples),
            "host_share": host_share,
        },
    )
