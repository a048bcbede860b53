"""What the steps of the fused operations are given, where several of them take the same tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class PreActivation(NamedTuple):
    """The argument of an activation: `value`, and `bias` where it is not part of it yet.

    `value` is (N, C, H, W), `bias` (C,) in the dtype of sums or None, `activation` "gelu", "relu"
    or "identity".
    """

    value: Tensor
    bias: Tensor | None
    activation: str


class Epilogue(NamedTuple):
    """What follows a convolution in its kernel: activation, normalisation (5, C), and the input
    added if `residual`."""

    normalisation: Tensor
    activation: str
    residual: bool


class BatchNorm(NamedTuple):
    """The arguments of batch normalisation, its tensors in the dtype of sums.

    `of_batch` tells whether the statistics are those of the batch, or else the running ones.
    """

    gamma: Tensor | None
    beta: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    of_batch: bool
    momentum: float
    eps: float
    process_group: ProcessGroup | None = None


class FusedBackward(NamedTuple):
    """The operands of the backward pass of a convolution that activation and normalisation follow.

    There is no gradient of the weight without `input`, and none of the input without `weight`.
    `value` is the convolution as the forward pass stored it, `grad` the gradient of the output,
    `sums` the `GradientSums`.
    """

    input: Tensor | None
    weight: Tensor | None
    value: Tensor
    grad: Tensor
    normalisation: Tensor
    sums: Tensor
    activation: str
    residual: bool
    kernel_size: int
    with_bias: bool

    @property
    def before(self) -> PreActivation:
        """The argument of the activation; its bias is part of the convolution."""
        return PreActivation(self.value, None, self.activation)
