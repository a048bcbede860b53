"""The ablations of tables 3 to 8 of the paper, as changes to the settings of a recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from convmixer.config.fields import override, resolve
from convmixer.config.settings import Config
from convmixer.errors import UsageError
from convmixer.model.published import Architecture, PublishedResult, published_rows

TITLES = {
    3: "Effect of patch size",
    4: "Patch embedding or ResNet-style stem",
    5: "Effect of kernel size",
    6: "Ablation of ConvMixer-512/12",
    7: "Ablation of ConvMixer-256/8",
    8: "Width, depth, patch size, kernel size and weight decay",
}
OWN_RECIPES = {3: "imagenet-a1", 4: "imagenet-a1", 5: "imagenet-a1", 6: "imagenet-a1"} | {
    7: "cifar10",
    8: "cifar10",
}
PAPER_DATA = {"imagenet-a1": "ImageNet-1k", "cifar10": "CIFAR-10"}
BASELINES = {
    "imagenet-a1": Architecture(512, 12, 9, 7),
    "cifar10": Architecture(256, 8, 9, 1, n_classes=10),
}
ARCHITECTURE = tuple(
    field.name for field in dataclasses.fields(Architecture) if field.name != "n_classes"
)
SCALED = ("dim", "depth", "patch_size")
"""Arguments of rows that scale with the model of the recipe."""

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


@dataclass(frozen=True)
class Row:
    """A row of a table: its model, its changes of the recipe, and the paper's accuracy."""

    label: str
    architecture: Architecture
    changes: dict[str, Any]
    paper_accuracy: float


@dataclass(frozen=True)
class AblationSet:
    """A table: its rows, and the arguments of `ConvMixer` that differ between them."""

    table: int
    rows: tuple[Row, ...]
    varied: tuple[str, ...]

    @property
    def title(self) -> str:
        """The title of the table."""
        return TITLES[self.table]

    @property
    def own_recipe(self) -> str:
        """The recipe of the table in the paper."""
        return OWN_RECIPES[self.table]

    @property
    def paper_data(self) -> str:
        """The images on which the paper measured the table."""
        return PAPER_DATA[self.own_recipe]

    def base(self, recipe: Config, overrides: Mapping[str, Any]) -> Config:
        """Return the settings that the rows change: a recipe with some fields overridden.

        On the table's own recipe the model is the paper's: arguments that all rows share are
        theirs, and arguments that differ are those of ConvMixer-512/12 or ConvMixer-256/8.
        Overrides come before both.

        Raises:
            UsageError: an override names a field that every row sets.
        """
        overrides = {resolve(name): value for name, value in overrides.items()}
        for name in overrides:
            if name in self._set_by_every_row():
                raise UsageError(f"{name}: table {self.table} sets it in every row")
        if recipe.recipe == self.own_recipe:
            printed = self.rows[0].architecture
            paper = {
                f"model.{name}": getattr(self._baseline if name in self.varied else printed, name)
                for name in ARCHITECTURE
            }
            overrides = paper | overrides
        return override(recipe, overrides)

    def settings(self, row: Row, base: Config) -> Config:
        """Return the settings of a row over those of `base`.

        Width, depth and patch size of the row are multiples of the paper's ConvMixer-512/12 or
        ConvMixer-256/8; the settings have the same multiples of the model of `base`. The other
        changes are those that the paper prints.

        Raises:
            UsageError: the row does not fit the images.
        """
        changes: dict[str, Any] = {
            f"model.{name}": getattr(row.architecture, name)
            for name in self.varied
            if name not in SCALED
        }
        for name in SCALED:
            if name in self.varied:
                own, ratio = getattr(base.model, name), getattr(self._baseline, name)
                scaled = own * getattr(row.architecture, name) / ratio
                changes[f"model.{name}"] = max(1, int(scaled + 0.5))
        if "stem" in self.varied:
            # The ResNet-style stem needs an even patch size, and both stems have the same.
            changes["model.patch_size"] = base.model.patch_size + base.model.patch_size % 2
        return override(base, changes | row.changes)

    @property
    def _baseline(self) -> Architecture:
        return BASELINES[self.own_recipe]

    def _set_by_every_row(self) -> set[str]:
        models = {f"model.{name}" for name in self.varied if name not in SCALED}
        return models.union(set.intersection(*(set(row.changes) for row in self.rows)))


def _changes(result: PublishedResult) -> dict[str, Any]:
    """Return the fields that the note of a row changes."""
    if result.note.startswith("weight decay "):
        return {"optimizer.weight_decay": float(result.note.removeprefix("weight decay "))}
    return dict(_RECIPE_CHANGES[result.note])


def _label(architecture: Architecture, result: PublishedResult, varied: tuple[str, ...]) -> str:
    """Return the name of a row from the arguments that differ between the rows, and its note."""
    if result.table == 8:
        a = architecture
        decay = result.note.removeprefix("weight decay ")
        return f"{a.dim}/{a.depth}, patch {a.patch_size}, kernel {a.kernel_size}, decay {decay}"
    if result.table == 5:
        a = architecture
        stacked = f", {a.stacked} stacked" if a.stacked > 1 else ""
        return f"{a.dim}/{a.depth}, kernel {a.kernel_size}{stacked}"
    if result.table == 3:
        return f"patch {architecture.patch_size}"
    plain = Architecture(1, 1, 1, 1)
    words = [
        _WORDS[name, getattr(architecture, name)]
        for name in varied
        if result.table == 4 or getattr(architecture, name) != getattr(plain, name)
    ]
    return ", ".join([*words, *([result.note] if result.note else [])]) or "baseline"


def ablation_set(table: int) -> AblationSet:
    """Return the ablation of a table.

    Raises:
        UsageError: the table is no ablation.
    """
    if table not in TITLES:
        raise UsageError(f"table: expected one of {', '.join(map(str, TITLES))}, got {table}")
    published = [(a, result) for a, result in published_rows() if result.table == table]
    varied = tuple(
        field.name
        for field in dataclasses.fields(Architecture)
        if len({getattr(architecture, field.name) for architecture, _ in published}) > 1
    )
    rows = tuple(
        Row(_label(architecture, result, varied), architecture, _changes(result), result.top1)
        for architecture, result in published
    )
    return AblationSet(table, rows, varied)
