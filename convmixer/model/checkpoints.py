"""Reading checkpoints of every public implementation of ConvMixer, and writing checkpoints."""

from __future__ import annotations

import argparse
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from convmixer.errors import UsageError
from convmixer.files import PICKLED, ZIP, kind_of_file, replacing
from convmixer.terminal import few, printable

ACCEPTED_FORMATS = (
    "a state dict of this package or timm (stem.*, blocks.*, head.*), of the paper's nn.Sequential "
    "(0.*, 2.*, 3.0.fn.0.*, ...), of its tweet-sized version (0.0.*, 1.0.0.0.*, ...) or of "
    "mmpretrain (backbone.stem.*, backbone.stages.*, head.fc.*), alone or as an entry such as "
    "state_dict_ema, model_ema, state_dict, model or net of a checkpoint"
)

_WRAPPERS = (
    "state_dict_ema", "model_ema", "params_ema", "ema_state_dict", "ema",
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "params", "module",
)  # fmt: skip
"""The entries of a checkpoint that may hold its weights, in order of preference.

Averaged weights come first: authors evaluate them where a checkpoint has both.
"""
_PREFIX = re.compile(r"^(module|model|net|network)\.|_orig_mod\.")
"""Prefixes by DataParallel, DistributedDataParallel, AveragedModel, torch.compile, Lightning."""
_COUNTER = "num_batches_tracked"
"""BatchNorm's count of batches, the one buffer that is no floating-point number."""
_SAFETENSORS_LENGTH = 8
"""A safetensors file begins with a length of this many bytes; a JSON object follows."""
_FOLDER = 0x10
"""The attribute of a folder in a zip archive."""
_HEAD = ("head.weight", "head.bias")
_STEM = "stem.0.weight"

_Rule = tuple[str, Callable[[re.Match[str]], str]]
"""A pattern of names, and the function that returns the name in `ConvMixer` for a match."""
_TIMM: tuple[_Rule, ...] = ()
# The model of figure 3 has the stem's convolution and norm at 0 and 2, block i at 3 + i and the
# head at 5 + depth.
_SEQUENTIAL: tuple[_Rule, ...] = (
    (r"[02]\.\w+", lambda match: f"stem.{match[0]}"),
    (r"(\d+)\.((0\.fn|\d)\..+)", lambda match: f"blocks.{int(match[1]) - 3}.{match[2]}"),
    (r"\d+\.(\w+)", lambda match: f"head.{match[1]}"),
)
# The model of figure 8 has the stem at 0, block i at 1 + i with its parts in 0.0 and 1, and the
# head at 3 + depth.
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


class _Format(NamedTuple):
    """The names of weights in one implementation."""

    telling: set[str]
    """Two names that no other format has together."""
    rules: tuple[_Rule, ...]
    """Renames the weights for `ConvMixer`; a name that matches no pattern stays."""


_FORMATS = (
    _Format({"stem.0.weight", "blocks.0.1.weight"}, _TIMM),
    _Format({"0.weight", "3.0.fn.0.weight"}, _SEQUENTIAL),
    _Format({"0.0.weight", "1.0.0.0.weight"}, _TWEET),
    _Format({"backbone.stem.0.weight", "backbone.stages.0.1.weight"}, _MMPRETRAIN),
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
            whatever its suffix. `ACCEPTED_FORMATS` lists the contents it may have.
        other_classes: for fine-tuning; the model keeps its own head if the head in the file has
            another number of classes.
        other_channels: for fine-tuning; filters of the stem for another number of channels are
            adapted as in timm. For one channel they are summed over their channels; for more they
            are repeated channel by channel and divided by the number of repetitions.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: the file is damaged, holds something else or numbers that are not finite, or
            does not fit the model.
    """
    state_dict = read_weights(path)
    present = model.state_dict()
    # AveragedModel adds a counter, n_averaged.
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
    """Return the state dict in a file, under the names of `ConvMixer`.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: the file is damaged, or holds something else or numbers that are not finite.
    """
    try:
        return convert_state_dict(read_file(Path(path)))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _misfits(state_dict: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> list[str]:
    """Return the reasons for which `state_dict` does not fit `target`, each with a few names."""
    shapes = [
        f"{name} is {tuple(tensor.shape)} in the file and {tuple(target[name].shape)} in the model"
        for name, tensor in state_dict.items()
        if name in target and tensor.shape != target[name].shape
    ]
    # PyTorch fills in this counter if an older checkpoint lacks it.
    missing = [name for name in target if name not in state_dict and not name.endswith(_COUNTER)]
    unexpected = [name for name in state_dict if name not in target]
    return [
        f"{title}: {few(names)}"
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
    """Replace a head for another number of classes by that of `target`."""

    def shapes(tensors: Mapping[str, Tensor]) -> list[torch.Size | None]:
        return [tensors[name].shape if name in tensors else None for name in _HEAD]

    if shapes(state_dict) == shapes(target):
        return dict(state_dict)
    body = {name: tensor for name, tensor in state_dict.items() if name not in _HEAD}
    return body | {name: target[name] for name in _HEAD if name in target}


def _with_fitting_stem(
    state_dict: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Adapt the filters of the stem to the channels of `target`; see `load_checkpoint`."""
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
    """Return the state dict in `checkpoint` under the names of `ConvMixer`.

    Args:
        checkpoint: see `ACCEPTED_FORMATS`. Averaged weights are preferred to others in the same
            checkpoint, and prefixes such as ``module.``, ``model.`` and ``_orig_mod.`` are dropped.

    Raises:
        UsageError: the names belong to no known implementation, or a tensor does not hold finite
            floating-point numbers in plain memory.
    """
    state_dict = _unwrap(checkpoint)
    for known in _FORMATS:
        if known.telling <= state_dict.keys():
            renamed = {_rename(name, known.rules): tensor for name, tensor in state_dict.items()}
            if len(renamed) < len(state_dict):
                raise UsageError("has several layers where ConvMixer has one head")
            _check_weights(renamed)
            return renamed
    found = few(list(state_dict)) if state_dict else "nothing"
    raise _unknown(f"the names of the weights are of no known format (found {found})")


def _unknown(text: str) -> UsageError:
    """Return the error of a file that holds no weights of a known format."""
    return UsageError(f"{text}; accepted is {ACCEPTED_FORMATS}")


def _check_weights(state_dict: Mapping[str, Tensor]) -> None:
    """Check that a model could take every tensor; see `convert_state_dict`."""
    refused: dict[str, list[str]] = {}
    for name, tensor in state_dict.items():
        if reason := _refusal(tensor, counter=name.endswith(_COUNTER)):
            refused.setdefault(reason, []).append(name)
    if refused:
        raise UsageError("; ".join(f"{text}: {few(names)}" for text, names in refused.items()))


def _refusal(tensor: Tensor, counter: bool) -> str | None:
    """Return the reason for which a tensor is no weight, or no counter of batches; None if fit."""
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
    """Write `state` with `torch.save`, replacing `path` in one step.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    with replacing(Path(path).expanduser()) as file:
        torch.save(dict(state), file)


def read_file(path: Path) -> Mapping[str, Any]:
    """Return the contents of a checkpoint file, without running any code in it.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: the file is damaged or holds no mapping; the message does not name it.
    """
    path = path.expanduser()
    if path.is_dir():
        best = path / "best.pt"
        raise UsageError(f"is a folder; did you mean {best}?" if best.is_file() else "is a folder")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a checkpoint")
    read = _read_safetensors if _is_safetensors(path) else _read_pickled
    with warnings.catch_warnings():
        # PyTorch warns of old formats, and of damage for which it then raises an error.
        warnings.simplefilter("ignore")
        checkpoint = read(path)
    if not isinstance(checkpoint, Mapping):
        raise _unknown(f"holds a {type(checkpoint).__name__}, no state dict")
    return checkpoint


def _is_safetensors(path: Path) -> bool:
    """Return whether a file is of safetensors, by its beginning or, if damaged, by its suffix."""
    with path.open("rb") as file:
        beginning = file.read(_SAFETENSORS_LENGTH + 1)
    length = int.from_bytes(beginning[:_SAFETENSORS_LENGTH], "little")
    if beginning[_SAFETENSORS_LENGTH:] == b"{" and length < path.stat().st_size:
        return True
    return path.suffix == ".safetensors" and kind_of_file(path) is None


def _read_pickled(path: Path) -> object:
    if kind_of_file(path) == ZIP:
        _check_archive(path)
    # timm's training script stores its arguments as a Namespace, which holds no code.
    with path.open("rb") as file, torch.serialization.safe_globals([argparse.Namespace]):
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # A damaged pickle raises errors of any class.
            # PyTorch's own messages advise to run the code in the file.
            refused = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
            reason = _code_refused(refused[1]) if refused else _unreadable(path)
            raise UsageError(f"is damaged or not made of weights alone ({reason})") from error


def _check_archive(path: Path) -> None:
    """Compare the files in a zip archive with their checksums, which torch.load leaves out.

    Raises:
        UsageError: a file differs from its checksum, or torch.save did not write the archive.
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
                    # torch.load would read nothing here and leave the tensor uninitialised.
                    raise UsageError(f"is damaged ({entry.filename} is a folder)")
                # torch.save writes 0 if it is told to compute no checksums.
                if entry.CRC:
                    with archive.open(entry) as file:
                        while file.read(1 << 20):
                            pass
    except UsageError:
        raise
    except Exception as error:  # A damaged archive raises errors of any class.
        raise UsageError(f"is damaged ({_one_line(error)})") from error


def _code_refused(name: str) -> str:
    """Return the reason for which a file that names a class or function is not read."""
    return f"it holds a {name}, and code is not run: save the state_dict() of the model alone"


def _unreadable(path: Path) -> str:
    """Return the reason for which a file is no pickle."""
    kind = kind_of_file(path)
    return f"it is {kind}" if kind not in (None, PICKLED, ZIP) else "it cannot be unpickled"


def _read_safetensors(path: Path) -> object:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise UsageError("reading .safetensors needs the package safetensors") from error
    try:
        return load_file(path)
    except Exception as error:  # Damaged files raise errors of safetensors or of PyTorch.
        raise UsageError(f"is damaged or no safetensors file ({_one_line(error)})") from error


def _unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights in a checkpoint, without wrapping entries and prefixes of names."""
    state: Mapping[str, Any] = checkpoint
    for _ in _WRAPPERS:  # A mapping may hold itself, so the depth is limited.
        wrapper = next((n for n in _WRAPPERS if _is_filled(state.get(n))), None)
        if wrapper is None:
            break
        state = state[wrapper]
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise _unknown(f"is no state dict: not a tensor: {few([str(n) for n in others])}")
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
    """Return the name in `ConvMixer` for a name in another implementation."""
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, name):
            return replacement(match)
    return name


def _one_line(error: Exception) -> str:
    """Return the class of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
