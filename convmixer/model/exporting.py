"""Writing a model for other programs: safetensors, `torch.export` and ONNX."""

from __future__ import annotations

import importlib
import io
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from convmixer.errors import UsageError
from convmixer.files import replacing
from convmixer.model.network import ConvMixer
from convmixer_kernels.exporting import decompose

LARGEST_DIFFERENCE = 1e-3
"""An exported program may differ from its model by this much, relative to the largest output."""


def _import(name: str, suffix: str) -> None:
    try:
        importlib.import_module(name)
    except ImportError:
        raise UsageError(f"a {suffix} file needs the package {name}, which is missing") from None


def _safetensors(model: ConvMixer, _: Tensor, metadata: Mapping[str, str]) -> bytes:
    _import("safetensors", ".safetensors")
    from safetensors.torch import save

    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return save(weights, {"format": "pt", **metadata})


def _program(model: ConvMixer, images: Tensor) -> ExportedProgram:
    """Return the model as operators of PyTorch, for any number of images."""
    with torch.no_grad(), warnings.catch_warnings():
        # PyTorch warns of names in its own code.
        warnings.simplefilter("ignore", FutureWarning)
        shapes = ({0: Dim("batch", min=1)},)
        program = decompose(torch.export.export(model, (images,), dynamic_shapes=shapes))
        expected, output = model(images), program.module()(images)
    if (output - expected).abs().max() > LARGEST_DIFFERENCE * expected.abs().max():
        raise UsageError("the exported program computes something else than the model")
    return program


def _pt2(model: ConvMixer, images: Tensor, metadata: Mapping[str, str]) -> bytes:
    file = io.BytesIO()
    torch.export.save(_program(model, images), file, extra_files=dict(metadata))
    return file.getvalue()


def _onnx(model: ConvMixer, images: Tensor, metadata: Mapping[str, str]) -> bytes:
    for name in ("onnx", "onnxscript"):
        _import(name, ".onnx")
    # The exporter reports its steps on standard output and in the log.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = _program(model, images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        exported = torch.onnx.export(
            program, input_names=["images"], output_names=["logits"], verbose=False
        )
    assert exported is not None
    proto = exported.model_proto
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    return proto.SerializeToString()


FORMATS: dict[str, Callable[[ConvMixer, Tensor, Mapping[str, str]], bytes]] = {
    ".safetensors": _safetensors,
    ".pt2": _pt2,
    ".onnx": _onnx,
}
"""The functions that return the contents of a file, by its suffix."""


def export_model(
    model: ConvMixer, path: Path, images: Tensor, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a model to a file for other programs.

    ``.safetensors`` holds the weights under timm's names. ``.pt2`` (`torch.export`) and ``.onnx``
    hold the whole model for any number of images, of PyTorch's and ONNX's own operators: they run
    without this package, and not on its kernels.

    Args:
        model: a model on the CPU; it is put into evaluation mode.
        path: the file; its suffix chooses the format.
        images: two images or more (N, C, H, W) of the size that the program takes.
        metadata: texts to store in the file.

    Raises:
        UsageError: the suffix is unknown, a package is missing, or the file exists.
        FileNotFoundError: the folder does not exist.
    """
    path = path.expanduser()
    if path.suffix not in FORMATS:
        known = ", ".join(FORMATS)
        raise UsageError(f"{path}: expected a name that ends in one of {known}")
    if path.exists():
        raise UsageError(f"{path} exists already: name another file with --out")
    contents = FORMATS[path.suffix](model.eval(), images, metadata or {})
    with replacing(path) as file:
        file.write(contents)
