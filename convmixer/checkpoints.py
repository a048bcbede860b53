"""Reading checkpoints of every public implementation of ConvMixer, and writing our own."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convmixer.errors import UsageError
from convmixer.files import replacing

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
_HEAD = ("head.weight", "head.bias")
_STEM = "stem.0.weight"
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


def load_checkpoint(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    other_classes: bool = False,
    other_channels: bool = False,
) -> None:
    """Load the weights in a file into `model`, strictly: every name and shape must agree.

    Args:
        model: a `ConvMixer` on any device; it may be compiled, or inside DataParallel,
            DistributedDataParallel or AveragedModel.
        path: a file written by `torch.save` (read with ``weights_only=True``) or, with the suffix
            ``.safetensors``, by safetensors. What it may hold is listed in `ACCEPTED_FORMATS`.
        other_classes: to fine-tune: where the head in the file is for another number of classes,
            the model keeps its own head.
        other_channels: to fine-tune: where the filters of the stem are for another number of
            channels, they are adapted as in timm. For one channel they are summed over theirs; for
            more they are repeated, channel by channel, and divided by how often that is.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: the file is damaged, holds something else, or does not fit the model.
    """
    state_dict = read_weights(path)
    present = model.state_dict()
    # AveragedModel has a counter of its own.
    names = {_without_prefixes(name): name for name in present if name != "n_averaged"}
    target = {name: present[prefixed] for name, prefixed in names.items()}
    if other_classes:
        state_dict = _with_fitting_head(state_dict, target)
    if other_channels:
        state_dict = _with_fitting_stem(state_dict, target)
    if problems := _misfits(state_dict, target):
        raise UsageError(f"{path}: does not fit the model; {'; '.join(problems)}")
    model.load_state_dict(
        {names[name]: tensor for name, tensor in state_dict.items()}, strict=False
    )


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state dict in a file, under the names of `ConvMixer`; raises like `load_checkpoint`."""
    try:
        return convert_state_dict(read_file(Path(path)))
    except UsageError as error:
        raise UsageError(f"{path}: {error}; accepted is {ACCEPTED_FORMATS}") from error


def _misfits(state_dict: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> list[str]:
    """What keeps `state_dict` from taking the place of `target`, a few names for each reason."""
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
    return [
        f"{title}: {_first(names)}"
        for title, names in (
            ("shapes differ", shapes),
            ("not in the file", missing),
            ("not in the model", unexpected),
        )
        if names
    ]


def _with_fitting_head(
    state_dict: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    def shapes(tensors: Mapping[str, Tensor]) -> list[torch.Size | None]:
        return [tensors[name].shape if name in tensors else None for name in _HEAD]

    if shapes(state_dict) == shapes(target):
        return dict(state_dict)
    body = {name: tensor for name, tensor in state_dict.items() if name not in _HEAD}
    return body | {name: target[name] for name in _HEAD if name in target}


def _with_fitting_stem(
    state_dict: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    weight = state_dict[_STEM]
    if _STEM not in target or not weight.dim() == target[_STEM].dim() == 4:
        return dict(state_dict)
    old, new = weight.shape[1], target[_STEM].shape[1]
    if new == old:
        return dict(state_dict)
    if new == 1:
        adapted = weight.double().sum(1, keepdim=True)
    else:
        adapted = weight.double()[:, torch.arange(new) % old] * (old / new)
    return {**state_dict, _STEM: adapted}


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

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    with replacing(Path(path).expanduser()) as file:
        torch.save(dict(state), file)


def read_file(path: Path) -> Mapping[str, Any]:
    """What a checkpoint file holds, read without running code of its; errors name what is wrong."""
    path = path.expanduser()
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
