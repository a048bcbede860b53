"""The convolution of a patch embedding as one matrix product.

Patches do not overlap, so all pixels of the images together are a matrix with a row for each patch,
and its product with the filters is the output in the layout that blocks take: CNHW (see
`convmixer.model.pointwise`) or channels_last.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

# NVIDIA recommends rows of whole 16 bytes for products on tensor cores: 8 values of half precision.
_ALIGNMENT = 8


def patch_product(images: Tensor, weight: Tensor) -> Tensor:
    """Return ``F.conv2d(images, weight, stride=(p, q))`` for filters of p x q pixels.

    Rows and columns that are left over beside the last whole patch are ignored. A patch is padded
    with zeros to a multiple of 8 values.

    Args:
        images: (N, C, H, W) with H >= p and W >= q, any strides, copied once; values of another
            dtype than that of `weight` are cast to it by that copy.
        weight: (out channels, C, p, q); its gradient has its strides if those are contiguous or
            channels_last.

    Returns:
        (N, out channels, H // p, W // q) in the dtype of `weight`: channels_last if `images` or
        `weight` is, and else CNHW.
    """
    filters, _, height, width = weight.shape
    windows = images.unfold(2, height, height).unfold(3, width, width)
    # The gradient has the strides of the parameter only if the matrix keeps the order of its axes.
    if _is_channels_last(weight):
        matrix = weight.permute(0, 2, 3, 1).flatten(1)
        patches = windows.permute(0, 2, 3, 4, 5, 1)
    else:
        matrix = weight.flatten(1)
        patches = windows.permute(0, 2, 3, 1, 4, 5)
    positions, values = patches.shape[:3], matrix.shape[1]
    padding = -values % _ALIGNMENT
    rows = images.new_empty(*positions, values + padding, dtype=weight.dtype)
    rows[..., :values].unflatten(3, patches.shape[3:]).copy_(patches)
    if padding:
        rows[..., values:].zero_()
        matrix = F.pad(matrix, (0, padding))
    rows = rows.flatten(0, 2)
    if _is_channels_last(images) or _is_channels_last(weight):
        return (rows @ matrix.t()).view(*positions, filters).permute(0, 3, 1, 2)
    return (matrix @ rows.t()).view(filters, *positions).transpose(0, 1)


def _is_channels_last(tensor: Tensor) -> bool:
    """Tell whether strides are those of channels_last, which a single channel has too."""
    outermost, channel, _, pixel = tensor.stride()
    return channel == 1 and pixel >= tensor.shape[1] and outermost > 1
