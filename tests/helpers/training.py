"""Small settings, folders and comparisons that the training tests share."""

from __future__ import annotations

import csv
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from convmixer.config.fields import override
from convmixer.config.recipes import load_recipe, to_yaml
from convmixer.config.settings import Config
from convmixer.training.run_folder import RunFolder, write_json

TINY = {
    "device": "cpu",
    "epochs": 2,
    "batch_size": 320,
    "log_interval": 2,
    "model.dim": 8,
    "model.depth": 1,
    "model.kernel_size": 3,
    "model.dw_impl": "torch",
}
"""Four steps an epoch on the digits."""


def tiny_config(**changes: Any) -> Config:
    """The digits recipe with a very small model; `__` in a name stands for the dot."""
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return override(load_recipe("digits"), TINY | named)


def tiny_options(names: Iterable[str] = tuple(TINY)) -> list[str]:
    """The settings of the very small model, or some of them, as words of a command line."""
    return [word for name in names for word in (f"--{name}", str(TINY[name]))]


def tiny_images_config(folder: Path, **changes: Any) -> Config:
    """Settings for two classes of images in a folder with a very small model; one epoch."""
    images = {
        "epochs": 1,
        "batch_size": 2,
        "data.source": "images",
        "data.folder": str(folder),
        "data.image_size": 8,
        "data.mean": [0.5] * 3,
        "data.std": [0.2] * 3,
        "data.validation_fraction": 0,
        "data.workers": 0,
        "model.patch_size": 4,
        "model.n_classes": 2,
        "model.in_chans": 3,
    }
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return override(load_recipe("digits"), TINY | images | named)


def finished_run(config: Config, out: Path, accuracy: float) -> dict[str, Any]:
    """Write what a study reads of a finished run, and return its summary."""
    folder = RunFolder(out)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.config.write_text(to_yaml(config))
    row = {"epoch": 1, "train_loss": 1.0, "train_accuracy": accuracy, "test_accuracy": accuracy}
    folder.write_metrics([row])
    summary = {
        "recipe": config.recipe, "data": config.data.source, "test_accuracy": accuracy,
        "test_images": 10, "parameters": 7, "epochs": config.epochs, "seed": config.seed,
        "torch": "2", "images_per_second": None,
    }  # fmt: skip
    write_json(folder.summary, summary)
    return summary


def write_cifar_batches(folder: Path, training_images: int = 40, test_images: int = 20) -> None:
    """Write random images as CIFAR-10's five training batches and its test batch."""
    generator = np.random.default_rng(0)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        count = test_images if name == "test_batch" else training_images // 5
        batch = {
            "data": generator.integers(0, 256, (count, 3072), dtype=np.uint8),
            "labels": [index % 10 for index in range(count)],
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


def write_image_folder(folder: Path, splits: Mapping[str, int], classes: int = 2) -> None:
    """Write `splits[name]` random colour images a class under `folder/name/class`."""
    generator = np.random.default_rng(0)
    for split, count in splits.items():
        for label in range(classes):
            place = folder / split / f"class{label}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (12, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")


def assert_same_state(first: Any, second: Any, where: str = "") -> None:
    """Compare nested dictionaries, lists and tensors bit for bit."""
    assert type(first) is type(second), where
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_same_state(first[key], second[key], f"{where}/{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_same_state(*pair, f"{where}/{index}")
    elif isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype and torch.equal(first, second), where
    else:
        assert first == second, where


def study_rows(out: Path) -> list[dict[str, str]]:
    """Read the rows of results.csv in the folder of a study."""
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))
