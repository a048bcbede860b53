"""The models of the paper's tables by name."""

from __future__ import annotations

import fnmatch
import inspect
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, overload

from convmixer.errors import UsageError, closest
from convmixer.model.checkpoints import load_checkpoint
from convmixer.model.features import FeatureExtractor
from convmixer.model.network import ConvMixer
from convmixer.model.pretrained import published_weights
from convmixer.model.published import Architecture, PublishedResult, published_rows


@dataclass(frozen=True)
class Preprocessing:
    """The preparation of images for a model.

    Attributes:
        input_size: height and width in pixels.
        mean, std: per channel, for images in 0..1.
        crop: the central part, along each side, that evaluation keeps of the resized image.
        interpolation: the method of resizing.
    """

    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop: float
    interpolation: str


IMAGENET = Preprocessing(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.96, "bicubic")
CIFAR10 = Preprocessing(32, (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616), 1.0, "bicubic")


@dataclass(frozen=True)
class Variant:
    """A model of the paper.

    Attributes:
        name: the argument of `create_model`.
        architecture: the arguments of `ConvMixer`.
        preprocessing: the preparation of images.
        results: the rows of the paper's tables with this architecture.
        hub_id: repository of timm's published weights on the Hugging Face hub, if there is one.
        hub_top1: ImageNet top-1 of those weights in percent, as published by timm.
    """

    name: str
    architecture: Architecture
    preprocessing: Preprocessing
    results: tuple[PublishedResult, ...]
    hub_id: str | None = None
    hub_top1: float | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for `ConvMixer`."""
        return asdict(self.architecture)

    @property
    def tables(self) -> tuple[int, ...]:
        """Numbers of the tables in which the architecture appears."""
        return tuple(sorted({result.table for result in self.results}))

    @property
    def parameters(self) -> int:
        """Exact number of parameters."""
        a = self.architecture
        return parameter_count(
            a.dim, a.depth, a.kernel_size, a.patch_size, a.n_classes, stacked=a.stacked
        )


def parameter_count(
    dim: int,
    depth: int,
    kernel_size: int,
    patch_size: int,
    n_classes: int,
    in_chans: int = 3,
    *,
    stacked: int = 1,
) -> int:
    """Return the exact number of parameters of `ConvMixer` with these arguments.

    Equation 4, h [d (k^2 + h + 6) + c_in p^2 + n_classes + 3] + n_classes, in which s stacked
    depthwise convolutions turn k^2 + h + 6 into s (k^2 + 1) + h + 5. Activation, norm, residual and
    stem do not change the number: LayerNorm has the parameters of BatchNorm, and the convolution of
    the ResNet-style stem has the size of the patch embedding.
    """
    block = stacked * (kernel_size**2 + 1) + dim + 5
    stem = in_chans * patch_size**2 + 3
    return dim * (depth * block + stem + n_classes) + n_classes


_TIMM = {
    Architecture(1536, 20, 9, 7): ("convmixer_1536_20", 81.382),
    Architecture(768, 32, 7, 7, activation="relu"): ("convmixer_768_32", 80.158),
    Architecture(1024, 20, 9, 14): ("convmixer_1024_20_ks9_p14", 76.944),
}
"""timm's names of models, with the top-1 that timm publishes; its 768/32 is the ReLU model."""


def _descriptive_name(architecture: Architecture) -> str:
    a = architecture
    parts = [f"convmixer_{a.dim}_{a.depth}_ks{a.kernel_size}_p{a.patch_size}"]
    parts += ["relu"] if a.activation == "relu" else []
    parts += ["layer_norm"] if a.norm == "layer" else []
    parts += [f"residual_{a.residual}"] if a.residual != "depthwise" else []
    parts += ["resnet_stem"] if a.stem == "resnet" else []
    parts += [f"stacked{a.stacked}"] if a.stacked > 1 else []
    parts += ["cifar10"] if a.n_classes == 10 else []
    return "_".join(parts)


def _collect() -> dict[str, Variant]:
    results: dict[Architecture, list[PublishedResult]] = {}
    for architecture, result in published_rows():
        results.setdefault(architecture, []).append(result)
    variants = {}
    for architecture, rows in results.items():
        name, top1 = _TIMM.get(architecture, (_descriptive_name(architecture), None))
        preprocessing = CIFAR10 if architecture.n_classes == 10 else IMAGENET
        hub_id = f"timm/{name}.in1k" if architecture in _TIMM else None
        variants[name] = Variant(name, architecture, preprocessing, tuple(rows), hub_id, top1)
    return variants


_VARIANTS = _collect()


def list_variants(pattern: str = "*", *, table: int | None = None) -> list[str]:
    """Return the names of the variants, in the order of the tables.

    Args:
        pattern: matches the names; `*` and `?` have their meaning in file names.
        table: the number of a table, 1 to 8, to which the list is limited.
    """
    return [
        variant.name
        for variant in _VARIANTS.values()
        if fnmatch.fnmatchcase(variant.name, pattern) and (table is None or table in variant.tables)
    ]


def get_variant(name: str) -> Variant:
    """Return the variant called `name`.

    Names are ``convmixer_{dim}_{depth}_ks{kernel size}_p{patch size}``, then the differences from
    the plain model, then ``cifar10`` for 10 classes. The three models of timm have timm's names.

    Raises:
        UsageError: no variant has that name; the message names the closest.
    """
    if name not in _VARIANTS:
        hint = closest(name, _VARIANTS) or "; list_variants() lists them all"
        raise UsageError(f"name: unknown variant {name!r}{hint}")
    return _VARIANTS[name]


@overload
def create_model(
    name: str,
    pretrained: str | os.PathLike[str] | bool | None = ...,
    *,
    features_only: Literal[False] = ...,
    **overrides: Any,
) -> ConvMixer: ...


@overload
def create_model(
    name: str,
    pretrained: str | os.PathLike[str] | bool | None = ...,
    *,
    features_only: Literal[True],
    out_indices: int | Sequence[int] = ...,
    **overrides: Any,
) -> FeatureExtractor: ...


def create_model(
    name: str,
    pretrained: str | os.PathLike[str] | bool | None = None,
    *,
    features_only: bool = False,
    out_indices: int | Sequence[int] = 3,
    **overrides: Any,
) -> ConvMixer | FeatureExtractor:
    """Build a variant.

    Args:
        name: one of `list_variants()`.
        pretrained: path of a checkpoint, see `load_checkpoint`; True for timm's published weights,
            fetched from the Hugging Face hub; None or False for random initial values. The
            checkpoint must fit the model. For fine-tuning, an `n_classes` in
            `overrides` allows a head for another number of classes, which is then new, and
            `in_chans` a stem for another number of channels, which `load_checkpoint` adapts.
        features_only: return a `FeatureExtractor`, which computes the feature maps of some blocks.
        out_indices: for `features_only`, the last so many blocks, or indices of blocks.
        overrides: arguments of `ConvMixer` that replace those of the variant.

    Raises:
        UsageError: the variant or an override is unknown, the checkpoint does not fit, or weights
            cannot be fetched.
        ValueError: an override is out of range.
        FileNotFoundError: there is no checkpoint at `pretrained`.
    """
    variant = get_variant(name)
    accepted = list(inspect.signature(ConvMixer).parameters)
    for override in overrides:
        if override not in accepted:
            raise UsageError(
                f"{override}: no argument of ConvMixer{closest(override, accepted)}; "
                f"accepted are {', '.join(accepted)}"
            )
    if isinstance(pretrained, bool) and pretrained:
        pretrained = published_weights(name, variant.hub_id)
    model = ConvMixer(**{**variant.arguments, **overrides})
    if pretrained is not None and pretrained is not False:
        load_checkpoint(
            model,
            pretrained,
            other_classes=features_only or "n_classes" in overrides,
            other_channels="in_chans" in overrides,
        )
    return FeatureExtractor(model, out_indices) if features_only else model
