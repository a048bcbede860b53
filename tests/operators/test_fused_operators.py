"""Arguments, autograd, running statistics and compilation of the fused operations."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convmixer_kernels import depthwise_conv2d, ops
from tests.helpers import fused_cases, strided
from tests.helpers.depthwise_cases import DEVICE, FP16, FP32
from tests.helpers.fused_cases import (
    FP64,
    Arguments,
    Use,
    all_but_pytorch,
    both_functions,
    dtypes_of,
    every_implementation,
    random_arguments,
)

pytestmark = pytest.mark.gpu

# Triton is interpreted without a GPU, which takes long, and what surrounds the kernels is the same.
without_triton = pytest.mark.parametrize("name", ["steps", "cuda"])
pytorch_too = pytest.mark.parametrize("name", ["torch", "steps", "cuda"])
SHAPE = (2, 3, 8, 7)
LEAVES = ("input", "weight", "bias", "gamma", "beta", "residual")


# ---- arguments -----------------------------------------------------------------------------------


@both_functions
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(3, 8, 8)}, r"input: got shape \(3, 8, 8\), expected \(N, C, H, W\)"),
        ({"input": torch.zeros(2, 3, 8, 0)}, r"input: got shape .*, expected C, H, W of at least"),
        ({"input": torch.zeros(2, 3, 8, 7).int()}, "input: got dtype torch.int32"),
        ({"bias": torch.zeros(4)}, r"bias: got shape \(4,\), expected \(3,\)"),
        ({"gamma": torch.zeros(3, 1)}, r"gamma: got shape \(3, 1\), expected \(3,\)"),
        ({"beta": torch.zeros(3).int()}, "beta: got dtype torch.int32, expected a floating"),
        ({"running_mean": torch.zeros(2)}, r"running_mean: got shape \(2,\), expected"),
        ({"running_var": torch.zeros(3, device="meta")}, "running_var: got device meta, expected"),
        ({"running_var": None}, "running_var: got None, expected both running statistics or"),
        ({"running_mean": None}, "running_mean: got None, expected both running statistics or"),
        ({"momentum": None}, "momentum: got None, expected a number; .* 1 / num_batches_tracked"),
        ({"eps": 0.0}, "eps: got 0.0, expected a positive number"),
        ({"activation": "silu"}, "activation: got 'silu', expected one of 'gelu', 'relu', 'ide"),
        ({"impl": "cudnn"}, "impl: got 'cudnn', expected one of 'auto', 'cuda', 'triton', 'torch'"),
    ],
)
def test_bad_arguments_are_named(k: int | None, change: dict[str, object], message: str) -> None:
    arguments = random_arguments(SHAPE, k, FP32)
    if DEVICE != "cpu" and "input" not in change and "meta" in message:
        message = message.replace("expected", "expected cuda")
    impl = str(change.get("impl", "auto"))
    change = {name: value for name, value in change.items() if name != "impl"}
    with pytest.raises(ValueError, match=message) as raised:
        fused_cases.call(replace(arguments, **change), impl)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("residual", "message"),
    [
        (torch.zeros(2, 3, 8, 8), r"residual: got shape \(2, 3, 8, 8\), expected \(2, 3, 8, 7\)"),
        (torch.zeros(SHAPE).half(), "residual: got dtype torch.float16, expected that of input"),
        (torch.zeros(SHAPE, device="meta"), "residual: got device meta, expected"),
    ],
)
def test_a_bad_residual_is_named(residual: Tensor, message: str) -> None:
    arguments = random_arguments(SHAPE, None, FP32)
    with pytest.raises(ValueError, match=message):
        fused_cases.call(replace(arguments, residual=residual), "torch")


def test_a_bad_filter_is_named() -> None:
    arguments = replace(random_arguments(SHAPE, 5, FP32), weight=torch.zeros(4, 1, 5, 5))
    with pytest.raises(ValueError, match="weight: got 4 filters, expected one for each of the 3"):
        fused_cases.call(arguments, "torch")
    arguments = replace(arguments, weight=torch.zeros(3, 1, 5, 5, device=DEVICE).half())
    with pytest.raises(ValueError, match=r"weight: got dtype torch.float16, expected that of inp"):
        fused_cases.call(arguments, "torch")


@both_functions
@pytorch_too
def test_one_value_per_channel_has_no_variance(name: str, k: int | None, use: Use) -> None:
    arguments = random_arguments((1, 3, 1, 1), k, dtypes_of(name)[0])
    with pytest.raises(ValueError, match="more than 1 value per channel when training") as raised:
        fused_cases.call(arguments, use(name))
    with pytest.raises(ValueError) as pytorch:
        F.batch_norm(arguments.input, None, None, training=True)
    assert str(raised.value).startswith(str(pytorch.value).partition(" torch.Size")[0])
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fused_cases.call(arguments, use(name), SimpleNamespace(size=lambda: 1))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fused_cases.call(
            replace(arguments, training=False, running_mean=None, running_var=None), use(name)
        )
    fused_cases.check(replace(arguments, training=False), use(name))


@pytest.mark.parametrize("training", [True, False])
@both_functions
@every_implementation
def test_empty_batch(name: str, k: int | None, training: bool, use: Use) -> None:
    arguments = random_arguments((0, 3, 8, 7), k, dtypes_of(name)[0], training=training)
    actual = fused_cases.run(arguments, use(name))
    expected = fused_cases.compose(arguments, FP64)
    assert actual.keys() == expected.keys()
    for result, wanted in expected.items():
        assert torch.equal(actual[result].double(), wanted), result


@both_functions
@every_implementation
def test_parameters_may_lie_anywhere(name: str, k: int | None, use: Use) -> None:
    arguments = random_arguments(SHAPE, k, dtypes_of(name)[0])
    parameters = {
        field: strided.every_other_pixel(tensor)
        for field in LEAVES[1:5]
        if isinstance(tensor := getattr(arguments, field), Tensor)
    }
    arguments = replace(arguments, **parameters)
    fused_cases.check(arguments, use(name))
    arguments = replace(arguments, training=False)
    fused_cases.check(arguments, use(name))
    fused_cases.check_without_gradients(arguments, use(name))


# ---- what may be left out ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "absent", [("bias",), ("gamma",), ("beta",), ("running_mean", "running_var"), LEAVES[2:5]]
)
@both_functions
@every_implementation
def test_none(name: str, k: int | None, absent: tuple[str, ...], use: Use) -> None:
    arguments = random_arguments(SHAPE, k, dtypes_of(name)[0])
    arguments = replace(arguments, **dict.fromkeys(absent))
    fused_cases.check(arguments, use(name))
    fused_cases.check(replace(arguments, training=False), use(name))


@pytest.mark.parametrize("training", [True, False])
@both_functions
def test_pytorch_gets_a_gamma_with_beta(
    k: int | None, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it, PyTorch's own normalisation has no gradient of beta on a GPU."""
    batch_norm = F.batch_norm

    def on_a_gpu(input: Tensor, mean: Any, var: Any, gamma: Any, beta: Any, *rest: Any) -> Tensor:
        assert gamma is not None or beta is None
        return batch_norm(input, mean, var, gamma, beta, *rest)

    monkeypatch.setattr(F, "batch_norm", on_a_gpu)
    arguments = random_arguments(SHAPE, k, FP64, training=training)
    fused_cases.check(replace(arguments, gamma=None), "torch")
    fused_cases.check(replace(arguments, gamma=None, beta=None), "torch")


@pytest.mark.parametrize("operation", ["conv2d", "batch_norm"])
def test_pytorch_keeps_channels_last(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU its convolution of float64 is contiguous, and so is what follows."""
    original = getattr(F, operation)
    monkeypatch.setattr(F, operation, lambda *args, **kw: original(*args, **kw).contiguous())
    arguments = fused_cases.arranged(random_arguments(SHAPE, 5, FP64), strided.channels_last)
    assert arguments.weight is not None
    for output in (
        depthwise_conv2d(arguments.input, arguments.weight, impl="torch"),
        fused_cases.call(arguments, "torch"),
        fused_cases.call(replace(arguments, weight=None, residual=None), "torch"),
    ):
        assert output.is_contiguous(memory_format=torch.channels_last)


# ---- running statistics --------------------------------------------------------------------------


def running_statistics(arguments: Arguments) -> list[Tensor]:
    assert arguments.running_mean is not None and arguments.running_var is not None
    return [arguments.running_mean, arguments.running_var]


@pytest.mark.parametrize("momentum", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [FP16, FP32, FP64])
@both_functions
@every_implementation
def test_running_statistics_of_any_dtype(
    name: str, k: int | None, dtype: torch.dtype, momentum: float, use: Use
) -> None:
    arguments = random_arguments(SHAPE, k, dtypes_of(name)[0], momentum=momentum)
    mean, var = (buffer.to(dtype) for buffer in running_statistics(arguments))
    buffers = [strided.every_other_pixel(mean), var]
    arguments.running_mean, arguments.running_var = buffers
    exact = fused_cases.compose(arguments, FP64)
    addresses = [buffer.data_ptr() for buffer in buffers]
    versions = [buffer._version for buffer in buffers]
    fused_cases.call(arguments, use(name))
    assert [buffer.data_ptr() for buffer in buffers] == addresses
    if name != "torch":  # F.batch_norm does not tell autograd
        assert all(buffer._version > old for buffer, old in zip(buffers, versions, strict=True))
    for result in ("running_mean", "running_var"):
        buffer = getattr(arguments, result)
        assert buffer.dtype == dtype
        eps = max(torch.finfo(dtype).eps, 1e-4)
        torch.testing.assert_close(buffer.double(), exact[result], atol=eps, rtol=eps)


@pytest.mark.parametrize("dtype", [FP16, FP32])
@both_functions
@every_implementation
def test_evaluation_writes_no_statistics(
    name: str, k: int | None, dtype: torch.dtype, use: Use
) -> None:
    arguments = random_arguments(SHAPE, k, dtypes_of(name)[0], training=False)
    buffers = [buffer.to(dtype) for buffer in running_statistics(arguments)]
    versions = [buffer._version for buffer in buffers]
    values = [buffer.clone() for buffer in buffers]
    mean, var = buffers
    fused_cases.call(replace(arguments, running_mean=mean, running_var=var), use(name))
    assert [buffer._version for buffer in buffers] == versions
    assert all(torch.equal(buffer, old) for buffer, old in zip(buffers, values, strict=True))


@both_functions
@every_implementation
def test_statistics_of_inference_mode(name: str, k: int | None, use: Use) -> None:
    """Its tensors have no version to increase."""
    impl = use(name)
    usual = random_arguments(SHAPE, k, dtypes_of(name)[0])
    fused_cases.call(usual, impl)
    with torch.inference_mode():
        arguments = random_arguments(SHAPE, k, dtypes_of(name)[0])
        fused_cases.call(arguments, impl)
    statistics = zip(running_statistics(arguments), running_statistics(usual), strict=True)
    assert all(torch.equal(actual, expected) for actual, expected in statistics)


@pytest.mark.parametrize("training", [True, False])
@pytorch_too
def test_parameters_of_half_precision(name: str, training: bool, use: Use) -> None:
    """Parameters in float16, as after model.half(), give what the same values in float32 give."""
    arguments = random_arguments(SHAPE, 5, dtypes_of(name)[0], training=training)
    halved = {
        field: getattr(arguments, field).half()
        for field in ("bias", "gamma", "beta", "running_mean", "running_var")
    }
    actual = fused_cases.run(replace(arguments, **halved), use(name))
    rounded = {field: tensor.float() for field, tensor in halved.items()}
    wanted = fused_cases.run(replace(arguments, **rounded), use(name))
    for result, tensor in wanted.items():
        expected = tensor.to(FP16) if result in halved else tensor
        assert torch.equal(actual[result], expected), result


# ---- autograd ------------------------------------------------------------------------------------

STEPS = ("gradient_sums", "value_gradient", "fused_backward")


def record(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names = ("forward_normalised", "forward_moments", "moments", "normalise", *STEPS)
    return fused_cases.record_steps(monkeypatch, names)


StepsOfBackward = Callable[[str, Arguments, Sequence[str], set[str]], list[str]]


@pytest.fixture
def steps_of_backward(use: Use, monkeypatch: pytest.MonkeyPatch) -> StepsOfBackward:
    """Run both passes of an implementation and return the steps of the backward pass.

    Of the arguments `names`, those in `needed` get the gradients of a call that asks for all, and
    the others get none.
    """

    def run(name: str, arguments: Arguments, names: Sequence[str], needed: set[str]) -> list[str]:
        impl = use(name)
        everything = fused_cases.run(arguments, impl)
        leaves = {leaf: getattr(arguments, leaf).clone() for leaf in names}
        for leaf in needed:
            leaves[leaf].requires_grad_()
        recorded = record(monkeypatch)
        output = fused_cases.call(replace(arguments, **leaves), impl)
        recorded.clear()
        output.backward(arguments.grad)
        for leaf, tensor in leaves.items():
            assert (tensor.grad is not None) == (leaf in needed)
            if tensor.grad is not None:
                torch.testing.assert_close(tensor.grad, everything[leaf], atol=2e-3, rtol=2e-3)
        return recorded

    return run


@pytest.mark.parametrize(
    ("kernel_size", "needed", "training", "calls"),
    [
        (5, {"input"}, True, ["gradient_sums", "fused_backward input"]),
        (5, {"weight"}, True, ["gradient_sums", "fused_backward weight"]),
        (5, {"weight", "bias", "gamma"}, True, ["gradient_sums", "fused_backward weight"]),
        (5, {"bias"}, True, ["gradient_sums", "value_gradient"]),
        (5, {"gamma"}, True, ["gradient_sums"]),
        (5, {"beta"}, False, ["gradient_sums"]),
        (5, {"input", "weight"}, False, ["fused_backward input weight"]),
        (5, {"input", "gamma"}, False, ["gradient_sums", "fused_backward input"]),
        (None, {"input"}, True, ["gradient_sums", "value_gradient"]),
        (None, {"bias"}, False, ["value_gradient"]),
        (None, {"gamma", "beta"}, True, ["gradient_sums"]),
        (None, {"residual"}, True, []),
    ],
)
@without_triton
def test_only_the_gradients_asked_for(
    name: str,
    kernel_size: int | None,
    needed: set[str],
    training: bool,
    calls: list[str],
    steps_of_backward: StepsOfBackward,
) -> None:
    arguments = random_arguments(SHAPE, kernel_size, dtypes_of(name)[0], training=training)
    # Alone, there is no weight; with a convolution, the residual is its input.
    absent = "weight" if kernel_size is None else "residual"
    leaves = [leaf for leaf in LEAVES if leaf != absent]
    assert steps_of_backward(name, arguments, leaves, needed) == calls


@pytest.mark.parametrize("differentiable", [True, False])
@without_triton
def test_evaluation_is_one_kernel(
    name: str, differentiable: bool, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No gradients are kept where grad mode is off, even if parameters require them."""
    arguments = random_arguments(SHAPE, 5, dtypes_of(name)[0], training=False)
    assert arguments.weight is not None
    arguments.weight.requires_grad_(differentiable)
    impl = use(name)
    recorded = record(monkeypatch)
    with torch.set_grad_enabled(not differentiable):
        output = fused_cases.call(arguments, impl)
    assert recorded == ["forward_normalised"] and not output.requires_grad


@both_functions
@without_triton
def test_input_and_value_are_all_that_is_kept(name: str, k: int | None, use: Use) -> None:
    arguments = random_arguments(SHAPE, k, dtypes_of(name)[0])
    arguments.input.requires_grad_()
    if arguments.weight is not None:
        arguments.weight.requires_grad_()
    output = fused_cases.call(arguments, use(name))
    assert output.grad_fn is not None
    kept = [
        tensor
        for tensor in output.grad_fn.saved_tensors  # type: ignore[attr-defined]
        if tensor is not None and tensor.shape == arguments.input.shape
    ]
    assert len(kept) == (1 if k is None else 2)
    assert any(tensor.data_ptr() == arguments.input.data_ptr() for tensor in kept)
    with torch.no_grad():
        assert fused_cases.call(arguments, use(name)).grad_fn is None


@pytest.mark.parametrize("leaves", [("input",), ("gamma",), ("gamma", "input")])
@pytest.mark.parametrize("training", [True, False])
@both_functions
@without_triton
def test_a_second_derivative_is_refused(
    name: str, k: int | None, training: bool, leaves: tuple[str, ...], use: Use
) -> None:
    arguments = random_arguments(SHAPE, k, dtypes_of(name)[0], training=training)
    for leaf in leaves:
        getattr(arguments, leaf).requires_grad_()
    impl = use(name)
    output = fused_cases.call(arguments, impl)
    (grad,) = torch.autograd.grad(output.sum(), getattr(arguments, leaves[0]), create_graph=True)
    assert grad.requires_grad
    function = "gelu_batch_norm" if k is None else "depthwise_conv2d_gelu_batch_norm"
    with pytest.raises(
        RuntimeError, match=rf"^{function}\(impl='{impl}'\) can be differentiated once; use impl="
    ):
        grad.sum().backward()


@both_functions
def test_pytorch_gives_second_derivatives(k: int | None) -> None:
    arguments = random_arguments((2, 2, 3, 3), k, FP64)
    leaves = {
        leaf: tensor.double().requires_grad_()
        for leaf in LEAVES
        if isinstance(tensor := getattr(arguments, leaf), Tensor)
    }

    def function(*tensors: Tensor) -> Tensor:
        return fused_cases.call(
            replace(arguments, **dict(zip(leaves, tensors, strict=True))), "torch"
        )

    assert torch.autograd.gradgradcheck(function, tuple(leaves.values()))


@all_but_pytorch
def test_gradient_of_a_sum_is_expanded(name: str, use: Use) -> None:
    for k in (5, None):
        arguments = random_arguments(SHAPE, k, dtypes_of(name)[0], activation="relu")
        arguments.grad = torch.ones((), dtype=arguments.grad.dtype, device=DEVICE).expand(SHAPE)
        actual = fused_cases.run(arguments, use(name))
        dense = fused_cases.run(replace(arguments, grad=arguments.grad.contiguous()), use(name))
        for result, tensor in dense.items():
            assert torch.equal(actual[result], tensor), result


# ---- autocast ------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytorch_too
def test_autocast_casts_as_the_modules_do(
    name: str, training: bool, residual: bool, use: Use
) -> None:
    arguments = random_arguments(SHAPE, 5, FP32, training=training, residual=residual)
    halved = replace(
        arguments,
        input=arguments.input.to(FP16),
        weight=arguments.weight.to(FP16),  # type: ignore[union-attr]
        residual=False,
    )
    expected = fused_cases.call(halved, use(name))
    with torch.autocast(DEVICE, FP16):
        output = fused_cases.call(arguments, use(name))
        already = fused_cases.call(replace(arguments, input=halved.input), use(name))
    # A residual is added in its own precision, as by a module that adds what it was given.
    if residual:
        expected = expected + arguments.input
    assert output.dtype == (FP32 if residual else FP16)
    assert torch.equal(output, expected)
    assert already.dtype == FP16


@pytorch_too
def test_autocast_leaves_a_tensor_alone(name: str, use: Use) -> None:
    arguments = random_arguments(SHAPE, None, dtypes_of(name)[0])
    expected = fused_cases.run(arguments, use(name))
    with torch.autocast(DEVICE, torch.bfloat16):
        actual = fused_cases.run(arguments, use(name))
    assert torch.equal(actual["output"], expected["output"])


# ---- operators and compilation -------------------------------------------------------------------


def operator_calls(arguments: Arguments, impl: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Arguments for every operator: all of them, then such without what may be left out."""
    assert isinstance(arguments.weight, Tensor)
    input, weight, bias, grad = (
        arguments.input,
        arguments.weight,
        arguments.bias,
        arguments.grad,
    )
    buffers = (arguments.running_mean, arguments.running_var)
    affine = (arguments.gamma, arguments.beta)
    settings = ("gelu", 1e-5, impl, False)
    nothing = (None,) * 4
    for norm in ((*affine, *buffers), nothing):
        added = None if norm is nothing else input
        call = (input, weight, bias, *norm, 0.1, None, added is not None, *settings)
        yield "depthwise_conv2d_batch_norm_training", call
        yield "activated_batch_norm_training", (input, bias, added, *norm, 0.1, None, *settings)
    _, value, normalisation = ops.depthwise_conv2d_batch_norm_training(*call)
    for keep_value, added in ((True, bias), (False, None)):
        call = (input, weight, added, *affine, *buffers, keep_value, True, *settings)
        yield "depthwise_conv2d_batch_norm_frozen", call
        yield "activated_batch_norm_frozen", (input, added, grad, *affine, *buffers, *settings)
    for needed in ("input weight bias gamma beta", "input", "weight bias", "bias beta", "gamma"):
        wanted = [leaf in needed for leaf in LEAVES[:5]]
        call = (grad, input, weight, value, normalisation, wanted, True, None, True, "gelu", impl)
        yield "depthwise_conv2d_batch_norm_backward", call
        del wanted[1]
        call = (grad, value, arguments.bias, normalisation, wanted, True, None, "gelu", impl)
        yield "activated_batch_norm_backward", call


@without_triton
def test_operators_pass_opcheck(name: str, use: Use) -> None:
    arguments = random_arguments((2, 2, 3, 4), 3, dtypes_of(name)[0])
    compiled = set()
    for operator, values in operator_calls(arguments, use(name)):
        overload = getattr(torch.ops.convmixer_kernels, operator).default
        torch.library.opcheck(overload, values, test_utils=("test_schema", "test_faketensor"))
        if operator in compiled:
            continue
        # Slower: with gradients, and as a compiler traces it.
        compiled.add(operator)
        leaves = values if operator.endswith("backward") else with_gradients(values)
        checks = ("test_autograd_registration", "test_aot_dispatch_dynamic")
        torch.library.opcheck(overload, leaves, test_utils=checks)


def with_gradients(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a forward operator, of which the five first have gradients."""
    leaves = [v.clone().requires_grad_() if isinstance(v, Tensor) else v for v in values[:5]]
    return (*leaves, *values[5:])


@pytest.mark.parametrize(
    "layout",
    [
        Tensor.clone,
        strided.channels_last,
        strided.channels_outermost,
        strided.slice_of_rows_and_columns,
    ],
)
@all_but_pytorch
def test_fake_results_have_the_strides_of_real_ones(
    name: str, layout: Callable[[Tensor], Tensor], use: Use
) -> None:
    arguments = random_arguments((2, 3, 4, 3), 5, dtypes_of(name)[0])
    arguments = fused_cases.arranged(arguments, layout)
    for operator, values in operator_calls(arguments, use(name)):
        with torch._subclasses.FakeTensorMode() as mode:
            fakes = [mode.from_tensor(v) if isinstance(v, Tensor) else v for v in values]
            fake = getattr(ops, operator)(*fakes)
        real = getattr(ops, operator)(*values)
        if isinstance(real, Tensor):
            fake, real = [fake], [real]
        for actual, expected in zip(fake, real, strict=True):
            assert actual.shape == expected.shape and actual.dtype == expected.dtype, operator
            # One element may have any stride.
            strides = zip(actual.shape, actual.stride(), expected.stride(), strict=True)
            assert all(ours == wanted for size, ours, wanted in strides if size > 1), operator


def compiled_cases() -> Iterator[object]:
    for name, k, training in itertools.product(
        ("torch", "steps", "cuda"), (5, None), (True, False)
    ):
        repeats = name != "cuda" and not training
        yield pytest.param(name, k, training, marks=[pytest.mark.repeats] if repeats else [])


@pytest.mark.parametrize(("name", "k", "training"), list(compiled_cases()))
def test_compiles_without_graph_breaks(name: str, k: int | None, training: bool, use: Use) -> None:
    impl = use(name)

    def function(arguments: Arguments) -> Tensor:
        doubled = replace(arguments, input=arguments.input * 2)
        return fused_cases.call(doubled, impl).relu()

    def results(arguments: Arguments, function: Callable[[Arguments], Tensor]) -> dict[str, Tensor]:
        copy = fused_cases._leaves(arguments, {}, None)
        return fused_cases._results(copy, function(copy))

    # On a GPU PyTorch normalises by cuDNN, but its compiler by kernels that round otherwise.
    tolerance = None if name == "torch" and DEVICE != "cpu" else 0.0
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for images in (2, 3):
        arguments = random_arguments((images, *SHAPE[1:]), k, dtypes_of(name)[0], training=training)
        expected, actual = results(arguments, function), results(arguments, compiled)
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        expected, actual = results(arguments, function), results(arguments, compiled)
        torch.testing.assert_close(
            actual["output"], expected["output"], rtol=tolerance, atol=tolerance
        )
