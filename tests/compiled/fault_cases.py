"""The cases of which one must notice a fault, of each family of CUDA kernels."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from .steps import Case


def _cases(first: Case, *changes: dict[str, Any]) -> tuple[Case, ...]:
    return first, *(dataclasses.replace(first, **each) for each in changes)


# Other filters and GPUs, alignments, several images in an item, several items of a warp. Planes
# wider than 56 are those that take several windows; low ones have several images in an item, with
# copies of every width.
_WHOLE: tuple[dict[str, Any], ...] = (
    {"shape": (40, 5, 16, 16), "multiprocessors": 7},
    {"shape": (35, 2, 16, 16), "kernel_size": 8},
    {"shape": (6, 3, 16, 16), "layout": "slice_of_channels", "multiprocessors": 7},
)
_PLANES: tuple[dict[str, Any], ...] = (
    {"shape": (3, 5, 50, 100), "multiprocessors": 7},
    {"shape": (40, 2, 9, 56), "kernel_size": 8},
    {"shape": (2, 5, 37, 57), "layout": "off_by_one_element"},
    {"shape": (1, 5, 40, 96), "layout": "slice_of_channels", "multiprocessors": 7},
    {"shape": (1, 2, 30, 59)},
    {"shape": (5, 2, 7, 60)},
    {"shape": (5, 2, 7, 58)},
    {"shape": (5, 2, 7, 60), "layout": "off_by_one_element"},
)
_LARGE: tuple[dict[str, Any], ...] = (
    {"shape": (3, 5, 50, 100), "multiprocessors": 7},
    {"shape": (40, 2, 9, 56), "kernel_size": 20},
    {"shape": (2, 5, 37, 57), "layout": "off_by_one_element"},
    {"shape": (1, 5, 40, 96), "layout": "slice_of_channels", "multiprocessors": 7},
    {"shape": (5, 2, 7, 60), "kernel_size": 17},
    {"shape": (5, 2, 7, 58), "kernel_size": 24},
)
_PIXELS: tuple[dict[str, Any], ...] = (
    {"shape": (2, 11, 34, 57), "multiprocessors": 7},
    {"shape": (20, 8, 9, 56)},
    {"shape": (1, 24, 36, 64), "kernel_size": 8, "multiprocessors": 7},
    {"shape": (5, 16, 9, 50), "layout": "slice_of_channels_last"},
)


def _other(operation: str, change: dict[str, Any], activation: str = "gelu") -> dict[str, Any]:
    return change | {"operation": operation, "activation": activation}


_FP16, _BF16 = torch.float16, torch.bfloat16
# Of each family of kernels the cases of which one must notice a fault. The first one chooses the
# kernels, the others are for the same ones.
FAMILIES = {
    "forward, whole planes": _cases(
        Case("forward", (9, 5, 16, 16), 9, _BF16),
        *_WHOLE,
        _other("input_gradient", _WHOLE[1]),
        _other("forward_without_bias", _WHOLE[2]),
    ),
    "forward": _cases(
        Case("forward", (3, 2, 20, 94), 9, _FP16),
        *_PLANES,
        _other("input_gradient", _PLANES[1]),
        _other("forward_without_bias", _PLANES[2] | {"zeros": "input"}),
    ),
    "weight gradient, whole planes": _cases(
        Case("weight_gradient", (9, 5, 16, 16), 9, _FP16), *_WHOLE
    ),
    "weight gradient": _cases(
        Case("weight_gradient", (3, 2, 20, 94), 9, _BF16),
        *_PLANES,
        *({"shape": (2, 2, 9, 59), "zeros": zeros} for zeros in ("input", "grad")),
    ),
    "forward, large filters": _cases(
        Case("forward", (3, 2, 20, 94), 31, _FP16),
        *_LARGE,
        _other("input_gradient", _LARGE[1]),
        _other("forward_without_bias", _LARGE[2] | {"zeros": "input"}),
    ),
    "weight gradient, large filters": _cases(
        Case("weight_gradient", (3, 2, 20, 94), 31, _BF16),
        *_LARGE,
        *({"shape": (2, 2, 9, 59), "zeros": zeros} for zeros in ("input", "grad")),
    ),
    "channels_last forward": _cases(
        Case("forward", (2, 16, 20, 94), 9, _BF16, "channels_last"),
        *_PIXELS,
        _other("input_gradient", _PIXELS[2]),
        _other("forward_without_bias", _PIXELS[0] | {"zeros": "input"}),
    ),
    "channels_last weight gradient": _cases(
        Case("weight_gradient", (2, 16, 20, 94), 9, _BF16, "channels_last"),
        *_PIXELS,
        *({"shape": (2, 11, 9, 57), "zeros": zeros} for zeros in ("input", "grad")),
    ),
    "copy to channels_last": _cases(
        Case("arranged", (3, 72, 8, 8), 9, _FP16),
        {"shape": (9, 67, 14, 14)},
        {"shape": (70, 66, 1, 3), "layout": "off_by_one_element"},
        {"shape": (2, 136, 5, 16), "layout": "slice_of_channels"},
        {"shape": (2, 8, 9, 60), "layout": "channels_outermost"},
    ),
    "copy to planes": _cases(
        Case("arranged", (3, 72, 8, 8), 9, _BF16, "channels_last"),
        {"shape": (9, 67, 14, 14)},
        {"shape": (70, 66, 1, 3)},
        {"shape": (1, 5, 3, 23)},  # five channels, and five pixels in the last tile
        {"shape": (2, 136, 5, 16), "layout": "units_of_wider_pixels"},
        {"shape": (2, 8, 9, 60), "layout": "slice_of_channels_last"},
    ),
    "fused forward, whole planes": _cases(
        Case("forward_normalised", (9, 5, 16, 16), 9, _BF16),
        *_WHOLE,
        _other("forward_normalised", _WHOLE[0], "relu"),
        _other("forward_normalised", _WHOLE[0], "identity"),
        {"shape": (2, 3, 16, 16), "offset": 100.0},
    ),
    "fused forward": _cases(
        Case("forward_normalised", (3, 2, 20, 94), 9, _BF16),
        *_PLANES,
        _other("forward_normalised", _PLANES[0], "relu"),
        _other("forward_normalised", _PLANES[1], "identity"),
        {"shape": (2, 2, 9, 59), "offset": 100.0},
        _other("fused_backward", _PLANES[1]),
        _other("fused_backward_of_input", _PLANES[2]),
    ),
    "fused channels_last forward": _cases(
        Case("forward_normalised", (2, 16, 20, 94), 9, _FP16, "channels_last"),
        *_PIXELS,
        _other("forward_normalised", _PIXELS[0], "relu"),
        _other("forward_normalised", _PIXELS[1], "identity"),
        {"shape": (2, 16, 9, 57), "offset": 100.0},
        _other("fused_backward", _PIXELS[0]),
        _other("fused_backward", _PIXELS[1]),
        _other("fused_backward_of_input", _PIXELS[2]),
    ),
    "moments forward": _cases(
        Case("forward_moments", (9, 5, 16, 16), 9, _BF16),
        *_WHOLE,
        _other("forward_moments", _WHOLE[0], "relu"),
        _other("forward_moments", _WHOLE[2], "identity"),
        {"shape": (40, 5, 16, 16), "offset": 100.0},
        {"shape": (2, 130, 8, 8)},  # another kernel; its moments are merged by the same one
    ),
    "backward": _cases(
        Case("fused_backward", (9, 5, 16, 16), 9, _BF16),
        *_WHOLE,
        _other("fused_backward", _WHOLE[0], "relu"),
        _other("fused_backward", _WHOLE[2], "identity"),
        _other("fused_backward_of_input", _WHOLE[1]),
        _other("fused_backward_of_weight", _WHOLE[0]),
    ),
    "batch norm": _cases(
        Case("statistics", (9, 3, 16, 16), 9, _BF16),
        {"shape": (19, 9, 32, 24), "multiprocessors": 7},
        {"shape": (5, 20, 4, 6), "activation": "relu", "multiprocessors": 132},
        {"shape": (40, 2, 8, 5), "activation": "identity"},
        {"shape": (40, 5, 16, 16), "offset": 100.0, "multiprocessors": 7},
        {"shape": (2, 130, 8, 8)},  # moments of more channels than a block merges
    ),
    "batch norm, unaligned": _cases(
        Case("statistics", (3, 5, 7, 9), 9, _FP16),
        {"shape": (40, 9, 5, 13), "multiprocessors": 7},
        {"shape": (5, 12, 6, 8), "layout": "off_by_one_element", "activation": "relu"},
        {"shape": (40, 20, 7, 7), "activation": "identity", "offset": 100.0},
        {"shape": (2, 130, 3, 3)},
    ),
    "channels_last batch norm": _cases(
        Case("statistics", (2, 16, 20, 44), 9, _BF16, "channels_last"),
        {"shape": (3, 136, 9, 7), "multiprocessors": 7},
        {"shape": (1, 72, 33, 9), "activation": "relu", "multiprocessors": 132},
        {"shape": (20, 8, 3, 5), "activation": "identity"},
        {"shape": (9, 80, 9, 9), "offset": 100.0},
    ),
}
