"""Operands of the fused operations' steps, grouped: several steps take the same ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class PreActivation(NamedTuple):
    """An activation that is to be applied to value + bias.

    `value` is (N, C, H, W), `bias` (C,) in the dtype of sums or None, and `activation` "gelu",
    "relu" or "identity".
    """

    value: Tensor
    bias: Tensor | None
    activation: str


class Epilogue(NamedTuple):
    """The rest of the work of a convolution's kernel: activation, normalisation, residual.

    `normalisation` is (5, C), `residual` tells whether the input is added.
    """

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
    `sums` the `GradientSums`. The gradient of the weight may be in the dtype of the images, rather
    than of sums, if `may_round`.
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
    may_round: bool = False

    @property
    def before(self) -> PreActivation:
        """The activation before it is applied; the convolution has the bias already."""
        return PreActivation(self.value, None, self.activation)
