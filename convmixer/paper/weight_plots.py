"""Pictures of the weights, as in figures 5 to 7 of the paper."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from torch import Tensor

from convmixer.errors import UsageError
from convmixer.model.checkpoints import read_weights
from convmixer.training.plots import new_figure, save_figure
from convmixer.training.run_folder import weights_file

KERNELS_A_LAYER = 64
LAYERS_A_ROW = 4
SMALLEST_TILE = 6
"""A tile in a grid has at least this many pixels a side."""
PALE_BLUE = (0.86, 0.90, 0.96)
"""The background between filters, a colour that filters seldom have."""
GAP = 1
"""Empty pixels between the tiles of a grid."""


def tile(
    tiles: NDArray[np.float64], columns: int, background: float | tuple[float, float, float]
) -> NDArray[np.float64]:
    """Arrange tiles (N, H, W, ...) in rows of `columns` with gaps, into one image (H', W', ...).

    Tiles smaller than `SMALLEST_TILE` are enlarged by a whole factor, so that the gaps stay narrow.
    """
    factor = math.ceil(SMALLEST_TILE / tiles.shape[1])
    tiles = tiles.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width = tiles.shape[:3]
    rows = math.ceil(count / columns)
    shape = (rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, *tiles.shape[3:])
    image = np.full(shape, background)
    for number in range(count):
        top = GAP + (number // columns) * (height + GAP)
        left = GAP + (number % columns) * (width + GAP)
        image[top : top + height, left : left + width] = tiles[number]
    return image


def _scaled(weights: Tensor, each: bool) -> Tensor:
    """Scale weights to -1..1 by the largest magnitude of `each` filter, or of all."""
    largest = weights.abs().flatten(1).amax(1) if each else weights.abs().max().expand(len(weights))
    return weights / largest.clamp(min=1e-12).reshape(-1, *[1] * (weights.ndim - 1))


def save_patch_embedding(path: Path, weight: Tensor, title: str) -> None:
    """Draw all filters of the patch embedding, in their order (figures 5 and 6).

    Each filter is scaled by its own largest weight, middle grey being zero; filters of one pixel
    share one scale.

    Args:
        path: PNG to write.
        weight: (h, channels, p, p); three channels are shown as colour, others as their mean.
        title: title of the picture.
    """
    scaled = _scaled(weight.double(), each=weight.shape[-1] > 1)
    if weight.shape[1] == 3:
        tiles = scaled.permute(0, 2, 3, 1)
    else:
        tiles = scaled.mean(1)[..., None].expand(-1, -1, -1, 3)
    columns = math.ceil(math.sqrt(1.6 * len(tiles)))
    image = tile((0.5 + 0.5 * tiles).numpy(), columns, background=PALE_BLUE)
    height, width = image.shape[:2]
    figure = new_figure(10.0, 10.0 * height / width + 0.6)
    axes = figure.subplots()
    axes.imshow(image, interpolation="nearest")
    axes.set_axis_off()
    figure.suptitle(title, fontsize=13)
    save_figure(figure, path)


def save_depthwise_kernels(
    path: Path, weights: Mapping[str, Tensor], title: str, seed: int = 0
) -> None:
    """Draw a random subset of 64 depthwise kernels of each given convolution (figure 7).

    Each kernel is scaled by its own largest weight: red is positive, blue negative, white zero.

    Args:
        path: PNG to write.
        weights: name of each convolution and its kernels (h, 1, k, k).
        title: title of the picture.
        seed: seed of the choice of kernels.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = math.ceil(len(weights) / LAYERS_A_ROW)
    columns = math.ceil(len(weights) / rows)
    figure = new_figure(3.0 * columns, 3.3 * rows + 0.6)
    figure.suptitle(title, fontsize=13)
    colours = colormaps["RdBu_r"].with_extremes(bad="#9A9A9A")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in panels:
        axes.set_axis_off()
    for axes, (name, weight) in zip(panels, weights.items(), strict=False):
        chosen = torch.randperm(len(weight), generator=generator)[:KERNELS_A_LAYER].sort().values
        kernels = _scaled(weight[chosen, 0].double(), each=True).numpy()
        image = tile(kernels, columns=min(8, len(chosen)), background=np.nan)
        axes.imshow(image, cmap=colours, vmin=-1.0, vmax=1.0, interpolation="nearest")
        axes.set_title(name, fontsize=11)
    save_figure(figure, path)


def chosen_layers(depth: int, count: int) -> list[int]:
    """Return `count` layers from 0 to `depth - 1`, evenly spaced, the first and last among them."""
    return sorted({round(position) for position in np.linspace(0, depth - 1, min(count, depth))})


def plot_weights(
    checkpoint: Path, out: Path, *, layers: int = 8, seed: int = 0
) -> tuple[Path, Path]:
    """Write `patch_embedding.png` and `depthwise_kernels.png` of a checkpoint to `out`.

    Args:
        checkpoint: any file whose format `convmixer.load_checkpoint` takes, or the folder of a run,
            whose tested weights are meant.
        out: folder of the pictures.
        layers: number of layers to draw, evenly spaced from the first to the last; all stacked
            depthwise convolutions of a layer are drawn.
        seed: seed of the choice of kernels.

    Returns:
        the paths of the two pictures.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        UsageError: the file is damaged or holds no ConvMixer, or one of the pictures exists.
    """
    checkpoint, out = weights_file(checkpoint), out.expanduser()
    patch_embedding, kernels = out / "patch_embedding.png", out / "depthwise_kernels.png"
    for picture in (patch_embedding, kernels):
        if picture.exists():
            raise UsageError(f"{picture} exists already: name another folder with --out")
    weights = read_weights(checkpoint)
    depthwise = _depthwise_weights(weights)
    if not depthwise or weights["stem.0.weight"].dim() != 4:
        raise UsageError(f"{checkpoint}: holds no filters of a patch embedding and of blocks")
    shown = {}
    for layer in chosen_layers(len(depthwise), layers):
        for position, weight in enumerate(depthwise[layer], start=1):
            convolution = f", convolution {position}" if len(depthwise[layer]) > 1 else ""
            shown[f"layer {layer + 1}{convolution}"] = weight
    stem = weights["stem.0.weight"].float()
    size, kernel = stem.shape[-1], depthwise[0][0].shape[-1]
    model = f"ConvMixer-{len(stem)}/{len(depthwise)}"
    out.mkdir(parents=True, exist_ok=True)
    save_patch_embedding(
        patch_embedding, stem, f"Patch embedding of {model}: {len(stem)} filters of {size} x {size}"
    )
    number = min(KERNELS_A_LAYER, len(stem))
    title = f"{model}: {number} depthwise kernels of {kernel} x {kernel} a layer"
    save_depthwise_kernels(kernels, shown, f"{title} (red positive, blue negative)", seed)
    return patch_embedding, kernels


def _depthwise_weights(weights: Mapping[str, Tensor]) -> list[list[Tensor]]:
    """Return the kernels of the depthwise convolutions, a list for each block."""
    name = re.compile(r"blocks\.(\d+)\.0\.fn\.\d+\.weight")
    blocks: dict[int, list[Tensor]] = {}
    for key, weight in weights.items():
        # The norm after the convolutions has a weight too, of one dimension.
        if (match := name.fullmatch(key)) and weight.dim() == 4:
            blocks.setdefault(int(match[1]), []).append(weight.float())
    return [blocks[block] for block in sorted(blocks)]
