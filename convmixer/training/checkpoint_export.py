"""Exporting a checkpoint with the size of its images, its preprocessing and its classes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from convmixer.config.fields import override
from convmixer.config.settings import Config
from convmixer.model.checkpoints import load_checkpoint
from convmixer.model.exporting import export_model
from convmixer.training.class_names import class_names
from convmixer.training.environment import build_model
from convmixer.training.run_folder import weights_file
from convmixer.training.run_state import read_checkpoint

BATCH = 2
"""An exported program that was traced with one image would take no other number."""


def export_checkpoint(
    checkpoint: str | os.PathLike[str], config: Config, out: str | os.PathLike[str]
) -> None:
    """Write the model of a checkpoint for other programs; see `convmixer.model.exporting`.

    Args:
        checkpoint: any file that `convmixer.load_checkpoint` takes, or the folder of a run, whose
            tested weights are meant.
        config: settings of the checkpoint.
        out: file to write; its suffix is the format.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        UsageError: the checkpoint does not fit the settings, or cannot be written so.
    """
    checkpoint = weights_file(Path(checkpoint))
    device = torch.device("cpu")
    model = build_model(override(config, {"compile": False, "channels_last": "false"}), device)
    load_checkpoint(model, checkpoint)
    data = config.data
    size = (BATCH, config.model.in_chans, data.image_size, data.image_size)
    images = torch.randn(size, generator=torch.Generator().manual_seed(0))
    metadata = {
        "architecture": f"ConvMixer-{config.model.dim}/{config.model.depth}",
        "image_size": str(data.image_size),
        "mean": json.dumps(data.mean),
        "std": json.dumps(data.std),
        "crop_fraction": str(data.crop_fraction),
        "interpolation": data.interpolation,
        "class_names": json.dumps(class_names(read_checkpoint(checkpoint), config)),
    }
    export_model(model, Path(out), images, metadata)
