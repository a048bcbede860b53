"""Predicting the classes of single images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from convmixer.config.fields import override
from convmixer.config.settings import Config
from convmixer.data.image_files import image_files
from convmixer.data.sources import FileImages
from convmixer.errors import UsageError
from convmixer.model.checkpoints import load_checkpoint
from convmixer.training.class_names import class_names
from convmixer.training.distributed import Processes
from convmixer.training.environment import build_model, cpu_threads, numerics, resolve_device
from convmixer.training.evaluation import checkpoint_config
from convmixer.training.loaders import EvaluationLoader
from convmixer.training.run_folder import weights_file
from convmixer.training.run_state import read_checkpoint
from convmixer.training.scoring import log_probabilities


class Prediction(NamedTuple):
    """The most probable classes of an image, the best first."""

    path: str
    classes: tuple[tuple[str, float], ...]
    """The name of each class and its probability, from 0 to 1."""


def _files(images: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return the named files, and the images in the named folders."""
    files: list[str] = []
    for each in images:
        path = Path(each).expanduser()
        if path.is_dir():
            found, _ = image_files(path)
            if not found:
                raise UsageError(f"no images in {path}")
            files += found
        elif path.exists():
            files.append(str(path))
        else:
            raise FileNotFoundError(f"{path}: no such image")
    return files


def predict(
    checkpoint: str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]],
    config: Config | None = None,
    *,
    top: int = 5,
) -> list[Prediction]:
    """Return the most probable classes of images.

    Args:
        checkpoint: any file that `convmixer.load_checkpoint` takes, or the folder of a run, whose
            tested weights are meant.
        images: image files, and folders of images.
        config: settings of the checkpoint; by default those that it holds, see `checkpoint_config`.
        top: number of classes for each image.

    Raises:
        FileNotFoundError: there is no such checkpoint or image.
        UsageError: the checkpoint does not fit the settings, or an image cannot be read.
    """
    checkpoint = weights_file(Path(checkpoint))
    if config is None:
        config = checkpoint_config(checkpoint)
    files = _files(images)
    names = class_names(read_checkpoint(checkpoint), config)
    predictions: list[Prediction] = []
    with cpu_threads(config.threads), numerics(config):
        processes = Processes(resolve_device(config.device))
        model = build_model(config, processes.device)
        load_checkpoint(model, checkpoint)
        mode = "L" if config.model.in_chans == 1 else "RGB"
        found = FileImages(tuple(files), np.zeros(len(files), dtype=np.int64), mode)
        loader = EvaluationLoader(
            found,
            override(config, {"bad_images": 0}),
            min(config.batch_size, len(files)),
            processes,
            workers=config.data.workers or 0,
        )
        for outputs, _ in log_probabilities(model, loader, config, processes):
            best = outputs.exp().topk(min(top, outputs.shape[1]), dim=1)
            for probabilities, indices in zip(*map(list, best), strict=True):
                pairs = zip(indices.tolist(), probabilities.tolist(), strict=True)
                classes = tuple((names[index], probability) for index, probability in pairs)
                predictions.append(Prediction(files[len(predictions)], classes))
    return predictions
