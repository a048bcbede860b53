"""The fused operations beside PyTorch's composition of them, at any precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convmixer_kernels import depthwise_conv2d_gelu_batch_norm, dispatch, gelu_batch_norm
from tests.helpers import oracle
from tests.helpers.depthwise_cases import BF16, DEVICE, FP16, FP32, KERNELS

FP64 = torch.float64
Use = Callable[[str], str]  # type of the fixture `use`
# "steps" is the autograd of the kernels around their specification in plain PyTorch; the fixture
# `use` turns these names into values of `impl`.
IMPLEMENTATIONS = ["torch", "steps", *KERNELS]
every_implementation = pytest.mark.parametrize("name", IMPLEMENTATIONS)
all_but_pytorch = pytest.mark.parametrize("name", IMPLEMENTATIONS[1:])
both_functions = pytest.mark.parametrize("k", [5, None], ids=["depthwise", "alone"])
ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "identity": lambda value: value}


def dtypes_of(name: str) -> list[torch.dtype]:
    """The element types of images that an implementation takes here."""
    if name == "cuda":
        return [FP16, BF16]
    if name == "triton":
        # The interpreter of Triton computes wrong values in bfloat16.
        return [FP16, FP32] if DEVICE == "cpu" else [FP16, BF16, FP32]
    return [FP64] if name == "torch" else [FP16, BF16, FP32, FP64]


@dataclass
class Arguments:
    """Arguments of both functions: without `weight`, those of `gelu_batch_norm`."""

    input: Tensor
    weight: Tensor | None
    bias: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    residual: Tensor | bool | None
    grad: Tensor
    activation: str = "gelu"
    training: bool = True
    momentum: float = 0.1
    eps: float = 1e-5


def random_arguments(
    shape: tuple[int, int, int, int],
    kernel_size: int | None,
    dtype: torch.dtype,
    *,
    residual: bool = True,
    seed: int = 0,
    **options: Any,
) -> Arguments:
    """Make arguments of the fused convolution; without a kernel size, of `gelu_batch_norm`."""
    generator = torch.Generator().manual_seed(seed)
    channels = shape[1]

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(DEVICE)

    weight = None
    if kernel_size is not None:
        weight = (normal(channels, 1, kernel_size, kernel_size) / kernel_size).to(dtype)
    added: Tensor | bool | None = residual
    if kernel_size is None:
        added = normal(*shape).to(dtype) if residual else None
    return Arguments(
        input=normal(*shape).to(dtype),
        weight=weight,
        bias=normal(channels) / 2,
        gamma=normal(channels),
        beta=normal(channels),
        running_mean=normal(channels) / 2,
        running_var=normal(channels).square() + 0.5,
        residual=added,
        grad=normal(*shape).to(dtype),
        **options,
    )


def arranged(arguments: Arguments, layout: Any) -> Arguments:
    """Put the images into another layout."""
    residual = arguments.residual
    if isinstance(residual, Tensor):
        residual = layout(residual)
    return replace(
        arguments, input=layout(arguments.input), grad=layout(arguments.grad), residual=residual
    )


def record_steps(monkeypatch: pytest.MonkeyPatch, names: Sequence[str]) -> list[str]:
    """The steps of any implementation that are called, in their order, from here on.

    Of `fused_backward` the gradients as well.
    """
    calls: list[str] = []
    for impl in ("cuda", "torch"):
        for name in names:
            step = getattr(dispatch.backend(impl), name)

            def call(*args: Any, name: str = name, step: Callable[..., object] = step) -> object:
                if name == "fused_backward":
                    (given,) = args
                    name += " input" * (given.weight is not None)
                    name += " weight" * (given.input is not None)
                calls.append(name)
                return step(*args)

            monkeypatch.setattr(dispatch.backend(impl), name, call)
    return calls


def compose(arguments: Arguments, dtype: torch.dtype) -> dict[str, Tensor]:
    """Everything that PyTorch's own operations give at `dtype`, with float32 statistics or better.

    Outputs, gradients of whatever there is, and the running statistics afterwards.
    """
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    dtypes = {name: precise for name in ("gamma", "beta", "running_mean", "running_var")}
    copy = _leaves(arguments, dtypes, dtype)
    gamma = copy.gamma
    if gamma is None and copy.beta is not None:
        gamma = torch.ones_like(copy.beta)  # PyTorch on a GPU has no gradient of beta without it
    output = F.batch_norm(
        _activated(copy),
        copy.running_mean,
        copy.running_var,
        gamma,
        copy.beta,
        copy.training or copy.running_mean is None,
        copy.momentum,
        copy.eps,
    )
    if isinstance(copy.residual, Tensor):
        output = output + copy.residual
    elif copy.residual:
        output = output + copy.input
    return _results(copy, output)


def _activated(arguments: Arguments) -> Tensor:
    value, bias, weight = arguments.input, arguments.bias, arguments.weight
    if weight is not None:
        k = weight.shape[-1]
        before, after = (k - 1) // 2, k // 2
        padded = F.pad(value, (before, after, before, after))
        value = F.conv2d(padded, weight, bias, groups=value.shape[1])
    elif bias is not None:
        value = value + bias[:, None, None]
    return ACTIVATIONS[arguments.activation](value)


def call(arguments: Arguments, impl: str, process_group: Any = None) -> Tensor:
    """The output of the public function."""
    options = {
        "training": arguments.training,
        "momentum": arguments.momentum,
        "eps": arguments.eps,
        "activation": arguments.activation,
        "impl": impl,
        "process_group": process_group,
    }
    norm = (arguments.gamma, arguments.beta, arguments.running_mean, arguments.running_var)
    if arguments.weight is None:
        return gelu_batch_norm(
            arguments.input, *norm, bias=arguments.bias, residual=arguments.residual, **options
        )
    return depthwise_conv2d_gelu_batch_norm(
        arguments.input,
        arguments.weight,
        arguments.bias,
        *norm,
        residual=arguments.residual,
        **options,
    )


def run(arguments: Arguments, impl: str, process_group: Any = None) -> dict[str, Tensor]:
    """The results that `compose` lists, from the public function."""
    copy = _leaves(arguments, {}, None)
    return _results(copy, call(copy, impl, process_group))


def check(arguments: Arguments, impl: str) -> dict[str, Tensor]:
    """Outputs, gradients and running statistics within twice PyTorch's error at their dtype."""
    actual = run(arguments, impl)
    check_results(arguments, actual)
    return actual


def check_results(arguments: Arguments, actual: dict[str, Tensor]) -> None:
    """Check, as `check` does, results that were computed elsewhere."""
    exact = compose(arguments, torch.float64)
    pytorch = compose(arguments, arguments.input.dtype)
    assert actual.keys() == exact.keys()
    images, _, height, width = arguments.input.shape
    for name in actual:
        if name in ("bias", "gamma"):
            error = (actual[name].double() - exact[name]).abs().max().item()
            if error <= _rounding_of_sums(arguments):
                continue
        per_channel = name not in ("output", "input", "residual")
        # Two convolutions lie on the way to a gradient of the input.
        terms = images * height * width if per_channel else 2 * _terms_of_convolution(arguments)
        assert_close(name, actual[name], exact[name], pytorch[name], terms)


def check_without_gradients(arguments: Arguments, impl: str) -> None:
    """The output where no gradient is asked for."""
    exact = compose(arguments, torch.float64)["output"]
    pytorch = compose(arguments, arguments.input.dtype)["output"]
    with torch.no_grad():
        output = call(arguments, impl)
    assert_close("output", output, exact, pytorch, _terms_of_convolution(arguments))


def assert_close(name: str, actual: Tensor, exact: Tensor, pytorch: Tensor, terms: int) -> None:
    """Compare as the oracle does, but float64 results as PyTorch's tests compare them."""
    if pytorch.dtype == torch.float64:
        torch.testing.assert_close(actual, exact.to(actual.dtype))
    else:
        oracle.assert_close(name, actual, exact, pytorch, terms)


def _terms_of_convolution(arguments: Arguments) -> int:
    return 1 if arguments.weight is None else arguments.weight[0].numel()


def _rounding_of_sums(arguments: Arguments) -> float:
    """Bound the effect on sums of gradients of rounding the values before the activation.

    Normalisation takes away what a bias adds, so that nothing else may be left of its gradient, and
    sums over few channels are near or far by chance: neither they nor PyTorch's error are a scale.
    """
    activated = _activated(_leaves(arguments, {}, torch.float64)).detach()
    var = activated.var((0, 2, 3), unbiased=False)
    if not arguments.training and arguments.running_var is not None:
        var = arguments.running_var.double()
    scale = (var + arguments.eps).rsqrt()
    if arguments.gamma is not None:
        scale = scale * arguments.gamma.double().abs().clamp_min(1)
    term = scale.max() * arguments.grad.double().square().mean().sqrt()
    terms = activated.numel() / len(scale)
    single = torch.finfo(torch.float32).eps * _terms_of_convolution(arguments) ** 0.5
    rounding = max(torch.finfo(arguments.input.dtype).eps, single)
    return 2 * terms**0.5 * rounding * term.item()


_FIELDS = ("input", "weight", "bias", "gamma", "beta", "residual")
_BUFFERS = ("running_mean", "running_var")


def _leaves(
    arguments: Arguments, dtypes: dict[str, torch.dtype], dtype: torch.dtype | None
) -> Arguments:
    """Copy arguments and let them require grad; without a dtype, images keep their strides."""
    changes = {}
    for name in (*_FIELDS, *_BUFFERS, "grad"):
        tensor = getattr(arguments, name)
        if not isinstance(tensor, Tensor):
            continue
        wanted = dtypes.get(name, dtype)
        copied = tensor.detach()
        if name in _BUFFERS or wanted is not None:
            copied = copied.clone(memory_format=torch.contiguous_format).to(wanted or copied.dtype)
        changes[name] = copied.requires_grad_() if name in _FIELDS else copied
    return replace(arguments, **changes)


def _results(arguments: Arguments, output: Tensor) -> dict[str, Tensor]:
    leaves = {
        name: tensor
        for name in _FIELDS
        if isinstance(tensor := getattr(arguments, name), Tensor) and tensor.requires_grad
    }
    results = {"output": output.detach()}
    if output.requires_grad:
        grads = torch.autograd.grad(output, list(leaves.values()), arguments.grad)
        results.update(zip(leaves, grads, strict=True))
    for name in _BUFFERS:
        buffer = getattr(arguments, name)
        if buffer is not None:
            results[name] = buffer
    return results
