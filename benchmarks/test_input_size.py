"""Figure 4 of the paper: inference time against the size of the images, by kernel size."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.lib import measure
from benchmarks.lib.measurement import Measurement, NotMeasured
from benchmarks.lib.shapes import Selection
from benchmarks.lib.ways import MEMORY_FORMATS, Way, dtype_on
from convmixer import ConvMixer

_TRIALS = 16
_MOST_RELATIVE_ERROR = 0.02


@lru_cache(maxsize=1)
def load_model(dim: int, depth: int, kernel_size: int, device: torch.device) -> nn.Module:
    with torch.device(device):
        return ConvMixer(dim, depth, kernel_size, patch_size=7).eval().to(dtype_on(device))


@lru_cache(maxsize=1)
@torch.inference_mode()
def load_batch(model: nn.Module, batch: int, size: int) -> tuple[Tensor, Tensor]:
    """Random images and PyTorch's logits."""
    parameter = next(model.parameters())
    images = torch.randn(batch, 3, size, size, device=parameter.device).to(parameter.dtype)
    return images, Way("torch", "contiguous").prepare(model)(images)


def test_input_size(
    kernel_size: int,
    size: int,
    way: Way,
    device: torch.device,
    selection: Selection,
    record: Any,
) -> None:
    if reason := way.unavailable(device):
        raise NotMeasured(reason)
    figure = selection.input_sizes
    model = load_model(figure.dim, figure.depth, kernel_size, device)
    images, logits = load_batch(model, figure.batch, size)
    run = way.prepare(model)
    images = images.to(memory_format=MEMORY_FORMATS[way.layout])
    with torch.inference_mode():
        error = measure.relative_error(run(images), logits)
        judged = way.judged("logits", error, _MOST_RELATIVE_ERROR)
        samples, _ = measure.batch_samples(lambda: run(images), _TRIALS, device, warm_up=2)
    subject = {
        "network": f"ConvMixer-{figure.dim}/{figure.depth}",
        "kernel_size": kernel_size,
        "size": size,
        "way": str(way),
        "batch": figure.batch,
        "dtype": str(images.dtype).removeprefix("torch."),
    }
    record(Measurement("input_size", subject, samples, info=judged))
