"""The implementations of the operators, a folder for each: plain PyTorch, CUDA and Triton.

Each is a module that is a `Backend`; those of kernels are a `KernelBackend`. Callers have checked
shapes, dtypes and devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from convmixer_kernels.filters import Filter
from convmixer_kernels.operands import BatchNorm, Epilogue, FusedBackward, PreActivation


class Backend(Protocol):
    """The convolution, and the steps of the fused operations.

    `reference.batch_norm` spells out what each step computes, and `channel_tables` the rows of the
    tables that they exchange. An activation is "gelu", "relu" or "identity".
    """

    def unavailable(self, device: torch.device) -> str | None:
        """Say in a line why it cannot run for tensors on `device`, None if it can."""

    def unsupported(
        self, device: torch.device, dtype: torch.dtype, filter: Filter | None, fused: bool
    ) -> str | None:
        """Say in a line why it cannot take this dtype or filter, None if it can.

        Args:
            fused: whether activation and normalisation follow in the same call.
        """

    def arranged(self, grad: Tensor, channels_last: bool) -> Tensor:
        """Return a gradient as kernels read it beside an image: see `layout.arranged`."""
        ...

    def forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        dilation: tuple[int, int] = (1, 1),
    ) -> Tensor:
        """Convolve (N, C, H, W) with (C, 1, h, w) and add (C,): laid out like `input`."""
        ...

    def forward_normalised(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        epilogue: Epilogue,
    ) -> Tensor:
        """Convolve, activate, normalise and add `input` if asked: rounded once."""
        ...

    def forward_moments(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, activation: str
    ) -> tuple[Tensor, Tensor]:
        """Return the rounded convolution, and the moments of its activation."""
        ...

    def moments(self, before: PreActivation) -> Tensor:
        """Return the moments of activation(value + bias)."""
        ...

    def batch_normalisation(self, moments: Tensor, norm: BatchNorm) -> Tensor:
        """Return the normalisation by moments, (3, C) or (parts, 3, C), and update statistics."""
        ...

    def running_normalisation(self, norm: BatchNorm) -> Tensor:
        """Return the normalisation by running statistics."""
        ...

    def normalise(
        self, before: PreActivation, normalisation: Tensor, residual: Tensor | None
    ) -> Tensor:
        """Activate and normalise value + bias, and add `residual`: rounded once."""
        ...

    def gradient_sums(self, before: PreActivation, grad: Tensor, normalisation: Tensor) -> Tensor:
        """Return the sums that the gradients depend on."""
        ...

    def affine_gradients(
        self, sums: Tensor, normalisation: Tensor, needed: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of gamma and beta that are needed, of these sums."""
        ...

    def value_gradient(
        self,
        before: PreActivation,
        grad: Tensor,
        normalisation: Tensor,
        sums: Tensor,
        with_bias: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the gradients of `value` and, if asked, of `bias`."""
        ...

    def fused_backward(
        self, call: FusedBackward
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients of input, weight and bias: those that `FusedBackward` tells."""
        ...


class KernelBackend(Backend, Protocol):
    """A backend with kernels of this package, which autograd does not differentiate by itself."""

    def unsupported_filter(self, filter: Filter, fused: bool = False) -> str | None:
        """Say in a line why there is no kernel for a filter, None if there is."""
        ...

    def input_gradient(
        self, grad_output: Tensor, weight: Tensor, dilation: tuple[int, int] = (1, 1)
    ) -> Tensor:
        """Return the gradient of the input of `forward`, laid out like `grad_output`."""
        ...

    def weight_gradient(
        self, input: Tensor, grad_output: Tensor, filter: Filter, with_bias: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the float32 gradients of the weight and, if asked, of the bias of `forward`."""
        ...

    def gradients(
        self,
        grad_output: Tensor,
        input: Tensor | None,
        weight: Tensor,
        dilation: tuple[int, int],
        needs_input: bool,
        with_bias: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients of input, weight and bias of `forward`.

        Args:
            grad_output: of any strides, copied to the layout of `input` if it has another.
            input: None if no gradients of weight and bias are wanted.
            needs_input: whether the gradient of the input is.

        Returns:
            That of the weight in its dtype or float32, that of the bias in float32.
        """
        ...
