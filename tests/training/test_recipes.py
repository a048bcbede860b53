"""Every field of every recipe, as the paper, its authors' commands and the reproduction have it.

The fields that a recipe leaves alone are given by `DEFAULTS`.
"""

from __future__ import annotations

from typing import Any

import pytest

from convmixer.config.fields import FIELDS, get_value, override
from convmixer.config.recipes import RECIPE_FOLDER, load_recipe, recipe_names
from convmixer.config.settings import Config
from convmixer.model.variants import get_variant

DEFAULTS: dict[str, Any] = {
    "initial_checkpoint": None,
    "accumulation_steps": 1,
    "seed": 0,
    "device": "auto",
    "threads": None,
    "channels_last": False,
    "gradient_checkpointing": False,
    "ema_decay": 0.0,
    "sync_batch_norm": True,
    "select": "last",
    "monitor_test": False,
    "label_smoothing": 0.0,
    "model.in_chans": 3,
    "model.activation": "gelu",
    "model.norm": "batch",
    "model.residual": "depthwise",
    "model.stem": "patch",
    "model.stacked": 1,
    "model.dw_impl": "auto",
    "data.folder": None,
    "data.download": True,
    "data.interpolation": "bicubic",
    "data.crop_fraction": 1.0,
    "data.validation_fraction": 0.0,
    "data.test_fraction": 0.2,
    "data.split_seed": 0,
    "data.workers": None,
    "augment.scale": [1.0, 1.0],
    "augment.ratio": [1.0, 1.0],
    "augment.crop_padding": 0,
    "augment.train_interpolation": "random",
    "augment.flip": 0.5,
    "augment.color_jitter": 0.0,
    "augment.random_erasing": 0.25,
    "augment.erasing_mode": "pixel",
    "augment.mixup": 0.0,
    "augment.cutmix": 0.0,
    "augment.mix_probability": 1.0,
    "augment.switch_probability": 0.5,
    "optimizer.lr": 0.01,
    "optimizer.weight_decay": 0.01,
    "optimizer.decay_one_dimensional": False,
    "optimizer.eps": 1e-8,
    "optimizer.betas": [0.9, 0.999],
    "optimizer.clip_grad_norm": 0.0,
    "optimizer.schedule": "triangular",
    "optimizer.warmup_epochs": 0.0,
}


def _model(dim: int, depth: int, kernel_size: int, patch_size: int, n_classes: int):
    names = ("dim", "depth", "kernel_size", "patch_size", "n_classes")
    sizes = (dim, depth, kernel_size, patch_size, n_classes)
    return {f"model.{name}": size for name, size in zip(names, sizes, strict=True)}


# The authors' timm command; scale, ratio, switching and smoothing are timm's defaults of that time.
TIMM: dict[str, Any] = {
    "label_smoothing": 0.1,
    "amp": "fp16",
    "monitor_test": True,
    "augment.ratio": [0.75, 1.3333333333333333],
    "augment.rand_augment": "rand-m9-mstd0.5-inc1",
    "augment.mixup": 0.5,
    "augment.cutmix": 0.5,
    "optimizer.eps": 1e-3,
    "optimizer.clip_grad_norm": 1.0,
}
IMAGENET: dict[str, Any] = {
    **TIMM,
    **_model(1536, 20, 9, 7, n_classes=1000),
    "epochs": 150,
    "batch_size": 640,
    "log_interval": 50,
    "sync_batch_norm": False,
    "data.source": "images",
    "data.image_size": 224,
    "data.mean": [0.485, 0.456, 0.406],
    "data.std": [0.229, 0.224, 0.225],
    "data.crop_fraction": 0.96,
    "augment.scale": [0.08, 1.0],
    "optimizer.weight_decay": 2e-5,
}
CIFAR10: dict[str, Any] = {
    "amp": "fp16",
    "data.source": "cifar10",
    "data.folder": "data/cifar10",
    "data.image_size": 32,
    "data.mean": [0.4914, 0.4822, 0.4465],
    "data.std": [0.2471, 0.2435, 0.2616],
}
RECIPES: dict[str, dict[str, Any]] = {
    "imagenet": IMAGENET,
    "imagenet-a1": {
        **IMAGENET,
        "augment.rand_augment": "rand-m7-mstd0.5-inc1",
        "augment.random_erasing": 0.0,
        "augment.mixup": 0.2,
        "augment.cutmix": 1.0,
        "optimizer.weight_decay": 0.01,
    },
    "cifar10": {
        **TIMM,
        **CIFAR10,
        **_model(256, 8, 9, 1, n_classes=10),
        "epochs": 200,
        "batch_size": 128,
        "log_interval": 100,
        "augment.scale": [0.75, 1.0],
        "optimizer.weight_decay": 0.0,
    },
    # The defaults of the authors' script: no clipping.
    "cifar10-quick": {
        **CIFAR10,
        **_model(256, 8, 5, 2, n_classes=10),
        "epochs": 25,
        "batch_size": 512,
        "monitor_test": True,
        "log_interval": 50,
        "augment.scale": [0.75, 1.0],
        "augment.train_interpolation": "bilinear",
        "augment.rand_augment": "torchvision-n1-m8",
        "augment.color_jitter": 0.1,
        "augment.erasing_mode": "const",
        "optimizer.decay_one_dimensional": True,
    },
    "columbia": {
        **CIFAR10,
        **_model(256, 8, 9, 1, n_classes=10),
        "epochs": 30,
        "batch_size": 64,
        "select": "best",
        "log_interval": 200,
        "data.validation_fraction": 0.1,
        "augment.crop_padding": 4,
        "augment.rand_augment": "rand-m9-mstd0.5-inc1",
        "augment.mixup": 0.5,
        "augment.cutmix": 0.5,
        "optimizer.lr": 1e-3,
        "optimizer.decay_one_dimensional": True,
        "optimizer.schedule": "cosine",
    },
    "digits": {
        **_model(64, 4, 5, 1, n_classes=10),
        "epochs": 40,
        "batch_size": 64,
        "label_smoothing": 0.1,
        "threads": 1,
        "amp": "none",
        "log_interval": 100,
        "model.in_chans": 1,
        "data.source": "digits",
        "data.image_size": 8,
        "data.mean": [0.3053],
        "data.std": [0.3761],
        "data.validation_fraction": 0.1,
        "augment.scale": [0.75, 1.0],
        "augment.ratio": [0.75, 1.3333333333333333],
        "augment.flip": 0.0,
        "augment.rand_augment": "rand-m5-n1-mstd0.5-inc1",
        "augment.random_erasing": 0.1,
        "augment.mixup": 0.2,
        "augment.cutmix": 0.5,
        "optimizer.clip_grad_norm": 1.0,
    },
}


def _fields(config: Config) -> dict[str, Any]:
    return {name: get_value(config, name) for name in FIELDS if name != "description"}


@pytest.mark.parametrize("name", recipe_names())
def test_every_field_of_a_recipe(name):
    assert _fields(load_recipe(name)) == DEFAULTS | RECIPES[name] | {"recipe": name}


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
    """Those in the comments of the recipe."""
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
