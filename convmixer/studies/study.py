"""A study: the settings of its rows, and what others report for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from convmixer.config.fields import FIELDS, get_value, override, resolve
from convmixer.config.settings import Config
from convmixer.errors import UsageError


@dataclass(frozen=True)
class Report:
    """A publication that reports accuracies for the rows of a study.

    Attributes:
        name: in names of columns.
        author: in sentences.
        images: the images on which it measured.
    """

    name: str
    author: str
    images: str


@dataclass(frozen=True)
class Row:
    """A row of a study.

    Attributes:
        name: the name of the row, a format string over the settings `c` that run:
            ``"patch {c.model.patch_size}"``.
        changes: fields that the row sets.
        ratios: fields that the row multiplies.
        reported: the test accuracy in percent of each report of the study.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    ratios: Mapping[str, float] = field(default_factory=dict)
    reported: tuple[float | None, ...] = ()

    def label(self, config: Config) -> str:
        """Return the name of the row with the settings `config`."""
        return self.name.format(c=config)


@dataclass(frozen=True)
class Peer:
    """Another network that a publication reports: parameters in millions, accuracy in percent."""

    name: str
    parameters: float
    accuracy: float


@dataclass(frozen=True)
class Study:
    """Rows that change the settings of a recipe.

    Attributes:
        name: in headings and messages, such as ``"Table 7"``.
        title: what the study compares.
        rows: the rows in order.
        own_recipe: the recipe that the publication used, if there is one.
        own_settings: fields that the publication sets over its recipe.
        reports: the publications whose accuracies stand beside those measured.
        baseline: the name of the row that the others are compared with.
        peers: networks that are no ConvMixer, for the picture over parameters.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    own_recipe: str | None = None
    own_settings: Mapping[str, Any] = field(default_factory=dict)
    reports: tuple[Report, ...] = ()
    baseline: str | None = None
    peers: tuple[Peer, ...] = ()

    def base(self, recipe: Config, overrides: Mapping[str, Any]) -> Config:
        """Return the settings that the rows change: a recipe with some fields overridden.

        On the study's own recipe the settings are the publication's; overrides come before them.

        Raises:
            UsageError: an override names a field that every row sets.
        """
        overrides = {resolve(name): value for name, value in overrides.items()}
        in_every_row = set.intersection(*(set(row.changes) for row in self.rows))
        for name in overrides:
            if name in in_every_row:
                raise UsageError(f"{name}: {self.name} sets it in every row")
        if recipe.recipe == self.own_recipe:
            overrides = dict(self.own_settings) | overrides
        return override(recipe, overrides)

    def settings(self, row: Row, base: Config) -> Config:
        """Return the settings of a row over those of `base`.

        Raises:
            UsageError: the row does not fit the images.
        """
        changes = dict(row.changes)
        for name, ratio in row.ratios.items():
            value = get_value(base, name) * ratio
            whole = FIELDS[name].hint is int
            changes[name] = max(1, int(value + 0.5)) if whole else float(f"{value:.6g}")
        if "model.stem" in changes:
            # The ResNet-style stem needs an even patch size, and both stems have the same.
            changes["model.patch_size"] = base.model.patch_size + base.model.patch_size % 2
        return override(base, changes)


def folder_name(label: str) -> str:
    """Return a row's label as the name of a folder."""
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-")
