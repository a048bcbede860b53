"""Float64 results, and how far a result may be from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Results:
    """Output and gradients of one convolution."""

    output: Tensor
    grad_input: Tensor
    grad_weight: Tensor
    grad_bias: Tensor | None


def convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grad_output: Tensor,
    dtype: torch.dtype,
    dilation: tuple[int, int] = (1, 1),
) -> Results:
    """PyTorch's own convolution at `dtype`, on dense copies."""
    input, weight, grad_output = (
        tensor.detach().contiguous().to(dtype) for tensor in (input, weight, grad_output)
    )
    leaves = [input.requires_grad_(), weight.requires_grad_()]
    if bias is not None:
        bias = bias.detach().to(dtype).requires_grad_()
        leaves.append(bias)
    padding: list[int] = []
    for size, step in zip(weight.shape[:1:-1], dilation[::-1], strict=True):
        total = step * (size - 1)
        padding += [total // 2, total - total // 2]
    padded = F.pad(input, padding)
    output = F.conv2d(padded, weight, bias, dilation=dilation, groups=input.shape[1])
    grads = torch.autograd.grad(output, leaves, grad_output)
    return Results(output.detach(), grads[0], grads[1], grads[2] if bias is not None else None)


def assert_close(
    name: str, actual: Tensor, exact: Tensor, pytorch: Tensor, terms: int | None = None
) -> None:
    """`actual` is at most twice as far from the float64 result `exact` as `pytorch` is.

    Where PyTorch happens to hit (few elements), the floor is the unit roundoff of the dtype
    relative to the largest value. Sums of `terms` terms may be off by its square root in float32
    roundings.
    """
    assert actual.shape == exact.shape, f"{name}: shape {actual.shape}, expected {exact.shape}"
    assert torch.isfinite(actual).all(), f"{name}: not all elements were written"
    if actual.numel() == 0:
        return
    largest = exact.abs().max().item()
    error = (actual.double() - exact).abs().max().item()
    allowed = 2 * (pytorch.double() - exact).abs().max().item()
    allowed = max(allowed, torch.finfo(actual.dtype).eps * largest)
    if terms is not None:
        allowed = max(allowed, terms**0.5 * torch.finfo(torch.float32).eps * largest)
    assert error <= allowed, f"{name}: error {error:.3e}, allowed {allowed:.3e}"
