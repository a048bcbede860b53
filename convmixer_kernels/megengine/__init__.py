"""The name under which RepLKNet, UniRepLKNet and SLaK import MegEngine's depthwise convolution.

Their code does `from depthwise_conv2d_implicit_gemm import DepthWiseConv2dImplicitGEMM`. The folder
of this package holds a module of that name, so with the folder on `PYTHONPATH`, or in
`LARGE_KERNEL_CONV_IMPL` for RepLKNet, their code runs unchanged. `python -m
convmixer_kernels.megengine` prints the folder.
"""

from __future__ import annotations

import warnings

from torch import nn

from convmixer_kernels import dispatch
from convmixer_kernels.filters import Filter
from convmixer_kernels.modules import DepthwiseConv2d

__all__ = ["DepthWiseConv2dImplicitGEMM"]


class DepthWiseConv2dImplicitGEMM(DepthwiseConv2d):
    """A `DepthwiseConv2d` called as MegEngine's class: size-preserving zero padding, stride 1.

    Args:
        channels: number of input and of output channels.
        kernel: height and width of the filters, an integer or a pair. Filters larger than 31 run in
            PyTorch, with a warning.
        bias: whether to add a learnable bias.

    Input and output are (N, channels, H, W). State dicts are those of MegEngine's class.
    """

    def __init__(self, channels: int, kernel: int | tuple[int, int], bias: bool = False) -> None:
        nn.Conv2d.__init__(
            self, channels, channels, kernel, padding="same", groups=channels, bias=bias
        )
        self.impl = "auto"
        if reason := dispatch.unsupported_filter(Filter(*self.kernel_size), "auto"):
            warnings.warn(
                f"DepthWiseConv2dImplicitGEMM: filters run in PyTorch; {reason}", stacklevel=2
            )
