"""Random convolutions, all passes of an implementation, and their check against float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from convmixer_kernels import depthwise_conv2d
from tests.helpers import oracle

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32
KERNELS = ["cuda", "triton"]


def label(shape: Sequence[int]) -> str:
    """Name (N, C, H, W, k) for the identifier of a test: 2x3x7x7-k9."""
    return "x".join(map(str, shape[:-1])) + f"-k{shape[-1]}"


def random_case(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return input, filters, float32 bias and gradient of the output for (N, C, H, W, k)."""
    images, channels, height, width, k = shape
    generator = torch.Generator().manual_seed(seed)
    size = (images, channels, height, width)
    input = torch.randn(size, generator=generator).to(dtype)
    weight = (torch.randn((channels, 1, k, k), generator=generator) / k).to(dtype)
    bias = torch.randn(channels, generator=generator)
    grad_output = torch.randn(size, generator=generator).to(dtype)
    return tuple(tensor.to(DEVICE) for tensor in (input, weight, bias, grad_output))  # type: ignore[return-value]


def run(
    impl: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grad_output: Tensor,
    dilation: tuple[int, int] = (1, 1),
) -> oracle.Results:
    """Run the forward and backward pass of an implementation."""
    input, weight = input.detach().requires_grad_(), weight.detach().requires_grad_()
    leaves = [input, weight]
    if bias is not None:
        bias = bias.detach().requires_grad_()
        leaves.append(bias)
    output = depthwise_conv2d(input, weight, bias, dilation=dilation, impl=impl)
    grads = torch.autograd.grad(output, leaves, grad_output)
    return oracle.Results(
        output.detach(), grads[0], grads[1], grads[2] if bias is not None else None
    )


def check(
    impl: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grad_output: Tensor,
    dilation: tuple[int, int] = (1, 1),
) -> oracle.Results:
    """Run all passes; no result may be further from float64 than twice PyTorch's own."""
    actual = run(impl, input, weight, bias, grad_output, dilation)
    exact = oracle.convolve(input, weight, bias, grad_output, torch.float64, dilation)
    pytorch = oracle.convolve(input, weight, bias, grad_output, input.dtype, dilation)
    images, _, height, width = input.shape
    terms = images * height * width
    oracle.assert_close("output", actual.output, exact.output, pytorch.output)
    oracle.assert_close("input gradient", actual.grad_input, exact.grad_input, pytorch.grad_input)
    oracle.assert_close(
        "weight gradient", actual.grad_weight, exact.grad_weight, pytorch.grad_weight, terms
    )
    if bias is not None:
        assert actual.grad_bias is not None and actual.grad_bias.dtype == bias.dtype
        assert exact.grad_bias is not None and pytorch.grad_bias is not None
        oracle.assert_close(
            "bias gradient", actual.grad_bias, exact.grad_bias, pytorch.grad_bias, terms
        )
    return actual


def dtypes_of(impl: str) -> list[torch.dtype]:
    """List the element types of 16 bits that an implementation takes here."""
    # The interpreter of Triton computes wrong values in bfloat16, so the implementation refuses.
    return [FP16] if impl == "triton" and DEVICE == "cpu" else [FP16, BF16]
