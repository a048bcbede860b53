"""The settings of the paper's models, over the recipe of their images."""

from __future__ import annotations

from typing import Any

from convmixer.config.recipes import load_recipe
from convmixer.model.variants import get_variant

CIFAR10_CLASSES = 10
_PROCEDURES = {"imagenet": "common_sense", "imagenet-a1": "a1_like", "cifar10": "cifar10"}
"""The paper's procedure behind each recipe, as `PublishedResult.recipe` names it."""


def recipe_of(variant: str) -> str:
    """Return the recipe of the images of a variant: cifar10 or imagenet.

    Raises:
        UsageError: the variant is unknown.
    """
    ten = get_variant(variant).arguments["n_classes"] == CIFAR10_CLASSES
    return "cifar10" if ten else "imagenet"


def variant_fields(variant: str, recipe: str) -> dict[str, Any]:
    """Return the fields that a variant sets over a recipe: its model, and epochs of its own.

    Raises:
        UsageError: the variant is unknown.
    """
    found = get_variant(variant)
    fields: dict[str, Any] = {f"model.{name}": value for name, value in found.arguments.items()}
    reported = {
        result.epochs
        for result in found.results
        if result.recipe == _PROCEDURES.get(recipe) and result.epochs is not None
    }
    if len(reported) == 1 and reported != {load_recipe(recipe).epochs}:
        (fields["epochs"],) = reported
    return fields
