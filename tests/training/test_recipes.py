"""The recipes that ship with the package: their names, their relations, their models."""

from __future__ import annotations

import pytest

from convmixer.config.fields import FIELDS, get_value, override
from convmixer.config.recipes import RECIPE_FOLDER, load_recipe, recipe_names
from convmixer.errors import UsageError
from convmixer.model.variants import get_variant

# The fields in which a recipe differs from the one whose settings it says to have otherwise.
OF_THE_SIZE_OF_IMAGES = {
    "data.source", "data.folder", "data.image_size", "data.mean", "data.std", "data.crop_fraction",
    "augment.scale", "model.dim", "model.depth", "model.patch_size", "model.n_classes",
}  # fmt: skip
OF_A_LONG_RUN = {"epochs", "batch_size", "log_interval", "sync_batch_norm"}
DIFFERENCES = {
    ("imagenet-a1", "imagenet"): {
        "augment.rand_augment", "augment.random_erasing", "augment.mixup", "augment.cutmix",
        "optimizer.weight_decay",
    },
    ("cifar10", "imagenet"): OF_THE_SIZE_OF_IMAGES | OF_A_LONG_RUN | {"optimizer.weight_decay"},
}  # fmt: skip


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_named_as_its_file_and_described(name):
    recipe = load_recipe(name)
    assert recipe.recipe == name and recipe.description.endswith(".")


@pytest.mark.parametrize(("pair", "expected"), DIFFERENCES.items())
def test_recipes_differ_where_their_descriptions_say(pair, expected):
    one, other = map(load_recipe, pair)
    differences = {n for n in FIELDS if get_value(one, n) != get_value(other, n)}
    assert differences - {"recipe", "description"} == expected


def test_fields_of_a_recipe_are_overridden():
    config = load_recipe("digits", {"epochs": 5, "dim": 32, "model.depth": 2})
    assert (config.epochs, config.model.dim, config.model.depth) == (5, 32, 2)
    assert override(config, {"epochs": 40, "dim": 64, "depth": 4}) == load_recipe("digits")
    with pytest.raises(UsageError, match=r"'epochz' .did you mean 'epochs'"):
        load_recipe("digits", {"epochz": 5})


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
