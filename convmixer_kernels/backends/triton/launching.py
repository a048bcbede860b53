"""The launch arguments that all convolution kernels share."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from convmixer_kernels.backends.triton.configurations import Configuration
from convmixer_kernels.backends.triton.shape_key import ShapeKey


def sizes(
    tensors: tuple[Tensor | None, ...], key: ShapeKey, configuration: Configuration
) -> tuple[int, ...]:
    """Return the values of `kernels.tiles.run_time_sizes`; strides of an absent tensor are 0."""
    values = [
        key.images * configuration.row_blocks * key.tiles_across,
        key.channels,
        key.height,
        configuration.row_blocks,
        configuration.block_rows,
        configuration.splits,
    ]
    for tensor in tensors:
        values += (0, 0) if tensor is None else tensor.stride()[:2]
    return tuple(values)


def constants(key: ShapeKey, configuration: Configuration) -> dict[str, Any]:
    """Return the compile-time parameters that all kernels have."""
    values: dict[str, Any] = {
        "WIDTH": key.width,
        "KERNEL_SIZE": key.kernel_size,
        "TILES": configuration.tiles,
        "CUT_IMAGES": configuration.cuts_images,
    }
    if key.tensor_cores:
        values |= {
            "ALIGNMENT": key.alignment,
            "LEFT": key.left,
            "WINDOW": key.window,
            "UNROLLED_ROWS": configuration.unrolled_rows,
            # Given to the loop itself, it also pipelines loads that feed no matrix product.
            "STAGES": configuration.num_stages,
            "MASK_ROWS": configuration.mask_rows,
        }
    return values


def options(configuration: Configuration) -> dict[str, int]:
    """Return the options of a launch that Triton itself takes."""
    chosen = {"num_warps": configuration.num_warps, "num_stages": configuration.num_stages}
    if configuration.registers is not None:
        chosen["maxnreg"] = configuration.registers
    return chosen
