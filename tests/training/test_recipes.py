"""Recipes against the published models, and the published commands against a recipe."""

from __future__ import annotations

import pytest

from convmixer.config_io import RECIPE_FOLDER, load_recipe, override
from convmixer.variants import get_variant


@pytest.mark.parametrize(
    ("variant", "recipe"),
    [("convmixer_1536_20", "imagenet"), ("convmixer_256_8_ks9_p1_cifar10", "cifar10")],
)
def test_a_recipe_has_the_model_and_the_preprocessing_of_its_variant(variant, recipe):
    published, config = get_variant(variant), load_recipe(recipe)
    for name, value in published.arguments.items():
        assert getattr(config.model, name) == value
    preprocessing, data = published.preprocessing, config.data
    assert data.image_size == preprocessing.input_size
    assert (*data.mean,) == preprocessing.mean and (*data.std,) == preprocessing.std
    assert data.crop_fraction == preprocessing.crop
    assert data.interpolation == preprocessing.interpolation


def test_the_published_commands_of_the_quick_script_are_accepted():
    """The commands are those in the comments of the recipe."""
    recipe = "cifar10-quick"
    comments = [
        line.removeprefix("# ")
        for line in (RECIPE_FOLDER / f"{recipe}.yaml").read_text().splitlines()
        if line.startswith("# --")
    ]
    words = " ".join(comments).split()
    options = [(name[2:], value) for name, value in zip(words[::2], words[1::2], strict=True)]
    first, second = dict(options[:6]), dict(options[6:])
    assert len(second) == 7 and second["epochs"] == "100"
    config = override(load_recipe(recipe), first)
    assert config.optimizer.lr == 0.05 and config.augment.scale == [1.0, 1.0]
    assert override(load_recipe(recipe), second).augment.random_erasing == 0.2
