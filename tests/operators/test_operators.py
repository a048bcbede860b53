"""Arguments, choice of implementation, autograd and compilation of the convolution."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import Any

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import convmixer_kernels
from convmixer_kernels import (
    architectures,
    depthwise_conv2d,
    dispatch,
    emulated_gpu,
    ops,
    preference,
)
from convmixer_kernels.backends.cuda import device as cuda_device
from tests.helpers.depthwise_cases import DEVICE, FP16, KERNELS, random_case, run
from tests.helpers.strided import channels_last, channels_outermost

pytestmark = pytest.mark.gpu


def tensors(
    shape: tuple[int, int, int, int] = (2, 3, 8, 8), k: int = 7, dtype: torch.dtype = FP16
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(shape, generator=generator).to(DEVICE, dtype)
    weight = (torch.randn(shape[1], 1, k, k, generator=generator) / k).to(DEVICE, dtype)
    bias = torch.randn(shape[1], generator=generator).to(DEVICE)
    return input, weight, bias


class Operators(TorchDispatchMode):
    """Records the operators of this package that are called, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: tuple[type, ...],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if func.namespace == "convmixer_kernels":
            self.called.append(func._schema.name.partition("::")[2])
        return func(*args, **(kwargs or {}))


# ---- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(3, 8, 8)}, r"input: got shape \(3, 8, 8\), expected \(N, C, H, W\)"),
        (
            {"input": torch.zeros(2, 3, 0, 8)},
            r"input: got shape .*, expected C, H, W of at least 1",
        ),
        ({"input": torch.zeros(2, 3, 8, 8).long()}, "input: got dtype torch.int64"),
        (
            {"weight": torch.zeros(3, 7, 7)},
            r"weight: got shape \(3, 7, 7\), expected \(3, 1, height, width\)",
        ),
        (
            {"weight": torch.zeros(3, 3, 7, 7)},
            r"weight: got shape .*, expected \(3, 1, height, width\)",
        ),
        ({"weight": torch.zeros(3, 1, 7, 0)}, "weight: got kernel size 0"),
        (
            {"weight": torch.zeros(4, 1, 7, 7)},
            "weight: got 4 filters, expected one for each of the 3",
        ),
        ({"weight": torch.zeros(3, 1, 0, 0)}, "weight: got kernel size 0"),
        ({"weight": torch.zeros(3, 1, 7, 7).half()}, "weight: got dtype torch.float16, expected"),
        ({"bias": torch.zeros(4)}, r"bias: got shape \(4,\), expected \(3,\)"),
        ({"bias": torch.zeros(3).int()}, "bias: got dtype torch.int32, expected a floating dtype"),
        (
            {"weight": torch.zeros(3, 1, 7, 7, device="meta")},
            "weight: got device meta, expected cpu",
        ),
        ({"bias": torch.zeros(3, device="meta")}, "bias: got device meta, expected cpu"),
        ({"impl": "cudnn"}, "impl: got 'cudnn', expected one of 'auto', 'cuda', 'triton', 'torch'"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    arguments: dict[str, Any] = {
        "input": torch.zeros(2, 3, 8, 8),
        "weight": torch.zeros(3, 1, 7, 7),
        "bias": torch.zeros(3),
        **change,
    }
    with pytest.raises(ValueError, match=message) as raised:
        depthwise_conv2d(**arguments)
    assert "\n" not in str(raised.value)
    if "bias" not in change:
        del arguments["bias"]
        with pytest.raises(ValueError, match=message):
            convmixer_kernels.explain(**arguments)


@pytest.mark.parametrize("impl", KERNELS)
@pytest.mark.parametrize("k", [1, 4, 17, 33])
def test_kernel_sizes_without_a_kernel(impl: str, k: int) -> None:
    input, weight, bias = tensors(k=k)
    statistics = torch.zeros(3, device=DEVICE), torch.ones(3, device=DEVICE)
    fused = functools.partial(
        convmixer_kernels.depthwise_conv2d_gelu_batch_norm,
        *(input, weight, bias, None, None, *statistics),
        training=False,
    )
    with pytest.raises(ValueError, match=rf"cannot serve this input: .*kernel sizes.*, not {k}\b"):
        fused(impl=impl)
    assert fused().shape == input.shape
    if k > 31:
        with pytest.raises(ValueError, match=rf"cannot serve this input: .*\(kernel size {k}\)"):
            depthwise_conv2d(input, weight, bias, impl=impl)
    assert depthwise_conv2d(input, weight, bias).shape == input.shape


@pytest.mark.parametrize("impl", KERNELS)
def test_dtypes_without_a_kernel(impl: str) -> None:
    input, weight, bias = tensors(dtype=torch.float64)
    with pytest.raises(ValueError, match=r"cannot serve this input: .*float64"):
        depthwise_conv2d(input, weight, bias, impl=impl)


def test_an_unavailable_implementation_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        dispatch.backend("cuda"), "unavailable", lambda device: "no nvcc; install it"
    )
    dispatch._resolve_once.cache_clear()
    with pytest.raises(RuntimeError, match="impl='cuda' is not available: no nvcc; install it"):
        depthwise_conv2d(*tensors(), impl="cuda")
    assert convmixer_kernels.available_impls(DEVICE)["cuda"] == "no nvcc; install it"
    monkeypatch.undo()
    dispatch._resolve_once.cache_clear()


def test_cpu_tensors_need_the_emulated_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONVMIXER_KERNELS_EMULATE")
    reason = dispatch.backend("cuda").unavailable(torch.device("cpu"))
    assert reason is not None and "CONVMIXER_KERNELS_EMULATE=1" in reason


def test_an_emulated_gpu_that_cannot_be_built_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("bindings.cpp does not compile")

    monkeypatch.setattr(emulated_gpu, "extension", fail)
    reason = cuda_device._emulated.__wrapped__()
    assert reason == "the emulated GPU cannot be built (bindings.cpp does not compile)"


# ---- choice of implementation --------------------------------------------------------------------


def test_auto_runs_pytorch_on_the_cpu() -> None:
    input, weight, bias = (tensor.cpu() for tensor in tensors(dtype=torch.float32))
    expected = F.conv2d(input, weight, bias, padding="same", groups=3)
    assert torch.equal(depthwise_conv2d(input, weight, bias), expected)
    text = convmixer_kernels.explain(input, weight)
    assert text.startswith("torch: runs 2x3x8x8 float32 on cpu, kernel size 7")
    assert "not cuda: " in text and "not triton: " in text


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_auto_runs_a_kernel_on_the_gpu() -> None:
    input, weight, _ = tensors()
    assert convmixer_kernels.explain(input, weight).startswith(f"{KERNELS[0]}: ")


@pytest.mark.parametrize("impl", KERNELS)
def test_explain_of_a_named_implementation(impl: str) -> None:
    input, weight, _ = tensors()
    text = convmixer_kernels.explain(input, weight, impl)
    assert text.startswith(f"{impl}: ") and "asked for by name" in text


@pytest.mark.parametrize("impl", ["auto", "torch"])
def test_meta_tensors_have_shapes(impl: str) -> None:
    input, weight, bias = (tensor.to("meta") for tensor in tensors())
    output = convmixer_kernels.depthwise_conv2d(input, weight, bias, impl=impl)
    assert output.is_meta and output.shape == input.shape


@pytest.mark.usefixtures("on_sm_90")
def test_explain_sees_autocast() -> None:
    input, weight, _ = tensors(dtype=torch.float32)
    text = convmixer_kernels.explain(input, weight)
    assert text.startswith("torch: ")
    assert "\nnot cuda: it has no tensor-core path for torch.float32\n" in text
    with torch.autocast(DEVICE, dtype=FP16):
        line = convmixer_kernels.explain(input, weight).splitlines()[0]
    assert line.startswith("cuda: ") and "float16" in line


def measured(**changes: object) -> preference.Measured:
    """A measurement that nobody has made."""
    entry = preference.Measured(
        architecture="sm_90",
        kernel_sizes=(3, 5),
        dtypes=(FP16,),
        layouts=("channels_last",),
        sizes=(1, 8),
        order=("torch", "cuda", "triton"),
        measurement="1 us against 2 us at 64x512x7x7",
    )
    return dataclasses.replace(entry, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", architectures.ARCHITECTURES, ids=lambda each: each.name)
def test_our_kernels_come_first_where_there_are_tensor_cores(
    architecture: architectures.Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preference, "MEASURED", ())
    for kernel_size in (None, 3, 15):
        for dtype in (FP16, torch.bfloat16):
            (preferred,) = preference.possible(architecture, preference.Problem(kernel_size, dtype))
            assert preferred == preference.Preference(("cuda", "triton", "torch"))
        for dtype in (torch.float32, torch.float64):
            (preferred,) = preference.possible(architecture, preference.Problem(kernel_size, dtype))
            assert preferred.order == ("torch", "cuda", "triton")
            assert preferred.reason == f"it has no tensor-core path for {dtype}"
    for taps, first in ((1, "torch"), (8, "torch"), (9, "cuda"), (961, "cuda")):
        problem = preference.Problem(None, FP16, taps=taps)
        (preferred,) = preference.possible(architecture, problem)
        assert preferred.order[0] == first
        assert preferred.reason == (
            f"of {taps} taps, PyTorch needs few products" if taps < 9 else None
        )


@pytest.mark.parametrize(
    "entry", preference.MEASURED, ids=lambda entry: f"{entry.architecture}-{entry.kernel_sizes}"
)
def test_measurements_name_what_there_is(entry: preference.Measured) -> None:
    assert entry.architecture in [each.name for each in architectures.ARCHITECTURES]
    assert sorted(entry.order) == sorted(preference.IMPLEMENTATIONS)
    assert entry.order != preference.IMPLEMENTATIONS
    assert entry.sizes[0] <= entry.sizes[1] and entry.measurement


@pytest.mark.usefixtures("on_sm_90")
@pytest.mark.parametrize(
    ("changes", "k", "height", "expected"),
    [
        ({}, 3, 7, "torch"),
        ({}, 5, 8, "torch"),
        ({}, 7, 7, "cuda"),
        ({}, 3, 9, "cuda"),
        ({"sizes": (8, 14)}, 3, 7, "cuda"),
        ({"dtypes": (torch.bfloat16,)}, 3, 7, "cuda"),
        ({"layouts": ("planar",)}, 3, 7, "cuda"),
        ({"layouts": ("planar", "channels_last")}, 3, 7, "torch"),
        ({"architecture": "sm_80"}, 3, 7, "cuda"),
        ({"order": ("triton", "cuda", "torch")}, 3, 7, "triton"),
        ({"order": ("cuda", "torch", "triton")}, 3, 7, "cuda"),
    ],
)
def test_auto_follows_what_was_measured(
    changes: dict[str, object],
    k: int,
    height: int,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preference, "MEASURED", (measured(**changes),))
    input, weight, _ = tensors((2, 8, height, 8), k)
    input = channels_last(input)
    assert dispatch.resolve(input, weight, "auto") == expected
    assert dispatch.resolve(input, weight, "cuda") == "cuda"
    assert dispatch.resolve(input, None, "auto") == "cuda"
    assert dispatch.resolve(input, weight, "auto", fused=True) == "cuda"
    choice, *passed_over = convmixer_kernels.explain(input, weight).split("\n")
    assert choice.startswith(f"{expected}: runs 2x8x{height}x8 float16 on {DEVICE}")
    order = ", ".join(measured(**changes).order)
    reason = f"on sm_90 the order {order} was measured: 1 us against 2 us at 64x512x7x7"
    others = {"torch": ["cuda", "triton"], "triton": ["cuda"], "cuda": []}[expected]
    assert passed_over == [f"not {name}: {reason}" for name in others]


@pytest.mark.usefixtures("on_sm_90")
@pytest.mark.parametrize(
    ("order", "barred", "chosen", "passed_over"),
    [
        (("triton", "cuda", "torch"), "triton", "cuda", {"triton": "it is not installed"}),
        (
            ("cuda", "torch", "triton"),
            "cuda",
            "torch",
            {
                "cuda": "it is not installed",
                "triton": "on sm_90 the order cuda, torch, triton was measured: "
                "1 us against 2 us at 64x512x7x7",
            },
        ),
    ],
)
def test_the_next_of_the_measured_order_runs_where_the_first_is_not_there(
    order: tuple[str, ...],
    barred: str,
    chosen: str,
    passed_over: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preference, "MEASURED", (measured(order=order),))
    reasons = {barred: "it is not installed"}
    monkeypatch.setattr(dispatch, "_barred", lambda name, *what: reasons.get(name))
    input, weight, _ = tensors((2, 8, 7, 7), 3)
    choice, *others = convmixer_kernels.explain(channels_last(input), weight).split("\n")
    assert choice.startswith(f"{chosen}: ")
    assert others == [f"not {name}: {reason}" for name, reason in passed_over.items()]


@pytest.mark.usefixtures("on_sm_90")
@pytest.mark.parametrize("training", [False, True])
def test_measurements_of_the_convolution_alone_do_not_order_fused_calls(
    training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preference, "MEASURED", (measured(),))
    input, weight, _ = tensors((2, 8, 7, 7), 3)
    input = channels_last(input)
    statistics = [torch.ones(8, device=DEVICE) for _ in range(4)]
    assert dispatch.convolution_at_once(input, weight, None, "auto") is None
    assert dispatch.convolution_at_once(input, weight, None, "auto", fused=True) == "cuda"
    with Operators() as operators:
        depthwise_conv2d(input, weight)
        convmixer_kernels.depthwise_conv2d_gelu_batch_norm(
            input, weight, None, *statistics, training=training
        )
    (fused,) = operators.called
    assert fused.startswith("depthwise_conv2d_batch_norm")


@pytest.mark.usefixtures("on_sm_90")
def test_explain_tells_a_transform_from_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preference, "MEASURED", (measured(order=("cuda", "torch", "triton")),))
    monkeypatch.setattr(dispatch, "_only_in_pytorch", lambda: "a transform runs")
    input, weight, _ = tensors((2, 8, 7, 7), 3)
    choice, *others = convmixer_kernels.explain(channels_last(input), weight).split("\n")
    assert choice.startswith("torch: ") and others[0] == "not cuda: a transform runs"
    assert others[1].startswith("not triton: on sm_90 the order cuda, torch, triton was measured")


@pytest.mark.usefixtures("on_sm_90")
@pytest.mark.parametrize(("barred", "chosen"), [(None, "cuda"), ("cuda", None)])
def test_a_choice_without_a_plane_is_made_if_every_plane_has_it(
    barred: str | None, chosen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without CUDA the plane decides between PyTorch, measured faster, and Triton."""
    monkeypatch.setattr(preference, "MEASURED", (measured(order=("cuda", "torch", "triton")),))
    monkeypatch.setattr(dispatch, "_barred", lambda name, *what: "no" if name == barred else None)
    device = torch.device(DEVICE)
    assert dispatch._resolve_once("auto", device, FP16, (3, 3, 1, 1), False, None).name == chosen


@pytest.mark.usefixtures("on_sm_90")
@pytest.mark.parametrize(
    ("entries", "sizes_compiled"),
    [
        ((), 1),
        ((measured(layouts=("planar",)),), 2),
        ((measured(layouts=("planar",), order=("cuda", "torch", "triton")),), 1),
    ],
)
def test_a_compiled_choice_depends_on_the_plane_if_measurements_differ_in_who_runs(
    entries: tuple[preference.Measured, ...],
    sizes_compiled: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The choice depends in no case on the number of images."""
    monkeypatch.setattr(preference, "MEASURED", entries)
    seen: list[str] = []

    def function(input: Tensor, weight: Tensor) -> Tensor:
        name = dispatch.resolve(input, weight, "auto")
        return input * (2 if name == "torch" else 3)

    compiler = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=compiler)
    for size in (7, 12):
        for images in (2, 3):
            input, weight, _ = tensors((images, 3, size, size), 3)
            seen.append("torch" if torch.equal(compiled(input, weight), input * 2) else "cuda")
    assert seen == ["torch" if sizes_compiled == 2 else "cuda"] * 2 + ["cuda"] * 2
    assert compiler.frame_count == sizes_compiled


def test_available_impls_lists_all(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cuda":
        monkeypatch.delenv(
            "CONVMIXER_KERNELS_EMULATE"
        )  # the emulated one would be built for this question
    assert list(convmixer_kernels.available_impls()) == ["cuda", "triton", "torch"]
    assert convmixer_kernels.available_impls("cpu")["torch"] is None


# ---- autograd ------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", KERNELS)
@pytest.mark.parametrize(
    ("needed", "calls"),
    [
        ({"input"}, ["input_gradient"]),
        ({"weight"}, ["weight_gradient"]),
        ({"bias"}, []),
        ({"weight", "bias"}, ["weight_gradient"]),
        ({"input", "bias"}, ["input_gradient"]),
        ({"input", "weight", "bias"}, ["input_gradient", "weight_gradient"]),
    ],
)
def test_only_the_gradients_asked_for(impl: str, needed: set[str], calls: list[str]) -> None:
    *leaves, grad_output = random_case((2, 3, 5, 5, 3), FP16)
    everything = run(impl, *leaves, grad_output)
    named = dict(zip(("input", "weight", "bias"), leaves, strict=True))
    for name in needed:
        named[name].requires_grad_()
    output = depthwise_conv2d(**named, impl=impl)
    with Operators() as operators:
        output.backward(grad_output)
    assert [name.removeprefix("depthwise_conv2d_") for name in operators.called] == calls
    for name, leaf in named.items():
        assert (leaf.grad is not None) == (name in needed)
        if leaf.grad is not None:
            torch.testing.assert_close(leaf.grad, getattr(everything, f"grad_{name}"))


@pytest.mark.parametrize("impl", KERNELS)
def test_what_is_not_needed_is_not_kept(impl: str) -> None:
    """The weight is kept for every gradient, as `F.conv2d` keeps it; the input is not."""
    input, weight, bias = tensors()
    frozen, leaf = weight, weight.clone().requires_grad_()
    for operands, expected in (
        ((input, leaf, bias), [input, leaf]),
        ((input.clone().requires_grad_(), frozen, bias), [frozen]),
        ((input, frozen, bias.clone().requires_grad_()), [frozen]),
    ):
        output = depthwise_conv2d(*operands, impl=impl)
        kept = [tensor for tensor in output.grad_fn.saved_tensors if tensor is not None]  # type: ignore[union-attr]
        assert [each.data_ptr() for each in kept] == [each.data_ptr() for each in expected]
    assert not depthwise_conv2d(input, weight.detach(), bias, impl=impl).requires_grad


@pytest.mark.parametrize("impl", KERNELS)
def test_a_second_derivative_is_refused(impl: str) -> None:
    input, weight, bias = tensors()
    output = depthwise_conv2d(input.requires_grad_(), weight.requires_grad_(), bias, impl=impl)
    (grad,) = torch.autograd.grad(output.sum(), input, create_graph=True)
    assert grad.requires_grad
    with pytest.raises(
        RuntimeError, match=f"impl='{impl}'.* can be differentiated once; use impl="
    ):
        grad.sum().backward()


def test_pytorch_gives_second_derivatives() -> None:
    input, weight, bias = tensors((1, 2, 3, 3), 3, torch.float64)
    leaves = (input.requires_grad_(), weight.requires_grad_(), bias.double().requires_grad_())
    assert torch.autograd.gradgradcheck(lambda *x: depthwise_conv2d(*x, impl="torch"), leaves)


# ---- autocast ------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", [*KERNELS, "torch"])
def test_autocast_casts_input_and_weight_only(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.dtype, ...]] = []
    forward = dispatch.backend(impl).forward

    def record(input: Tensor, weight: Tensor, bias: Tensor, dilation: tuple[int, int]) -> Tensor:
        seen.append((input.dtype, weight.dtype, bias.dtype))
        result: Tensor = forward(input, weight, bias, dilation)
        return result

    monkeypatch.setattr(dispatch.backend(impl), "forward", record)
    input, weight, bias = (tensor.requires_grad_() for tensor in tensors(dtype=torch.float32))
    with torch.autocast(DEVICE, FP16):
        output = depthwise_conv2d(input, weight, bias, impl=impl)
    assert seen == [(FP16, FP16, torch.float32)] and output.dtype == FP16
    output.backward(torch.randn_like(output))
    for leaf in (input, weight, bias):
        assert leaf.grad is not None and leaf.grad.dtype == torch.float32


def test_autocast_leaves_float64_alone() -> None:
    arguments = tensors(dtype=torch.float64)
    expected = depthwise_conv2d(*arguments)
    with torch.autocast(DEVICE, FP16):
        output = depthwise_conv2d(*arguments)
    assert output.dtype == torch.float64 and torch.equal(output, expected)


# ---- operators and compilation -------------------------------------------------------------------


@pytest.mark.parametrize("impl", KERNELS)
def test_operators_pass_opcheck(impl: str) -> None:
    input, weight, bias = tensors((2, 3, 5, 5), k=3)
    leaves = [tensor.clone().requires_grad_() for tensor in (input, weight, bias)]
    for operator, arguments in (
        (ops.depthwise_conv2d.overload, (*leaves, impl)),
        (ops.depthwise_conv2d.overload, (input, weight, None, impl)),
        (ops.depthwise_conv2d_input_gradient, (input, weight, impl)),
        (ops.depthwise_conv2d_weight_gradient, (input, input, 3, True, impl)),
        (ops.depthwise_conv2d_weight_gradient, (input, input, 3, False, impl)),
    ):
        torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("impl", KERNELS)
def test_an_operator_that_is_called_without_its_last_arguments_has_gradients(impl: str) -> None:
    """A graph that was saved calls it, and the dispatcher leaves out what are the defaults."""
    input, weight, bias = tensors()
    grads = []
    for settings in ((impl,), (impl, False, [1, 1])):
        leaves = [tensor.clone().requires_grad_() for tensor in (input, weight, bias)]
        output = torch.ops.convmixer_kernels.depthwise_conv2d(*leaves, *settings)
        grads.append(torch.autograd.grad(output, leaves, torch.ones_like(output)))
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


@pytest.mark.parametrize("impl", KERNELS)
@pytest.mark.parametrize(
    "layout", [torch.Tensor.clone, channels_last, channels_outermost, lambda t: t[:, :, 1:, 1:]]
)
def test_fake_results_have_the_strides_of_real_ones(impl: str, layout: object) -> None:
    input, weight, bias = tensors()
    input = layout(input)  # type: ignore[operator]
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(tensor) for tensor in (input, weight, bias)]
        fake = ops.depthwise_conv2d(*fakes, impl)
        fake_gradient = ops.depthwise_conv2d_input_gradient(fakes[0], fakes[1], impl)
    real = ops.depthwise_conv2d(input, weight, bias, impl)
    assert fake.stride() == real.stride() and fake.shape == real.shape and fake.dtype == real.dtype
    assert (
        fake_gradient.stride() == ops.depthwise_conv2d_input_gradient(input, weight, impl).stride()
    )


@pytest.mark.parametrize("impl", [*KERNELS, "auto"])
def test_compiles_without_graph_breaks(impl: str) -> None:
    def function(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return depthwise_conv2d(input * 2, weight, bias, impl=impl).relu()

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for images in (2, 3):
        leaves = [tensor.requires_grad_() for tensor in tensors((images, 3, 8, 8))]
        output, expected = compiled(*leaves), function(*leaves)
        assert torch.equal(output, expected)
        grad = torch.randn_like(output)
        grads = torch.autograd.grad(output, leaves, grad)
        for actual, wanted in zip(grads, torch.autograd.grad(expected, leaves, grad), strict=True):
            assert torch.equal(actual, wanted)


# ---- large tensors -------------------------------------------------------------------------------


@pytest.mark.memory
@pytest.mark.parametrize("impl", KERNELS)
def test_strides_beyond_32_bits(impl: str) -> None:
    # Two images 2^32 elements apart; only the pages that hold them are ever touched.
    generator = torch.Generator().manual_seed(0)
    apart = torch.empty(2**32 + 256, dtype=FP16, device=DEVICE)
    far = apart.as_strided((2, 3, 8, 8), (2**32, 64, 8, 1))
    far.copy_(torch.randn(far.shape, generator=generator))
    near = far.contiguous()
    _, weight, bias = tensors()
    for arguments in ((weight, bias, impl), (weight, None, impl)):
        expected = ops.depthwise_conv2d(near, *arguments)
        assert torch.equal(ops.depthwise_conv2d(far, *arguments), expected)
    expected, _ = ops.depthwise_conv2d_weight_gradient(near, near, 7, False, impl)
    actual, _ = ops.depthwise_conv2d_weight_gradient(far, far, 7, False, impl)
    assert torch.equal(actual, expected)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("k", [1, 2, 4, 8, 9, 31])
def test_the_reference_is_same_padding(k: int) -> None:
    input, weight, bias = tensors(k=k, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, of a padded copy
        expected = F.conv2d(input, weight, bias.double(), padding="same", groups=3)
    torch.testing.assert_close(depthwise_conv2d(input, weight, bias, impl="torch"), expected)
