"""Large-kernel depthwise convolution for NVIDIA GPUs, as PyTorch functions and modules."""

import convmixer_kernels.flops  # noqa: F401, PyTorch counts operations by it
from convmixer_kernels.branches import MergedBranches
from convmixer_kernels.convert import Conversion, convert_depthwise, restore_depthwise
from convmixer_kernels.dispatch import available_impls, explain
from convmixer_kernels.functional import (
    depthwise_conv2d,
    depthwise_conv2d_gelu_batch_norm,
    gelu_batch_norm,
)
from convmixer_kernels.merge import Merge, merge_branches, restore_branches
from convmixer_kernels.modules import DepthwiseConv2d

__version__ = "0.1.0"

__all__ = [
    "Conversion",
    "DepthwiseConv2d",
    "Merge",
    "MergedBranches",
    "available_impls",
    "convert_depthwise",
    "depthwise_conv2d",
    "depthwise_conv2d_gelu_batch_norm",
    "explain",
    "gelu_batch_norm",
    "merge_branches",
    "restore_branches",
    "restore_depthwise",
]
