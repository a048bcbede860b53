"""Every ConvMixer row of tables 1 to 8 of the paper, as printed there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any


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
    """A row of a table.

    Attributes:
        table: number of the table.
        top1: top-1 accuracy in percent, on ImageNet-1k for 1000 classes and on CIFAR-10 for 10.
        recipe: ``"common_sense"`` (the authors' first hyperparameters), ``"a1_like"`` (starred rows
            of table 2, and appendix B) or ``"cifar10"`` (appendix C).
        note: what was changed in the recipe.
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
    """All rows, in the order of the tables."""
    for table, rows in ((1, _TABLE_1), (2, _TABLE_2)):
        for dim, depth, patch, kernel, parameters, speed, act, epochs, top1, recipe in rows:
            yield (
                Architecture(dim, depth, kernel, patch, activation=act),
                PublishedResult(table, top1, recipe, "", parameters, speed, "RTX 8000", epochs),
            )
    for patch, speed, top1 in _TABLE_3:
        yield (
            Architecture(512, 12, 9, patch),
            PublishedResult(3, top1, "a1_like", images_per_second=speed, gpu="V100"),
        )
    for stem, top1 in _TABLE_4:
        yield Architecture(512, 12, 9, 12, stem=stem), PublishedResult(4, top1, "a1_like")
    for depth, kernel, stacked, parameters, speed, top1 in _TABLE_5:
        yield (
            Architecture(512, depth, kernel, 7, stacked=stacked),
            PublishedResult(5, top1, "a1_like", "", parameters, speed, "V100"),
        )
    for change, note, top1 in _TABLE_6:
        yield (
            replace(Architecture(512, 12, 9, 7), **change),
            PublishedResult(6, top1, "a1_like", note),
        )
    for change, note, top1 in _TABLE_7:
        yield (
            replace(Architecture(256, 8, 9, 1, n_classes=10), **change),
            PublishedResult(7, top1, "cifar10", note, epochs=200),
        )
    for dim, depth, patch, kernel, parameters, weight_decay, top1 in _TABLE_8:
        yield (
            Architecture(dim, depth, kernel, patch, n_classes=10),
            PublishedResult(
                8, top1, "cifar10", f"weight decay {weight_decay:g}", parameters, epochs=200
            ),
        )


# Dim, depth, patch size, kernel size, parameters, images/s, activation, epochs, top-1, recipe.
_TABLE_1 = (
    (1536, 20, 7, 9, "51.6M", 134, "gelu", 150, 81.37, "common_sense"),
    (768, 32, 7, 7, "21.1M", 206, "relu", 300, 80.16, "common_sense"),
    (1536, 20, 14, 9, "52.3M", 538, "gelu", 150, 78.92, "common_sense"),
)
_TABLE_2 = (
    (1536, 20, 7, 9, "51.6M", 134, "gelu", 150, 82.20, "a1_like"),
    (1536, 20, 7, 9, "51.6M", 134, "gelu", 150, 81.37, "common_sense"),
    (1536, 20, 7, 3, "49.4M", 246, "gelu", 150, 81.60, "a1_like"),
    (1536, 20, 7, 3, "49.4M", 246, "gelu", 150, 80.43, "common_sense"),
    (1536, 20, 14, 9, "52.3M", 538, "gelu", 150, 78.92, "common_sense"),
    (1536, 24, 14, 9, "62.3M", 447, "gelu", 150, 80.21, "a1_like"),
    (768, 32, 7, 7, "21.1M", 206, "gelu", 150, 80.74, "a1_like"),
    (768, 32, 7, 7, "21.1M", 206, "relu", 300, 80.16, "common_sense"),
    (1024, 16, 7, 9, "19.4M", 244, "gelu", 100, 79.45, "common_sense"),
    (1024, 12, 7, 8, "14.6M", 358, "gelu", 90, 77.75, "common_sense"),
    (512, 16, 7, 8, "5.4M", 599, "gelu", 90, 73.76, "common_sense"),
    (512, 12, 7, 8, "4.2M", 798, "gelu", 90, 72.59, "common_sense"),
    (768, 32, 14, 3, "20.2M", 1235, "relu", 300, 74.93, "common_sense"),
    (1024, 20, 14, 9, "24.4M", 750, "gelu", 150, 76.94, "common_sense"),
)
# ConvMixer-512/12 with kernel size 9: patch size, images/s, top-1.
_TABLE_3 = (
    (5, 388, 75.60),
    (7, 644, 74.60),
    (9, 1120, 73.55),
    (12, 1908, 71.79),
    (16, 2892, 69.65),
)
# ConvMixer-512/12 with kernel size 9 and patch size 12: stem, top-1.
_TABLE_4 = (("resnet", 71.24), ("patch", 71.79))
# Dim 512, patch size 7: depth, kernel size, stacked convolutions, parameters, images/s, top-1.
_TABLE_5 = (
    (12, 7, 1, "4.07M", 724, 74.54),
    (12, 15, 1, "5.15M", 401, 75.25),
    (12, 9, 1, "4.27M", 644, 74.60),
    (12, 3, 1, "3.83M", 992, 72.96),
    (14, 3, 1, "4.37M", 856, 74.03),
    (12, 3, 3, "3.95M", 732, 74.53),
    (36, 3, 1, "10.3M", 338, 77.67),
)
# Change of the architecture, change of the recipe, top-1.
_Change = tuple[dict[str, Any], str, float]
_TABLE_6: tuple[_Change, ...] = (
    ({}, "", 74.60),
    ({"norm": "layer"}, "", 74.51),
    ({"activation": "relu"}, "", 74.44),
    ({}, "without mixup and CutMix", 75.65),
    ({}, "without RandAugment", 75.26),
)
_TABLE_7: tuple[_Change, ...] = (
    ({}, "", 95.88),
    ({"residual": "none"}, "", 95.57),
    ({"residual": "both"}, "", 94.78),
    ({"norm": "layer"}, "", 94.44),
    ({"activation": "relu"}, "", 95.51),
    ({}, "without mixup and CutMix", 95.92),
    ({}, "without random erasing", 95.24),
    ({}, "without RandAugment", 92.86),
    ({}, "without random scaling", 86.24),
    ({}, "without clipping of the gradient norm", 86.33),
)
# Dim, depth, patch size, kernel size, parameters, weight decay, top-1.
_TABLE_8 = (
    (128, 4, 1, 8, "103K", 0.0, 91.26),
    (128, 8, 1, 8, "205K", 0.0, 93.83),
    (128, 12, 1, 8, "306K", 0.0, 94.83),
    (256, 4, 1, 8, "338K", 0.0, 93.37),
    (256, 8, 1, 8, "672K", 0.0, 95.60),
    (256, 12, 1, 8, "1006K", 0.0, 96.39),
    (256, 16, 1, 8, "1339K", 0.0, 96.74),
    (256, 20, 1, 8, "1673K", 0.0, 96.67),
    (256, 8, 1, 3, "559K", 0.0, 93.61),
    (256, 8, 1, 5, "592K", 0.0, 95.19),
    (256, 8, 1, 7, "641K", 0.0, 95.80),
    (256, 8, 1, 9, "707K", 0.0, 95.88),
    (256, 8, 1, 11, "788K", 0.0, 95.70),
    (256, 8, 1, 13, "887K", 0.0, 96.04),
    (256, 8, 1, 15, "1001K", 0.0, 96.08),
    (256, 8, 2, 9, "709K", 0.0, 95.00),
    (256, 8, 4, 9, "718K", 0.0, 92.61),
    (256, 8, 8, 9, "755K", 0.0, 85.57),
    (256, 8, 1, 9, "707K", 1e-1, 95.88),
    (256, 8, 1, 9, "707K", 1e-2, 96.03),
    (256, 8, 1, 9, "707K", 1e-3, 95.76),
    (256, 8, 1, 9, "707K", 1e-4, 95.63),
    (256, 8, 1, 9, "707K", 1e-5, 95.88),
    (256, 8, 2, 3, "561K", 0.0, 94.08),
    (256, 8, 2, 5, "594K", 0.0, 95.21),
    (256, 8, 2, 7, "643K", 0.0, 95.35),
    (256, 8, 2, 9, "709K", 0.0, 95.00),
    (256, 8, 2, 11, "791K", 0.0, 95.14),
    (256, 8, 2, 3, "561K", 1e-2, 94.69),
    (256, 8, 2, 5, "594K", 1e-2, 95.26),
    (256, 8, 2, 7, "643K", 1e-2, 95.25),
    (256, 8, 2, 9, "709K", 1e-2, 95.06),
    (256, 8, 2, 11, "791K", 1e-2, 95.17),
)
