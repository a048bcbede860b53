"""Tables 1 to 8 of the paper as studies."""

from __future__ import annotations

import dataclasses
from typing import Any

from convmixer.model.published import PEERS, Architecture, PublishedResult, published_rows
from convmixer.studies.study import Peer, Report, Row, Study

TITLES = {
    1: "ConvMixers on ImageNet-1k",
    2: "ConvMixers on ImageNet-1k, all of them",
    3: "Effect of patch size",
    4: "Patch embedding or ResNet-style stem",
    5: "Effect of kernel size",
    6: "Ablation of ConvMixer-512/12",
    7: "Ablation of ConvMixer-256/8",
    8: "Width, depth, patch size, kernel size and weight decay",
}
OWN_RECIPES = {1: "imagenet", 2: "imagenet"} | {
    3: "imagenet-a1", 4: "imagenet-a1", 5: "imagenet-a1", 6: "imagenet-a1", 7: "cifar10",
    8: "cifar10",
}  # fmt: skip
PAPER_IMAGES = {"imagenet": "ImageNet-1k", "imagenet-a1": "ImageNet-1k", "cifar10": "CIFAR-10"}
BASELINES = {
    "imagenet": Architecture(1536, 20, 9, 7),
    "imagenet-a1": Architecture(512, 12, 9, 7),
    "cifar10": Architecture(256, 8, 9, 1, n_classes=10),
}
BASELINE_EPOCHS = 150
ARCHITECTURE = tuple(
    field.name for field in dataclasses.fields(Architecture) if field.name != "n_classes"
)
SCALED = ("dim", "depth", "patch_size")
"""Arguments of rows that scale with the model of the recipe."""

A1_CHANGES: dict[str, Any] = {
    "augment.rand_augment": "rand-m7-mstd0.5-inc1",
    "augment.random_erasing": 0.0,
    "augment.mixup": 0.2,
    "augment.cutmix": 1.0,
    "optimizer.weight_decay": 0.01,
}
"""The fields in which the recipe imagenet-a1 differs from imagenet."""

_RECIPE_CHANGES: dict[str, dict[str, Any]] = {
    "": {},
    "without mixup and CutMix": {"augment.mixup": 0.0, "augment.cutmix": 0.0},
    "without RandAugment": {"augment.rand_augment": None},
    "without random erasing": {"augment.random_erasing": 0.0},
    "without random scaling": {"augment.scale": [1.0, 1.0], "augment.ratio": [1.0, 1.0]},
    "without clipping of the gradient norm": {"optimizer.clip_grad_norm": 0.0},
}
_WORDS = {
    ("norm", "layer"): "LayerNorm for BatchNorm",
    ("activation", "relu"): "ReLU for GELU",
    ("residual", "none"): "without the residual of equation 2",
    ("residual", "both"): "with a residual in equation 3",
    ("stem", "resnet"): "ResNet-style stem",
    ("stem", "patch"): "patch embedding",
}
_NETWORK = "{c.model.dim}/{c.model.depth}"
_SIZES = "patch {c.model.patch_size}, kernel {c.model.kernel_size}"


def _changes(result: PublishedResult) -> dict[str, Any]:
    """Return the fields that a row sets beside its architecture."""
    if result.note.startswith("weight decay "):
        return {"optimizer.weight_decay": float(result.note.removeprefix("weight decay "))}
    if result.table == 2 and result.recipe == "a1_like":
        return A1_CHANGES
    return _RECIPE_CHANGES[result.note]


def _name(architecture: Architecture, result: PublishedResult, varied: tuple[str, ...]) -> str:
    """Return the name of a row from the arguments that differ between the rows, and its note."""
    if result.table in (1, 2):
        relu = ", ReLU" if architecture.activation == "relu" else ""
        starred = ", A1" if result.recipe == "a1_like" else ""
        return f"{_NETWORK}, {_SIZES}{relu}{starred}"
    if result.table == 8:
        return f"{_NETWORK}, {_SIZES}, decay {{c.optimizer.weight_decay:g}}"
    if result.table == 5:
        stacked = f", {architecture.stacked} stacked" if architecture.stacked > 1 else ""
        return f"{_NETWORK}, kernel {{c.model.kernel_size}}{stacked}"
    if result.table == 3:
        return "patch {c.model.patch_size}"
    plain = Architecture(1, 1, 1, 1)
    words = [
        _WORDS[name, getattr(architecture, name)]
        for name in varied
        if result.table == 4 or getattr(architecture, name) != getattr(plain, name)
    ]
    return ", ".join([*words, *([result.note] if result.note else [])]) or "baseline"


def _row(architecture: Architecture, result: PublishedResult, varied: tuple[str, ...]) -> Row:
    """Return a row; width, depth, patch size and epochs are multiples of those of its baseline."""
    baseline = BASELINES[OWN_RECIPES[result.table]]
    changes = {
        f"model.{name}": getattr(architecture, name) for name in varied if name not in SCALED
    }
    ratios = {
        f"model.{name}": getattr(architecture, name) / getattr(baseline, name)
        for name in SCALED
        if name in varied
    }
    if result.table in (1, 2) and result.epochs is not None:
        ratios["epochs"] = result.epochs / BASELINE_EPOCHS
    name = _name(architecture, result, varied)
    return Row(name, changes | _changes(result), ratios, (result.top1,))


def paper_table(number: int) -> Study:
    """Return table 1 to 8 of the paper.

    On the table's own recipe the models are the paper's: arguments that all rows share are theirs,
    and arguments that differ are multiples of ConvMixer-1536/20, 512/12 or 256/8. On another recipe
    the rows have the same multiples of its model.
    """
    published = [(a, result) for a, result in published_rows() if result.table == number]
    varied = tuple(
        name for name in ARCHITECTURE if len({getattr(each, name) for each, _ in published}) > 1
    )
    own_recipe = OWN_RECIPES[number]
    baseline, printed = BASELINES[own_recipe], published[0][0]
    rows = tuple(_row(architecture, result, varied) for architecture, result in published)
    return Study(
        name=f"table {number}",
        title=TITLES[number],
        rows=rows,
        own_recipe=own_recipe,
        own_settings={
            f"model.{name}": getattr(baseline if name in varied else printed, name)
            for name in ARCHITECTURE
        },
        reports=(Report("paper", "the paper", PAPER_IMAGES[own_recipe]),),
        baseline="baseline" if number in (6, 7) else None,
        peers=tuple(Peer(*peer) for peer in PEERS) if number in (1, 2) else (),
    )
