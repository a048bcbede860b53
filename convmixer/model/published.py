"""Every ConvMixer row of tables 1 to 8 of the paper, as printed there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Architecture:
    """The arguments of `ConvMixer` that the tables vary."""

    dim: int
    depth: int
    kernel_size: int
    patch_size: int
    n_classes: int = 1000
    activation: str = "gelu"
    norm: str = "batch"
    residual: str = "depthwise"
    stem: str = "patch"
    stacked: int = 1


@dataclass(frozen=True)
class PublishedResult:
    """A row of a table of the paper.

    Attributes:
        table: number of the table.
        top1: top-1 accuracy in percent, on ImageNet-1k for 1000 classes and on CIFAR-10 for 10.
        recipe: ``"common_sense"`` (the authors' first hyperparameters), ``"a1_like"`` (starred rows
            of table 2, and appendix B) or ``"cifar10"`` (appendix C).
        note: the change of the recipe in words, empty for none.
        parameters: as printed, M for millions and K for thousands.
        images_per_second: inference throughput on `gpu`, batches of 64 images in half precision.
        gpu: RTX 8000 in tables 1 and 2, V100 in tables 3 and 5.
        epochs: of training, where the table or its text gives them.
    """

    table: int
    top1: float
    recipe: str
    note: str = ""
    parameters: str | None = None
    images_per_second: int | None = None
    gpu: str | None = None
    epochs: int | None = None


def published_rows() -> Iterator[tuple[Architecture, PublishedResult]]:
    """Yield the rows in the order of the tables, each with its architecture."""
    for table, models in ((1, _TABLE_1), (2, _TABLE_2)):
        for model in models:
            yield (
                Architecture(
                    model.dim,
                    model.depth,
                    model.kernel_size,
                    model.patch_size,
                    activation=model.activation,
                ),
                PublishedResult(
                    table,
                    model.top1,
                    model.recipe,
                    parameters=model.parameters,
                    images_per_second=model.images_per_second,
                    gpu="RTX 8000",
                    epochs=model.epochs,
                ),
            )
    for patch in _TABLE_3:
        yield (
            Architecture(512, 12, 9, patch.patch_size),
            PublishedResult(
                3, patch.top1, "a1_like", images_per_second=patch.images_per_second, gpu="V100"
            ),
        )
    for stem in _TABLE_4:
        yield Architecture(512, 12, 9, 12, stem=stem.stem), PublishedResult(4, stem.top1, "a1_like")
    for kernel in _TABLE_5:
        yield (
            Architecture(512, kernel.depth, kernel.kernel_size, 7, stacked=kernel.stacked),
            PublishedResult(
                5,
                kernel.top1,
                "a1_like",
                parameters=kernel.parameters,
                images_per_second=kernel.images_per_second,
                gpu="V100",
            ),
        )
    for change in _TABLE_6:
        yield (
            replace(Architecture(512, 12, 9, 7), **change.architecture),
            PublishedResult(6, change.top1, "a1_like", change.recipe),
        )
    for change in _TABLE_7:
        yield (
            replace(Architecture(256, 8, 9, 1, n_classes=10), **change.architecture),
            PublishedResult(7, change.top1, "cifar10", change.recipe, epochs=200),
        )
    for small in _TABLE_8:
        yield (
            Architecture(small.dim, small.depth, small.kernel_size, small.patch_size, n_classes=10),
            PublishedResult(
                8,
                small.top1,
                "cifar10",
                f"weight decay {small.weight_decay:g}",
                small.parameters,
                epochs=200,
            ),
        )


class _Model(NamedTuple):
    """A row of table 1 or 2."""

    dim: int
    depth: int
    patch_size: int
    kernel_size: int
    parameters: str
    images_per_second: int
    activation: str
    epochs: int
    top1: float
    recipe: str


class _PatchSize(NamedTuple):
    """A row of table 3: ConvMixer-512/12 with kernel size 9."""

    patch_size: int
    images_per_second: int
    top1: float


class _Stem(NamedTuple):
    """A row of table 4: ConvMixer-512/12 with kernel size 9 and patch size 12."""

    stem: str
    top1: float


class _KernelSize(NamedTuple):
    """A row of table 5: width 512 and patch size 7."""

    depth: int
    kernel_size: int
    stacked: int
    parameters: str
    images_per_second: int
    top1: float


class _Change(NamedTuple):
    """A row of table 6 or 7: its changes of the architecture and of the recipe."""

    architecture: dict[str, Any]
    recipe: str
    top1: float


class _Cifar10(NamedTuple):
    """A row of table 8."""

    dim: int
    depth: int
    patch_size: int
    kernel_size: int
    parameters: str
    weight_decay: float
    top1: float


_TABLE_1 = (
    _Model(1536, 20, 7, 9, "51.6M", 134, "gelu", 150, 81.37, "common_sense"),
    _Model(768, 32, 7, 7, "21.1M", 206, "relu", 300, 80.16, "common_sense"),
    _Model(1536, 20, 14, 9, "52.3M", 538, "gelu", 150, 78.92, "common_sense"),
)
_TABLE_2 = (
    _Model(1536, 20, 7, 9, "51.6M", 134, "gelu", 150, 82.20, "a1_like"),
    _Model(1536, 20, 7, 9, "51.6M", 134, "gelu", 150, 81.37, "common_sense"),
    _Model(1536, 20, 7, 3, "49.4M", 246, "gelu", 150, 81.60, "a1_like"),
    _Model(1536, 20, 7, 3, "49.4M", 246, "gelu", 150, 80.43, "common_sense"),
    _Model(1536, 20, 14, 9, "52.3M", 538, "gelu", 150, 78.92, "common_sense"),
    _Model(1536, 24, 14, 9, "62.3M", 447, "gelu", 150, 80.21, "a1_like"),
    _Model(768, 32, 7, 7, "21.1M", 206, "gelu", 150, 80.74, "a1_like"),
    _Model(768, 32, 7, 7, "21.1M", 206, "relu", 300, 80.16, "common_sense"),
    _Model(1024, 16, 7, 9, "19.4M", 244, "gelu", 100, 79.45, "common_sense"),
    _Model(1024, 12, 7, 8, "14.6M", 358, "gelu", 90, 77.75, "common_sense"),
    _Model(512, 16, 7, 8, "5.4M", 599, "gelu", 90, 73.76, "common_sense"),
    _Model(512, 12, 7, 8, "4.2M", 798, "gelu", 90, 72.59, "common_sense"),
    _Model(768, 32, 14, 3, "20.2M", 1235, "relu", 300, 74.93, "common_sense"),
    _Model(1024, 20, 14, 9, "24.4M", 750, "gelu", 150, 76.94, "common_sense"),
)
_TABLE_3 = (
    _PatchSize(5, 388, 75.60),
    _PatchSize(7, 644, 74.60),
    _PatchSize(9, 1120, 73.55),
    _PatchSize(12, 1908, 71.79),
    _PatchSize(16, 2892, 69.65),
)
_TABLE_4 = (_Stem("resnet", 71.24), _Stem("patch", 71.79))
_TABLE_5 = (
    _KernelSize(12, 7, 1, "4.07M", 724, 74.54),
    _KernelSize(12, 15, 1, "5.15M", 401, 75.25),
    _KernelSize(12, 9, 1, "4.27M", 644, 74.60),
    _KernelSize(12, 3, 1, "3.83M", 992, 72.96),
    _KernelSize(14, 3, 1, "4.37M", 856, 74.03),
    _KernelSize(12, 3, 3, "3.95M", 732, 74.53),
    _KernelSize(36, 3, 1, "10.3M", 338, 77.67),
)
_TABLE_6 = (
    _Change({}, "", 74.60),
    _Change({"norm": "layer"}, "", 74.51),
    _Change({"activation": "relu"}, "", 74.44),
    _Change({}, "without mixup and CutMix", 75.65),
    _Change({}, "without RandAugment", 75.26),
)
_TABLE_7 = (
    _Change({}, "", 95.88),
    _Change({"residual": "none"}, "", 95.57),
    _Change({"residual": "both"}, "", 94.78),
    _Change({"norm": "layer"}, "", 94.44),
    _Change({"activation": "relu"}, "", 95.51),
    _Change({}, "without mixup and CutMix", 95.92),
    _Change({}, "without random erasing", 95.24),
    _Change({}, "without RandAugment", 92.86),
    _Change({}, "without random scaling", 86.24),
    _Change({}, "without clipping of the gradient norm", 86.33),
)
_TABLE_8 = (
    _Cifar10(128, 4, 1, 8, "103K", 0.0, 91.26),
    _Cifar10(128, 8, 1, 8, "205K", 0.0, 93.83),
    _Cifar10(128, 12, 1, 8, "306K", 0.0, 94.83),
    _Cifar10(256, 4, 1, 8, "338K", 0.0, 93.37),
    _Cifar10(256, 8, 1, 8, "672K", 0.0, 95.60),
    _Cifar10(256, 12, 1, 8, "1006K", 0.0, 96.39),
    _Cifar10(256, 16, 1, 8, "1339K", 0.0, 96.74),
    _Cifar10(256, 20, 1, 8, "1673K", 0.0, 96.67),
    _Cifar10(256, 8, 1, 3, "559K", 0.0, 93.61),
    _Cifar10(256, 8, 1, 5, "592K", 0.0, 95.19),
    _Cifar10(256, 8, 1, 7, "641K", 0.0, 95.80),
    _Cifar10(256, 8, 1, 9, "707K", 0.0, 95.88),
    _Cifar10(256, 8, 1, 11, "788K", 0.0, 95.70),
    _Cifar10(256, 8, 1, 13, "887K", 0.0, 96.04),
    _Cifar10(256, 8, 1, 15, "1001K", 0.0, 96.08),
    _Cifar10(256, 8, 2, 9, "709K", 0.0, 95.00),
    _Cifar10(256, 8, 4, 9, "718K", 0.0, 92.61),
    _Cifar10(256, 8, 8, 9, "755K", 0.0, 85.57),
    _Cifar10(256, 8, 1, 9, "707K", 1e-1, 95.88),
    _Cifar10(256, 8, 1, 9, "707K", 1e-2, 96.03),
    _Cifar10(256, 8, 1, 9, "707K", 1e-3, 95.76),
    _Cifar10(256, 8, 1, 9, "707K", 1e-4, 95.63),
    _Cifar10(256, 8, 1, 9, "707K", 1e-5, 95.88),
    _Cifar10(256, 8, 2, 3, "561K", 0.0, 94.08),
    _Cifar10(256, 8, 2, 5, "594K", 0.0, 95.21),
    _Cifar10(256, 8, 2, 7, "643K", 0.0, 95.35),
    _Cifar10(256, 8, 2, 9, "709K", 0.0, 95.00),
    _Cifar10(256, 8, 2, 11, "791K", 0.0, 95.14),
    _Cifar10(256, 8, 2, 3, "561K", 1e-2, 94.69),
    _Cifar10(256, 8, 2, 5, "594K", 1e-2, 95.26),
    _Cifar10(256, 8, 2, 7, "643K", 1e-2, 95.25),
    _Cifar10(256, 8, 2, 9, "709K", 1e-2, 95.06),
    _Cifar10(256, 8, 2, 11, "791K", 1e-2, 95.17),
)

PEERS = (
    ("ResNet-152*", 60.2, 81.15),
    ("ResNet-152", 60.2, 79.64),
    ("ResNet-101", 44.6, 78.33),
    ("ResNet-50", 25.6, 76.32),
    ("DeiT-B", 86.0, 81.8),
    ("DeiT-S", 22.0, 79.8),
    ("DeiT-Ti", 5.7, 72.2),
    ("ResMLP-S12/8", 22.1, 79.1),
    ("ResMLP-B24/8", 129.0, 81.0),
    ("ResMLP-B24", 116.0, 81.0),
    ("Swin-S", 50.0, 83.0),
    ("Swin-T", 29.0, 81.3),
    ("ViT-B/16", 86.0, 77.9),
    ("Mixer-B/16", 59.0, 76.44),
    ("MobileNetV3/8", 20.0, 80.6),
    ("MobileNetV3/16", 20.0, 77.6),
)
"""The other networks of table 2: name, millions of parameters, ImageNet top-1 in percent."""
