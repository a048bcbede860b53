"""Reading checkpoints of every public implementation of ConvMixer, and writing our own."""

from __future__ import annotations

import argparse
import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convmixer.errors import UsageError

ACCEPTED_FORMATS = (
    "a state dict of this package or timm (stem.*, blocks.*, head.*), of the paper's nn.Sequential "
    "(0.*, 2.*, 3.0.fn.0.*, ...), of its tweet-sized version (0.0.*, 1.0.0.0.*, ...) or of "
    "mmpretrain (backbone.stem.*, backbone.stages.*, head.fc.*), alone or as the entry "
    "state_dict_ema, model_ema, state_dict or model of a checkpoint"
)

# Averaged weights first: where a checkpoint has both, they are what its authors evaluate.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
# Put before names by DataParallel, DistributedDataParallel and AveragedModel, and by torch.compile.
_PREFIX = re.compile(r"^module\.|_orig_mod\.")
_NAMES_IN_MESSAGE = 3

_Rule = tuple[str, Callable[[re.Match[str]], str]]
_TIMM: tuple[_Rule, ...] = ()
# Figure 3: convolution and norm of the stem at 0 and 2, block i at 3 + i, head at 5 + depth.
_SEQUENTIAL: tuple[_Rule, ...] = (
    (r"[02]\.\w+", lambda match: f"stem.{match[0]}"),
    (r"(\d+)\.((0\.fn|\d)\..+)", lambda match: f"blocks.{int(match[1]) - 3}.{match[2]}"),
    (r"\d+\.(\w+)", lambda match: f"head.{match[1]}"),
)
# Figure 8: stem at 0, block i at 1 + i with its parts in 0.0 and 1, head at 3 + depth.
_TWEET: tuple[_Rule, ...] = (
    (r"0\.(\d\.\w+)", lambda match: f"stem.{match[1]}"),
    (r"(\d+)\.0\.0\.(.+)", lambda match: f"blocks.{int(match[1]) - 1}.0.fn.{match[2]}"),
    (
        r"(\d+)\.1\.(\d)\.(\w+)",
        lambda match: f"blocks.{int(match[1]) - 1}.{int(match[2]) + 1}.{match[3]}",
    ),
    (r"\d+\.(\w+)", lambda match: f"head.{match[1]}"),
)
_MMPRETRAIN: tuple[_Rule, ...] = (
    (r"backbone\.stem\.(.+)", lambda match: f"stem.{match[1]}"),
    (r"backbone\.stages\.(.+)", lambda match: f"blocks.{match[1]}"),
    (r"head\.fc\.(.+)", lambda match: f"head.{match[1]}"),
)
# Two names that together only one format has, and how to rename those of that format.
_FORMATS: tuple[tuple[set[str], tuple[_Rule, ...]], ...] = (
    ({"stem.0.weight", "blocks.0.1.weight"}, _TIMM),
    ({"0.weight", "3.0.fn.0.weight"}, _SEQUENTIAL),
    ({"0.0.weight", "1.0.0.0.weight"}, _TWEET),
    ({"backbone.stem.0.weight", "backbone.stages.0.1.weight"}, _MMPRETRAIN),
)


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load the weights in a file into `model`, strictly: every name and shape must agree.

    Args:
        model: a `ConvMixer`, on any device.
        path: a file written by `torch.save` (read with ``weights_only=True``) or, with the suffix
            ``.safetensors``, by safetensors. What it may hold is listed in `ACCEPTED_FORMATS`.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: the file is damaged, holds something else, or does not fit the model.
    """
    path = Path(path)
    try:
        state_dict = convert_state_dict(read_file(path))
    except UsageError as error:
        raise UsageError(f"{path}: {error}; accepted is {ACCEPTED_FORMATS}") from error
    target = model.state_dict()
    shapes = [
        f"{name} is {tuple(tensor.shape)} in the file and {tuple(target[name].shape)} in the model"
        for name, tensor in state_dict.items()
        if name in target and tensor.shape != target[name].shape
    ]
    # PyTorch fills in this counter where an older checkpoint lacks it.
    missing = [
        name
        for name in target
        if name not in state_dict and not name.endswith("num_batches_tracked")
    ]
    unexpected = [name for name in state_dict if name not in target]
    problems = [
        f"{title}: {_first(names)}"
        for title, names in (
            ("shapes differ", shapes),
            ("not in the file", missing),
            ("not in the model", unexpected),
        )
        if names
    ]
    if problems:
        raise UsageError(f"{path}: does not fit the model; {'; '.join(problems)}")
    model.load_state_dict(state_dict)


def convert_state_dict(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict in `checkpoint` under the names of `ConvMixer`.

    Args:
        checkpoint: see `ACCEPTED_FORMATS`. Averaged weights are preferred where there are both, and
            the prefixes ``module.`` and ``_orig_mod.`` are dropped.

    Raises:
        UsageError: the names are those of no known implementation.
    """
    state_dict = _unwrap(checkpoint)
    for telling, rules in _FORMATS:
        if telling <= state_dict.keys():
            renamed = {_rename(name, rules): tensor for name, tensor in state_dict.items()}
            if len(renamed) < len(state_dict):
                raise UsageError("has several layers where ConvMixer has one head")
            return renamed
    found = _first(list(state_dict)) if state_dict else "nothing"
    raise UsageError(f"the names of the weights are of no known format (found {found})")


def save_checkpoint(state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write `state` with `torch.save`; `path` is always the whole old file or the whole new one.

    The data goes to a temporary file in the same folder, is flushed to the disk, and takes the
    place of `path` in one step. If writing fails, `path` is untouched and nothing else is left.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":
        # The new name itself is on the disk only once the folder is.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_file(path: Path) -> Mapping[str, Any]:
    """What a checkpoint file holds, read without running code of its; errors name what is wrong."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a checkpoint")
    checkpoint = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)
    if not isinstance(checkpoint, Mapping):
        raise UsageError(f"holds a {type(checkpoint).__name__}, no state dict")
    return checkpoint


def _read_pickled(path: Path) -> object:
    # timm's training script stores its arguments as a Namespace, which only holds attributes.
    with path.open("rb") as file, torch.serialization.safe_globals([argparse.Namespace]):
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # A damaged pickle can raise anything.
            refused = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
            reason = f"it holds a {refused[1]}" if refused else _one_line(error)
            raise UsageError(f"is damaged or not made of weights alone ({reason})") from error


def _read_safetensors(path: Path) -> object:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise UsageError("reading .safetensors needs the package safetensors") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UsageError(f"is damaged or no safetensors file ({_one_line(error)})") from error


def _unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    state: Mapping[str, Any] = checkpoint
    while wrapper := next((n for n in _WRAPPERS if isinstance(state.get(n), Mapping)), None):
        state = state[wrapper]
    cleaned = {
        _without_prefixes(name): value for name, value in state.items() if name != "n_averaged"
    }
    others = [name for name, value in cleaned.items() if not isinstance(value, Tensor)]
    if others:
        raise UsageError(f"is no state dict: not a tensor: {_first(others)}")
    return cleaned


def _without_prefixes(name: str) -> str:
    while (shorter := _PREFIX.sub("", name)) != name:
        name = shorter
    return name


def _rename(name: str, rules: Sequence[_Rule]) -> str:
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, name):
            return replacement(match)
    return name


def _first(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES_IN_MESSAGE])
    more = len(names) - _NAMES_IN_MESSAGE
    return f"{shown} and {more} more" if more > 0 else shown


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
