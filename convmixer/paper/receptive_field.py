"""The effective receptive field of a model, after Luo et al. (2016)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from convmixer.config.settings import Config
from convmixer.data.sources import load_split
from convmixer.errors import UsageError
from convmixer.model.checkpoints import load_checkpoint
from convmixer.model.network import ConvMixer
from convmixer.training.distributed import Processes
from convmixer.training.environment import build_model, cpu_threads, resolve_device
from convmixer.training.loaders import Batch, EvaluationLoader
from convmixer.training.plots import new_figure, save_figure
from convmixer.training.run_folder import prepare_folder

SHARES = (50, 90)
"""The sides of the squares that hold these parts of the influence, in percent, are reported."""


def influence(
    model: ConvMixer, loader: Iterable[Batch], device: torch.device
) -> NDArray[np.float64]:
    """Return the mean influence of every pixel on the middle of the last feature map.

    It is the magnitude of the gradient of the sum over channels, after the activation, summed over
    the channels of the image.

    Args:
        model: a model in evaluation mode.
        loader: batches of images (N, C, H, W).
        device: of the model.

    Returns:
        an array (H, W) whose sum is 1, or 0 if no pixel has an influence.
    """
    total: NDArray[np.float64] | float = 0.0
    for images, _ in loader:
        images = images.to(device).requires_grad_()
        features = model.forward_features(images)
        height, width = features.shape[2:]
        # A map of even size has four positions in its middle.
        rows = slice((height - 1) // 2, height // 2 + 1)
        columns = slice((width - 1) // 2, width // 2 + 1)
        (gradient,) = torch.autograd.grad(features[:, :, rows, columns].sum(), images)
        total = total + gradient.abs().double().sum((0, 1)).cpu().numpy()
    shares = np.asarray(total)
    whole = shares.sum()
    return shares / whole if whole else shares


def middle_square(shares: NDArray[np.float64], part: float) -> int:
    """Return the side of the smallest square around the middle that holds a part of all shares.

    Args:
        shares: the share of every pixel (H, W), with sum 1.
        part: from 0 to 1.
    """
    height, width = shares.shape
    for side in itertools.count(2 - height % 2, 2):
        top, left = max(0, (height - side) // 2), max(0, (width - side) // 2)
        inside = shares[top : height - top, left : width - left].sum()
        if inside >= part - 1e-9 or side >= max(height, width):
            return side
    raise AssertionError


def plot_receptive_field(
    checkpoint: Path, config: Config, out: Path, *, images: int = 64
) -> tuple[Path, dict[int, int]]:
    """Write `receptive_field.png` of a checkpoint to a folder.

    Args:
        checkpoint: any file that `convmixer.load_checkpoint` takes.
        config: settings of the checkpoint.
        out: folder of the picture.
        images: number of test images, or all if there are fewer.

    Returns:
        the path of the picture, and the side in pixels of the middle square that holds each of
        `SHARES` percent of the influence.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        UsageError: the checkpoint does not fit the settings, images are missing, or the picture
            exists.
    """
    out = out.expanduser()
    picture = out / "receptive_field.png"
    if picture.exists():
        raise UsageError(f"{picture} exists already: name another folder with --out")
    device = resolve_device(config.device)
    with cpu_threads(config.threads):
        model = build_model(config, device).eval()
        load_checkpoint(model, checkpoint)
        split = load_split(config.data, config.model.in_chans, "test").images
        count = min(images, len(split.labels))
        chosen = np.linspace(0, len(split.labels) - 1, count).round().astype(np.int64)
        processes = Processes(device)
        loader = EvaluationLoader(split.select(chosen), config, count, processes, workers=0)
        shares = influence(model, loader, device)
    sides = {share: middle_square(shares, share / 100) for share in SHARES}
    prepare_folder(out)
    _draw(picture, shares, sides, config, count)
    return picture, sides


def _draw(
    path: Path, shares: NDArray[np.float64], sides: dict[int, int], config: Config, count: int
) -> None:
    model = config.model
    figure = new_figure(6.2, 5.4)
    axes = figure.subplots()
    # The fourth root shows small shares too, as is usual for such pictures.
    brightness = (shares / max(shares.max(), 1e-30)) ** 0.25
    drawn = axes.imshow(brightness, cmap="magma", vmin=0.0, vmax=1.0, interpolation="nearest")
    height, width = shares.shape
    for (share, side), style in zip(sides.items(), ("-", "--"), strict=True):
        corner = ((width - side) / 2 - 0.5, (height - side) / 2 - 0.5)
        axes.add_patch(
            Rectangle(corner, side, side, fill=False, color="white", linestyle=style, linewidth=1.2)
        )
        axes.plot([], [], color="grey", linestyle=style, label=f"{share} %: {side} x {side} pixels")
    axes.set_axis_off()
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=2, frameon=False)
    figure.colorbar(drawn, label="influence, fourth root, relative to the largest")
    figure.suptitle(
        f"{config.recipe}: effective receptive field of ConvMixer-{model.dim}/{model.depth}\n"
        f"(kernel {model.kernel_size}, patch {model.patch_size}), {count} test images",
        fontsize=11,
    )
    save_figure(figure, path)
