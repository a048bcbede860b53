"""The 1 x 1 convolution of a block as one matrix product, in layouts that need no copies.

`F.conv2d` and `torch.matmul` on (N, C, H * W) multiply image by image, and with gradients they copy
whole tensors. If the channels are outermost (CNHW: a tensor of shape (N, C, H, W) whose strides are
H * W, N * H * W, W, 1) or innermost (channels_last), all pixels of all images are one matrix, and
output, input gradient and weight gradient are one product each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convmixer_kernels import layout


def pointwise_product(features: Tensor, weight: Tensor) -> Tensor:
    """Return ``F.conv2d(features, weight)`` for a weight of shape (out channels, C, 1, 1).

    Args:
        features: (N, C, H, W), CNHW or channels_last; other layouts cost a copy.
        weight: of the dtype of `features`; under autocast both are cast to its dtype.

    Returns:
        (N, out channels, H, W): CNHW, or channels_last for channels_last `features`.
    """
    images, channels, height, width = features.shape
    # The gradient has the strides of the parameter only if the matrix keeps the order of its axes.
    in_order = weight if weight.stride(2) == 1 else weight.permute(0, 2, 3, 1)
    matrix = in_order.flatten(1)
    if layout.is_channels_last(features):
        pixels = features.permute(0, 2, 3, 1).reshape(images * height * width, channels)
        product = torch.mm(pixels, matrix.t()).view(images, height, width, len(matrix))
        return product.permute(0, 3, 1, 2)
    pixels = features.transpose(0, 1).reshape(channels, images * height * width)
    return torch.mm(matrix, pixels).view(weight.shape[0], images, height, width).transpose(0, 1)


def pointwise_product_of_inference(features: Tensor, weight: Tensor) -> Tensor:
    """Return what `pointwise_product` does where nothing is recorded or traced, by fewer views."""
    images, channels, height, width = features.shape
    image, channel, _, _ = features.stride()
    pixels = height * width
    outermost = channel == images * pixels and (images == 1 or image == pixels)
    if not (outermost and layout.is_planar(features)):
        return pointwise_product(features, weight)
    matrix = weight.view(weight.shape[0], -1)
    product = torch.mm(matrix, features.as_strided((channels, channel), (channel, 1)))
    shape = (images, weight.shape[0], height, width)
    return product.as_strided(shape, (pixels, channel, width, 1))
