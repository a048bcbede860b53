"""The op boundary: everything PyTorch must know of the kernels to trace, compile and run them.

An operator takes the name of a resolved implementation. It is declared at one place, with its
kernel, the fake kernel that tracing runs, and its gradient (see `declaration.py`), so that a graph
that holds it can be saved, loaded and trained. But for the running statistics it changes nothing.
"""

from convmixer_kernels.ops.batch_norm import (
    activated_batch_norm_backward,
    activated_batch_norm_frozen,
    activated_batch_norm_training,
    depthwise_conv2d_batch_norm_backward,
    depthwise_conv2d_batch_norm_frozen,
    depthwise_conv2d_batch_norm_training,
)
from convmixer_kernels.ops.convolution import (
    depthwise_conv2d,
    depthwise_conv2d_input_gradient,
    depthwise_conv2d_weight_gradient,
)

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
