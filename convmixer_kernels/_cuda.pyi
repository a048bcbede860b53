"""The CUDA extension, csrc/bindings.cpp: launches on addresses whose operands callers have checked.

Addresses are those of the device, 0 for a tensor that is not given. Every function that launches
raises RuntimeError if CUDA refuses the launch; the other errors are ValueErrors of the planner.
"""

from typing import TypeAlias

# Device, stream, element type; then of the GPU: the number of multiprocessors, the most dynamic
# shared memory of a block in bytes, the compute capability as 80 for 8.0.
_LaunchContext: TypeAlias = tuple[int, int, int, int, int, int]
# Images, channels, height and width.
_Sizes: TypeAlias = tuple[int, ...]
# An address with the strides, in elements, of the dimensions that the kernels leave free: images
# and channels; images, rows and pixels in channels_last; outer and channels of an elementwise pass.
_Planes: TypeAlias = tuple[int, tuple[int, ...]]
_Pixels: TypeAlias = tuple[int, tuple[int, ...]]
_Values: TypeAlias = tuple[int, tuple[int, ...]]

# Height, width, row dilation and column dilation.
_Filter: TypeAlias = tuple[int, int, int, int]

filter_sizes: list[int]
# An element type and an activation are passed as their index in these.
element_types: list[str]
activations: list[str]

def refusal(device: int, /) -> str:
    """Say why a device does not take the kernels; empty if it does."""

def forward(
    context: _LaunchContext,
    sizes: _Sizes,
    filter_size: int,
    flipped: bool,
    input: _Planes,
    weight: int,
    bias: int,
    output: _Planes,
    /,
) -> None: ...
def forward_channels_last(
    context: _LaunchContext,
    sizes: _Sizes,
    filter_size: int,
    flipped: bool,
    input: _Pixels,
    weight: int,
    bias: int,
    output: _Pixels,
    /,
) -> None: ...
def weight_gradient_splits(context: _LaunchContext, sizes: _Sizes, filter_size: int, /) -> int: ...
def weight_gradient_splits_channels_last(
    context: _LaunchContext, sizes: _Sizes, filter_size: int, /
) -> int: ...
def weight_gradient(
    context: _LaunchContext,
    sizes: _Sizes,
    filter_size: int,
    input: _Planes,
    output_gradient: _Planes,
    weight_sums: int,
    bias_sums: int,
    workspace: int,
    /,
) -> None: ...
def weight_gradient_channels_last(
    context: _LaunchContext,
    sizes: _Sizes,
    filter_size: int,
    input: _Pixels,
    output_gradient: _Pixels,
    weight_sums: int,
    bias_sums: int,
    workspace: int,
    /,
) -> None: ...
def forward_large(
    context: _LaunchContext,
    sizes: _Sizes,
    filter: _Filter,
    flipped: bool,
    input: _Planes,
    weight: int,
    bias: int,
    output: _Planes,
    /,
) -> None: ...
def weight_gradient_large_splits(
    context: _LaunchContext, sizes: _Sizes, filter: _Filter, /
) -> int: ...
def weight_gradient_large(
    context: _LaunchContext,
    sizes: _Sizes,
    filter: _Filter,
    input: _Planes,
    output_gradient: _Planes,
    weight_sums: int,
    bias_sums: int,
    workspace: int,
    /,
) -> None: ...
def fused_forward(
    context: _LaunchContext,
    sizes: _Sizes,
    filter_size: int,
    flipped: bool,
    input: _Planes,
    weight: int,
    bias: int,
    output: _Planes,
    normalisation: int,
    activation: int,
    residual: bool,
    added: int,
    /,
) -> None: ...
def fused_forward_channels_last(
    context: _LaunchContext,
    sizes: _Sizes,
    filter_size: int,
    flipped: bool,
    input: _Pixels,
    weight: int,
    bias: int,
    output: _Pixels,
    normalisation: int,
    activation: int,
    residual: bool,
    added: int,
    /,
) -> None: ...
def whole_plane_splits(
    context: _LaunchContext, sizes: _Sizes, filter_size: int, backward: bool, /
) -> int: ...
def whole_planes(height: int, width: int, /) -> bool: ...
def moments_forward(
    context: _LaunchContext,
    sizes: _Sizes,
    filter_size: int,
    input: _Planes,
    weight: int,
    bias: int,
    output: _Planes,
    activation: int,
    moments: int,
    merged: int,
    /,
) -> None: ...
def backward_gives_weight_gradient(filter_size: int, /) -> bool: ...
def backward(
    context: _LaunchContext,
    sizes: _Sizes,
    filter_size: int,
    input: _Planes,
    value: _Planes,
    output_gradient: _Planes,
    weight: int,
    normalisation: int,
    gradient_sums: int,
    activation: int,
    residual: bool,
    input_gradient: _Planes,
    value_gradient: _Planes,
    weight_gradient: int,
    bias_gradient: int,
    workspace: int,
    /,
) -> None: ...
def elementwise_pass_splits(
    context: _LaunchContext,
    sizes: _Sizes,
    channels_last: bool,
    value: _Values,
    other: _Values,
    output: _Values,
    /,
) -> int: ...
def elementwise_pass(
    elementwise_pass: int,
    context: _LaunchContext,
    sizes: _Sizes,
    channels_last: bool,
    value: _Values,
    other: _Values,
    output: _Values,
    activation: int,
    bias: int,
    normalisation: int,
    gradient_sums: int,
    sums: int,
    merged: int,
    /,
) -> None: ...
def normalisation(
    context: _LaunchContext,
    moments: int,
    parts: int,
    channels: int,
    gamma: int,
    beta: int,
    running_mean: int,
    running_variance: int,
    momentum: float,
    epsilon: float,
    normalisation: int,
    /,
) -> None: ...
def copy_layout(
    context: _LaunchContext,
    sizes: _Sizes,
    to_planes: bool,
    pixels: _Pixels,
    planes: _Planes,
    /,
) -> None: ...
