"""Reading checkpoints of every public implementation of ConvMixer, and writing our own."""

from __future__ import annotations

import argparse
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convmixer.errors import UsageError
from convmixer.files import PICKLED, ZIP, kind_of_file, replacing
from convmixer.terminal import printable

ACCEPTED_FORMATS = (
    "a state dict of this package or timm (stem.*, blocks.*, head.*), of the paper's nn.Sequential "
    "(0.*, 2.*, 3.0.fn.0.*, ...), of its tweet-sized version (0.0.*, 1.0.0.0.*, ...) or of "
    "mmpretrain (backbone.stem.*, backbone.stages.*, head.fc.*), alone or as an entry such as "
    "state_dict_ema, model_ema, state_dict, model or net of a checkpoint"
)

# Averaged weights first: where a checkpoint has both, they are what its authors evaluate.
_WRAPPERS = (
    "state_dict_ema", "model_ema", "params_ema", "ema_state_dict", "ema",
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "params", "module",
)  # fmt: skip
# DataParallel, DistributedDataParallel, AveragedModel and torch.compile put these before names, and
# so does the attribute in which a LightningModule keeps its model.
_PREFIX = re.compile(r"^(module|model|net|network)\.|_orig_mod\.")
_COUNTER = "num_batches_tracked"
_SAFETENSORS_LENGTH = 8
"""Bytes of the length that a safetensors file begins with; a JSON object follows."""
_FOLDER = 0x10
"""The attribute of a folder in a zip archive."""
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
        path: a file written by `torch.save` (read with ``weights_only=True``) or by safetensors,
            whatever its suffix. What it may hold is listed in `ACCEPTED_FORMATS`.
        other_classes: to fine-tune: where the head in the file is for another number of classes,
            the model keeps its own head.
        other_channels: to fine-tune: where the filters of the stem are for another number of
            channels, they are adapted as in timm. For one channel they are summed over theirs; for
            more they are repeated, channel by channel, and divided by how often that is.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: the file is damaged, holds something else or numbers that are not finite, or
            does not fit the model.
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
        raise UsageError(f"{path}: {error}") from error


def _misfits(state_dict: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> list[str]:
    """What keeps `state_dict` from taking the place of `target`, a few names for each reason."""
    shapes = [
        f"{name} is {tuple(tensor.shape)} in the file and {tuple(target[name].shape)} in the model"
        for name, tensor in state_dict.items()
        if name in target and tensor.shape != target[name].shape
    ]
    # PyTorch fills in this counter where an older checkpoint lacks it.
    missing = [name for name in target if name not in state_dict and not name.endswith(_COUNTER)]
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
            prefixes such as ``module.``, ``model.`` and ``_orig_mod.`` are dropped.

    Raises:
        UsageError: the names are those of no known implementation, or a tensor holds no weights:
            floating-point numbers, all finite, in plain memory.
    """
    state_dict = _unwrap(checkpoint)
    for telling, rules in _FORMATS:
        if telling <= state_dict.keys():
            renamed = {_rename(name, rules): tensor for name, tensor in state_dict.items()}
            if len(renamed) < len(state_dict):
                raise UsageError("has several layers where ConvMixer has one head")
            _check_weights(renamed)
            return renamed
    found = _first(list(state_dict)) if state_dict else "nothing"
    raise _unknown(f"the names of the weights are of no known format (found {found})")


def _unknown(text: str) -> UsageError:
    return UsageError(f"{text}; accepted is {ACCEPTED_FORMATS}")


def _check_weights(state_dict: Mapping[str, Tensor]) -> None:
    problems: dict[str, list[str]] = {}
    for name, tensor in state_dict.items():
        if problem := _problem(tensor, counter=name.endswith(_COUNTER)):
            problems.setdefault(problem, []).append(name)
    if problems:
        raise UsageError("; ".join(f"{text}: {_first(names)}" for text, names in problems.items()))


def _problem(tensor: Tensor, counter: bool) -> str | None:
    """Say why a tensor is no weight, or no counter of batches, that a model could take."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_meta:
        return "without values, on the device meta"
    if tensor.is_quantized or tensor.layout != torch.strided:
        layout = "quantised" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
        return f"{layout} tensors, not plain ones"
    if counter:
        return f"{kind}, not whole numbers" if tensor.is_complex() else None
    if not tensor.is_floating_point():
        return f"{kind}, not floating-point numbers"
    # PyTorch has no isfinite for float8.
    return None if tensor.float().isfinite().all() else "not finite"


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
    if path.is_dir():
        best = path / "best.pt"
        raise UsageError(f"is a folder; did you mean {best}?" if best.is_file() else "is a folder")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a checkpoint")
    read = _read_safetensors if _is_safetensors(path) else _read_pickled
    with warnings.catch_warnings():
        # PyTorch warns of old formats, and of damage before it raises an error.
        warnings.simplefilter("ignore")
        checkpoint = read(path)
    if not isinstance(checkpoint, Mapping):
        raise _unknown(f"holds a {type(checkpoint).__name__}, no state dict")
    return checkpoint


def _is_safetensors(path: Path) -> bool:
    """Return whether a file is of safetensors, by its beginning or, for a cut one, its suffix."""
    with path.open("rb") as file:
        beginning = file.read(_SAFETENSORS_LENGTH + 1)
    length = int.from_bytes(beginning[:_SAFETENSORS_LENGTH], "little")
    if beginning[_SAFETENSORS_LENGTH:] == b"{" and length < path.stat().st_size:
        return True
    return path.suffix == ".safetensors" and kind_of_file(path) is None


def _read_pickled(path: Path) -> object:
    if kind_of_file(path) == ZIP:
        _check_archive(path)
    # timm's training script stores its arguments as a Namespace, which only holds attributes.
    with path.open("rb") as file, torch.serialization.safe_globals([argparse.Namespace]):
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # A damaged pickle can raise anything.
            # PyTorch's messages advise to run the code in the file.
            refused = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
            reason = _refused(refused[1]) if refused else _unreadable(path)
            raise UsageError(f"is damaged or not made of weights alone ({reason})") from error


def _check_archive(path: Path) -> None:
    """Compare the files in a zip archive with their checksums, as torch.load does not.

    Raises:
        UsageError: one differs, or torch.save did not write the archive.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise UsageError("is damaged (its end is missing)")
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
            if "constants.pkl" in names or "data.pkl" not in names:
                kind = "TorchScript" if "constants.pkl" in names else "a zip archive"
                raise UsageError(f"is {kind}, no file of weights as torch.save writes it")
            for entry in archive.infolist():
                if entry.external_attr & _FOLDER:
                    # torch.load reads nothing here, and leaves the tensor as memory was.
                    raise UsageError(f"is damaged ({entry.filename} is a folder)")
                # torch.save writes 0 where it was told to compute none.
                if entry.CRC:
                    with archive.open(entry) as file:
                        while file.read(1 << 20):
                            pass
    except UsageError:
        raise
    except Exception as error:  # A damaged archive can raise anything.
        raise UsageError(f"is damaged ({_one_line(error)})") from error


def _refused(name: str) -> str:
    return f"it holds a {name}, and code is not run: save the state_dict() of the model alone"


def _unreadable(path: Path) -> str:
    kind = kind_of_file(path)
    return f"it is {kind}" if kind not in (None, PICKLED, ZIP) else "it cannot be unpickled"


def _read_safetensors(path: Path) -> object:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise UsageError("reading .safetensors needs the package safetensors") from error
    try:
        return load_file(path)
    except Exception as error:  # Damaged files raise errors of safetensors and of PyTorch.
        raise UsageError(f"is damaged or no safetensors file ({_one_line(error)})") from error


def _unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    state: Mapping[str, Any] = checkpoint
    for _ in _WRAPPERS:  # A mapping may hold itself, so the number of entries is limited.
        wrapper = next((n for n in _WRAPPERS if _is_filled(state.get(n))), None)
        if wrapper is None:
            break
        state = state[wrapper]
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise _unknown(f"is no state dict: not a tensor: {_first([str(n) for n in others])}")
    cleaned: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == "n_averaged":
            continue
        plain = _without_prefixes(str(name))
        if plain in cleaned:
            raise UsageError(f"has {printable(plain)} twice, under different prefixes")
        cleaned[plain] = value
    return cleaned


def _is_filled(entry: object) -> bool:
    return isinstance(entry, Mapping) and len(entry) > 0


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
    shown = ", ".join(printable(name) for name in names[:_NAMES_IN_MESSAGE])
    more = len(names) - _NAMES_IN_MESSAGE
    return f"{shown} and {more} more" if more > 0 else shown


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
