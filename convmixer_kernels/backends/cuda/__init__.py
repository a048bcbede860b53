"""Hand-written CUDA kernels: tensor cores, implicit padding, sums in float32.

The extension (csrc/bindings.cpp) reads and makes PyTorch's tensors without PyTorch's headers, so
that one build serves every version. The modules below find it and its GPU, and serve filters that
have no kernel of their own. With CONVMIXER_KERNELS_EMULATE=1 the compiled kernels take CPU tensors,
on an emulated GPU (for tests: many thousands of times slower).
"""

from __future__ import annotations

from convmixer_kernels.backends.cuda.batch_norm import (
    affine_gradients,
    batch_normalisation,
    forward_moments,
    forward_normalised,
    fused_backward,
    gradient_sums,
    moments,
    normalise,
    running_normalisation,
    value_gradient,
)
from convmixer_kernels.backends.cuda.convolution import (
    forward,
    gradients,
    input_gradient,
    weight_gradient,
)
from convmixer_kernels.backends.cuda.device import (
    unavailable,
    unsupported,
    unsupported_filter,
)
from convmixer_kernels.backends.cuda.layouts import arranged

__all__ = [
    "affine_gradients",
    "arranged",
    "batch_normalisation",
    "forward",
    "forward_moments",
    "forward_normalised",
    "fused_backward",
    "gradient_sums",
    "gradients",
    "input_gradient",
    "moments",
    "normalise",
    "running_normalisation",
    "unavailable",
    "unsupported",
    "unsupported_filter",
    "value_gradient",
    "weight_gradient",
]
