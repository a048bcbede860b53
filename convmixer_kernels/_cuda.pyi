"""The CUDA extension, csrc/bindings.cpp: the operations of `convmixer_kernels.backends.cuda`.

Images are (N, C, H, W), float16 or bfloat16, of any strides; filters (C, 1, h, w) in their dtype;
biases (C,) of any floating dtype. Tables are float32: normalisations (5, C), moments (3, C), sums
of gradients (2, C). Gradients of parameters are float32, those of filters in the dtype of the
images where a function rounds them. Functions raise ValueError for operands that no kernel takes
and RuntimeError if CUDA refuses a launch.
"""

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

_Sums: TypeAlias = tuple[Tensor, Tensor | None]
_Gradients: TypeAlias = tuple[Tensor | None, Tensor | None, Tensor | None]

filter_sizes: list[int]

def refusal(device: int, /) -> str:
    """Say why a device does not take the kernels; empty if it does."""

def set_chip(device: int, multiprocessors: int, shared_bytes: int, capability: int, /) -> None:
    """Tell the properties of a device, before it is used.

    `shared_bytes` is the most dynamic shared memory of a block, `capability` 80 for 8.0. The
    emulated GPU is device -1.
    """

def watch(function: Callable[[Tensor, bool], object] | None, /) -> None:
    """Have a function called with every tensor that a kernel reads, or writes (True)."""

def use_attributes(use: bool, /) -> None:
    """Read and make tensors as in versions of PyTorch that lack functions for it, such as 2.8."""

def forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    row_dilation: int,
    column_dilation: int,
    flipped: bool,
    /,
) -> Tensor | None:
    """Convolve; None if filters had better be embedded in square ones, in channels_last."""

def weight_gradient(
    input: Tensor,
    output_gradient: Tensor,
    height: int,
    width: int,
    row_dilation: int,
    column_dilation: int,
    with_bias: bool,
    /,
) -> _Sums | None:
    """Compute the gradients of filters and biases; None as in `forward`."""

def gradients(
    output_gradient: Tensor,
    input: Tensor | None,
    weight: Tensor,
    row_dilation: int,
    column_dilation: int,
    needs_input: bool,
    with_bias: bool,
    /,
) -> _Gradients | None:
    """Compute the gradients of input, weight (rounded) and bias; None as in `forward`.

    There are none of weight and bias without `input`.
    """

def forward_normalised(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    normalisation: Tensor,
    activation: str,
    residual: bool,
    /,
) -> Tensor: ...
def forward_moments(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, /
) -> tuple[Tensor, Tensor]: ...
def fused_backward(
    input: Tensor | None,
    weight: Tensor | None,
    value: Tensor,
    output_gradient: Tensor,
    normalisation: Tensor,
    sums: Tensor,
    activation: str,
    residual: bool,
    filter_size: int,
    with_bias: bool,
    rounded: bool,
    /,
) -> _Gradients: ...
def moments(value: Tensor, bias: Tensor | None, activation: str, /) -> Tensor: ...
def normalise(
    value: Tensor,
    bias: Tensor | None,
    activation: str,
    normalisation: Tensor,
    residual: Tensor | None,
    /,
) -> Tensor: ...
def gradient_sums(
    value: Tensor,
    bias: Tensor | None,
    activation: str,
    output_gradient: Tensor,
    normalisation: Tensor,
    /,
) -> Tensor: ...
def value_gradient(
    value: Tensor,
    bias: Tensor | None,
    activation: str,
    output_gradient: Tensor,
    normalisation: Tensor,
    sums: Tensor,
    with_bias: bool,
    /,
) -> _Sums: ...
def normalisation(
    moments: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    /,
) -> Tensor:
    """Make a normalisation from moments, of parts or one, or else from running statistics."""

def affine_gradients(
    sums: Tensor, normalisation: Tensor, with_gamma: bool, with_beta: bool, /
) -> tuple[Tensor | None, Tensor | None]: ...
def arranged(image: Tensor, channels_last: bool, /) -> Tensor: ...
