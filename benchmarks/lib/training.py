"""Training steps of whole networks: images a second and peak memory.

A step is forward, backward and AdamW on a batch of random images, under float16 autocast with
gradient scaling on a GPU and in float32 on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.lib import measure
from benchmarks.lib.measurement import Measurement, NotMeasured
from benchmarks.lib.networks import Network
from benchmarks.lib.shapes import Selection
from benchmarks.lib.ways import MEMORY_FORMATS, Way

# Granted beside twice PyTorch's own error, 0.38 to 0.60 behind 32 blocks in float16 on a CPU.
_LEAST_RELATIVE_ERROR = 0.01


def measured(network: Network, way: Way, device: torch.device, selection: Selection) -> Measurement:
    """Compare the gradient of the stem with float32, then time steps launched one by one.

    Raises:
        NotMeasured: the way is not available on this device.
        WrongResult: the kernels of this project give another gradient.
    """
    if reason := way.unavailable(device):
        raise NotMeasured(reason)
    model, images, labels = built(network, device, selection.batch)
    pytorch = Way("torch", "contiguous")
    exact = _stem_gradient(pytorch, model, images, labels, half=False)
    allowed = _LEAST_RELATIVE_ERROR + 2 * measure.relative_error(
        _stem_gradient(pytorch, model, images, labels), exact
    )
    error = measure.relative_error(_stem_gradient(way, model, images, labels), exact)

    step = training_step(way, model, images, labels)
    if way.graphed:
        step = measure.captured(step)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    samples, host_share = measure.batch_samples(step, selection.training_steps, device)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Measurement(
        "training",
        {
            "network": network.name,
            "way": str(way),
            "batch": selection.batch,
            "image_size": network.image_size,
        },
        samples,
        info={
            **way.judged("gradient of the stem", error, allowed),
            "images_per_second": selection.batch * len(samples) / sum(samples),
            "peak_memory_bytes": peak,
            "host_share": host_share,
        },
    )


def built(network: Network, device: torch.device, batch: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The network in training mode, random images and their random labels."""
    with torch.device(device):
        model = network.build().train()
        images = torch.randn(batch, 3, network.image_size, network.image_size)
        labels = torch.randint(1000, (batch,))
    return model, images, labels


def _autocast(device: torch.device, half: bool = True) -> torch.autocast:
    return torch.autocast(device.type, torch.float16, enabled=half and device.type == "cuda")


def _stem_gradient(
    way: Way, model: nn.Module, images: Tensor, labels: Tensor, half: bool = True
) -> Tensor:
    run = way.prepare(model)
    with _autocast(images.device, half):
        loss = F.cross_entropy(run(images), labels)
    # Scaled by hand, or half precision rounds gradients behind many layers to zero.
    parameter = next(model.parameters())
    (gradient,) = torch.autograd.grad(1024 * loss, [parameter])
    return gradient


def training_step(way: Way, model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """Put `model` on the kernels and the layout of `way`, and return a step to call."""
    run = way.prepare(model)
    device = images.device
    images = images.to(memory_format=MEMORY_FORMATS[way.layout])
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=on_gpu, capturable=way.graphed)
    scaler = torch.amp.GradScaler(device.type, enabled=on_gpu)

    def step() -> None:
        optimizer.zero_grad()
        with _autocast(device):
            loss = F.cross_entropy(run(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step
