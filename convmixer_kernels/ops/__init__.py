"""The op boundary: everything PyTorch must know of the kernels to trace, compile and run them.

An operator takes the name of a resolved implementation. It is declared at one place, with its
kernel, the fake kernel that tracing runs, and its gradient (see `declaration.py`), so that a graph
that holds it can be saved, loaded and trained. But for the running statistics it changes nothing.
"""

from convmixer_kernels.ops import batch_norm, convolution
from convmixer_kernels.ops.batch_norm import (
    activated_batch_norm_frozen,
    activated_batch_norm_training,
    depthwise_conv2d_batch_norm_frozen,
    depthwise_conv2d_batch_norm_training,
)
from convmixer_kernels.ops.convolution import depthwise_conv2d

# Those without a gradient are operators of PyTorch and nothing else.
activated_batch_norm_backward = batch_norm.activated_batch_norm_backward.overload
depthwise_conv2d_batch_norm_backward = batch_norm.depthwise_conv2d_batch_norm_backward.overload
depthwise_conv2d_input_gradient = convolution.depthwise_conv2d_input_gradient.overload
depthwise_conv2d_weight_gradient = convolution.depthwise_conv2d_weight_gradient.overload

__all__ = [
    "activated_batch_norm_backward",
    "activated_batch_norm_frozen",
    "activated_batch_norm_training",
    "depthwise_conv2d",
    "depthwise_conv2d_batch_norm_backward",
    "depthwise_conv2d_batch_norm_frozen",
    "depthwise_conv2d_batch_norm_training",
    "depthwise_conv2d_input_gradient",
    "depthwise_conv2d_weight_gradient",
]
