"""Outputs, gradients and graphs of the operations as PyTorch's own tools expect them.

What `nn.Conv2d` and `F.batch_norm` allow: changing outputs in place, gradients with the strides of
their parameters, graphs that are saved and trained, derivatives of every kind.
"""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from convmixer import ConvMixer
from convmixer_kernels import (
    DepthwiseConv2d,
    depthwise_conv2d,
    depthwise_conv2d_gelu_batch_norm,
    dispatch,
    explain,
    gelu_batch_norm,
    layout,
)
from convmixer_kernels.backends import reference
from tests.helpers import strided
from tests.helpers.depthwise_cases import DEVICE, FP16
from tests.helpers.python_process import run_python

pytestmark = pytest.mark.gpu

LAYOUTS = {
    "contiguous": Tensor.clone,
    "CNHW": strided.channels_outermost,
    "channels last": strided.channels_last,
    "slice of channels": strided.slice_of_channels,
    "slice of rows": strided.slice_of_rows_and_columns,
    "expanded": strided.expanded_images,
}
OPERATIONS = ("convolution", "training", "frozen", "alone", "alone frozen")
PARAMETERS = ("weight", "bias", "gamma", "beta")
# Triton, which is interpreted here, takes a few of them.
IMPLEMENTATIONS = ("cuda", "torch")
every_layout = pytest.mark.parametrize("layout_name", LAYOUTS)
every_operation = pytest.mark.parametrize("operation", OPERATIONS)
every_implementation = pytest.mark.parametrize("impl", IMPLEMENTATIONS)


def image(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape or (2, 3, 4, 5), generator=generator).to(DEVICE, FP16)


def parameters(channels: int = 3, k: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"weight": (channels, 1, k, k), **dict.fromkeys(PARAMETERS[1:], (channels,))}
    values = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    # PyTorch's own convolution takes a bias of its dtype.
    return {
        name: value.to(DEVICE, FP16 if name == "weight" else torch.float32)
        for name, value in values.items()
    }


def call(operation: str, input: Tensor, given: dict[str, Tensor], impl: str) -> Tensor:
    """One of the public functions; the residual is always there."""
    weight, bias, gamma, beta = (given[name] for name in PARAMETERS)
    if operation == "convolution":
        return depthwise_conv2d(input, weight, bias, impl=impl)
    mean, var = torch.full((2, len(gamma)), 0.5, device=DEVICE)
    training = not operation.endswith("frozen")
    options: dict[str, Any] = {"training": training, "impl": impl}
    if operation.startswith("alone"):
        norm = (gamma, beta, mean, var)
        return gelu_batch_norm(input, *norm, bias=bias, residual=input, **options)
    return depthwise_conv2d_gelu_batch_norm(
        input, weight, bias, gamma, beta, mean, var, residual=True, **options
    )


# ---- outputs -------------------------------------------------------------------------------------


def change_in_place(output: Tensor) -> None:
    output += 1
    output[:1, 1:] = 0.25
    output.transpose(0, 1)[0].mul_(2)
    F.relu_(output)


@pytest.mark.filterwarnings("error")
@every_layout
@every_operation
@every_implementation
def test_outputs_may_be_changed_in_place(impl: str, operation: str, layout_name: str) -> None:
    input = LAYOUTS[layout_name](image())
    given = parameters()
    grads = []
    for in_place in (True, False):
        leaves = [input.detach().requires_grad_()]
        leaves += [value.detach().requires_grad_() for value in given.values()]
        output = call(operation, leaves[0], dict(zip(given, leaves[1:], strict=True)), impl)
        assert not output._is_view()
        assert output.stride() == layout.empty_like_input(input).stride()
        # Apply the function to a copy of which there is no view.
        changed = output if in_place else output.clone()
        change_in_place(changed)
        changed.float().square().sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    for actual, expected in zip(*grads, strict=True):
        assert (actual is None) == (expected is None)
        assert actual is None or torch.equal(actual, expected)


@pytest.mark.filterwarnings("error")
@every_layout
@every_operation
@every_implementation
def test_outputs_without_gradients_are_leaves(impl: str, operation: str, layout_name: str) -> None:
    """A frozen backbone has such outputs, whether its parameters require grad or not."""
    input = LAYOUTS[layout_name](image())
    given = parameters()
    for required in (True, False):
        for value in given.values():
            value.requires_grad_(required)
        with torch.set_grad_enabled(not required):
            output = call(operation, input, given, impl)
        change_in_place(output)
        assert output.detach_() is output and output.is_leaf
        output.requires_grad_()
        (output * 2).sum().backward()
        assert output.grad is not None
    with torch.inference_mode():
        output = call(operation, input, given, impl)
        change_in_place(output)
    assert output.is_inference()
    with torch.no_grad():
        output = call(operation, input, given, impl)
        assert output.resize_(1, 3, 2, 2).shape == (1, 3, 2, 2)
        assert output.set_(image()).shape == (2, 3, 4, 5)  # type: ignore[call-overload]


@pytest.mark.parametrize("operation", ["convolution", "alone frozen"])
def test_outputs_of_triton_may_be_changed_in_place(operation: str) -> None:
    test_outputs_may_be_changed_in_place("triton", operation, "CNHW")


@pytest.mark.parametrize("layout_name", ["CNHW", "channels last"])
@pytest.mark.parametrize("operation", ["convolution", "training"])
def test_outputs_are_changed_in_place_when_compiled(operation: str, layout_name: str) -> None:
    input, given = LAYOUTS[layout_name](image()), parameters()

    def function(input: Tensor) -> Tensor:
        output = call(operation, input, given, "cuda")
        change_in_place(output)
        return output

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for required in (False, True):
        leaves = [input.detach().requires_grad_(required) for _ in range(2)]
        actual, expected = compiled(leaves[0]), function(leaves[1])
        assert torch.equal(actual, expected)
        if required:
            for output, leaf in ((actual, leaves[0]), (expected, leaves[1])):
                output.float().square().sum().backward()
                assert leaf.grad is not None
            torch.testing.assert_close(leaves[0].grad, leaves[1].grad)


def test_features_of_a_model_may_be_changed_in_place() -> None:
    model = ConvMixer(8, 1, 3, 2, 5, dw_impl="cuda").to(DEVICE).half()
    features = model.forward_features(image(2, 3, 8, 8))
    features += 1
    features.float().sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "head" not in name)


# ---- strides of gradients ------------------------------------------------------------------------


def bucket_strides(parameter: Tensor) -> tuple[int, ...]:
    """The strides of a view of DistributedDataParallel's buckets."""
    if torch.ops.aten.is_non_overlapping_and_dense(parameter):
        return parameter.stride()
    return torch.empty_like(parameter, memory_format=torch.contiguous_format).stride()


def transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


def odd_strides(tensor: Tensor) -> Tensor:
    """Other strides along dimensions of size 1, where they say nothing."""
    strides = [
        stride if size > 1 else 5 + dimension
        for dimension, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True))
    ]
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=DEVICE).copy_(
        tensor
    )


FILTERS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.clone,
    "channels last": lambda tensor: tensor.to(memory_format=torch.channels_last),
    "transposed": transposed,
    "channels innermost": lambda tensor: tensor.permute(1, 2, 3, 0).clone().permute(3, 0, 1, 2),
    "odd strides": odd_strides,
    "every other": strided.every_other_pixel,
}


@pytest.mark.parametrize("half", [True, False], ids=["half", "autocast"])
@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("filters", FILTERS)
@every_operation
@every_implementation
def test_gradients_have_the_strides_of_their_parameters(
    impl: str, operation: str, filters: str, channels: int, half: bool
) -> None:
    given = {}
    for name, value in parameters(channels).items():
        changed = value if half else value.float()
        if name == "weight":
            changed = FILTERS[filters](changed)
        elif filters == "every other":
            changed = strided.every_other_pixel(changed)
        elif filters == "odd strides":
            changed = odd_strides(changed)
        given[name] = changed.requires_grad_()
    input = image(2, channels, 4, 5)
    # Autocast casts what a convolution reads.
    if not half and not operation.startswith("alone"):
        input = input.float()
    with torch.autocast(DEVICE, FP16, enabled=not half):
        output = call(operation, input, given, impl)
    output.float().square().sum().backward()
    used = {"convolution": PARAMETERS[:2], "training": PARAMETERS, "frozen": PARAMETERS}
    for name in used.get(operation, PARAMETERS[1:]):
        parameter = given[name]
        assert parameter.grad is not None
        # PyTorch's own gradients of a size of 1 may differ, those of the kernels do not.
        strides = zip(
            parameter.shape, bucket_strides(parameter), parameter.grad.stride(), strict=True
        )
        exact = impl != "torch"
        assert all(wanted == actual for size, wanted, actual in strides if exact or size > 1), (
            name,
            parameter.stride(),
            parameter.grad.stride(),
        )
        assert not parameter.grad._is_view()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_a_model_have_the_strides_of_its_parameters(
    memory_format: torch.memory_format,
) -> None:
    model = ConvMixer(8, 1, 3, 2, 5, dw_impl="cuda").to(DEVICE)
    model = model.half().to(memory_format=memory_format)  # type: ignore[call-overload]
    model(image(4, 3, 8, 8).contiguous(memory_format=memory_format)).float().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride(), name


@pytest.mark.parametrize("grad_layout", ["contiguous", "channels last", "CNHW", "expanded"])
@pytest.mark.parametrize("input_layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("needs_weight", [True, False])
def test_the_gradient_of_an_input_has_its_memory_format(
    needs_weight: bool, input_layout: str, grad_layout: str
) -> None:
    input = LAYOUTS[input_layout](image()).requires_grad_()
    weight = parameters()["weight"].requires_grad_(needs_weight)
    grad = LAYOUTS[grad_layout](image())
    (actual,) = torch.autograd.grad(depthwise_conv2d(input, weight, impl="cuda"), input, grad)
    same = F.conv2d(input, weight, padding=1, groups=3)
    (expected,) = torch.autograd.grad(same, input, grad)
    torch.testing.assert_close(actual, expected, atol=2e-2, rtol=2e-2)
    if grad_layout != "CNHW":
        assert actual.stride() == expected.stride()
    assert not actual._is_view()


# ---- graphs that are saved -----------------------------------------------------------------------


def models(impl: str) -> Iterator[tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    yield ConvMixer(8, 1, 3, 2, 5, dw_impl=impl).to(DEVICE).half(), image(2, 3, 8, 8)
    yield DepthwiseConv2d(3, 3, impl=impl).to(DEVICE).half(), image()


def saved_and_loaded(save: Callable[..., Any], load: Callable[..., Any], graph: Any) -> Any:
    buffer = io.BytesIO()
    save(graph, buffer)
    buffer.seek(0)
    return load(buffer)


def in_every_mode(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test with `training` and `with_gradients` on and off."""
    modes = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
    gradients = pytest.mark.parametrize(
        "with_gradients", [True, False], ids=["gradients", "no gradients"]
    )
    return gradients(modes(test))


def assert_same_step(graph: Any, model: nn.Module, input: Tensor) -> None:
    """Output, all gradients and running statistics."""
    results = []
    for module in (graph, model):
        leaf = input.clone().requires_grad_()
        output = module(leaf)
        output.float().square().sum().backward()
        results.append((output, leaf.grad, dict(module.named_parameters()), module))
    (output, grad, named, _), (wanted, wanted_grad, wanted_named, _) = results
    torch.testing.assert_close(output, wanted)
    torch.testing.assert_close(grad, wanted_grad)
    assert named.keys() == wanted_named.keys()
    for name, parameter in wanted_named.items():
        assert named[name].grad is not None, name
        torch.testing.assert_close(named[name].grad, parameter.grad)
    buffers = dict(graph.named_buffers())
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffers[name], buffer)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@in_every_mode
@every_implementation
def test_export_save_load_and_train(impl: str, training: bool, with_gradients: bool) -> None:
    for model, input in models(impl):
        model.train(training)
        with torch.set_grad_enabled(with_gradients):
            exported = torch.export.export(copy.deepcopy(model), (input,))
        loaded = saved_and_loaded(torch.export.save, torch.export.load, exported)
        for program in (exported, loaded):
            assert_same_step(program.module(), copy.deepcopy(model), input)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@in_every_mode
@every_implementation
def test_trace_save_load_and_train(impl: str, training: bool, with_gradients: bool) -> None:
    for model, input in models(impl):
        model.train(training)
        with torch.set_grad_enabled(with_gradients):
            # Its check would update running statistics.
            traced = torch.jit.trace(copy.deepcopy(model), input, check_trace=not training)
        if not training:
            torch.testing.assert_close(traced(input), model(input))
        traced.load_state_dict(model.state_dict())
        loaded = saved_and_loaded(torch.jit.save, torch.jit.load, traced)
        assert_same_step(loaded, copy.deepcopy(model), input)


def test_graphs_of_triton_are_trained() -> None:
    _, (layer, input) = models("triton")
    exported = torch.export.export(copy.deepcopy(layer), (input,))
    assert_same_step(exported.module(), layer, input)


@every_operation
@every_implementation
def test_a_backward_pass_alone_is_compiled(impl: str, operation: str) -> None:
    """Compiled autograd traces what the graph of a call that nobody compiled would run."""
    from torch._dynamo import compiled_autograd

    given, input = parameters(), image().requires_grad_()
    leaves = [input, *(each.requires_grad_() for each in given.values())]

    def gradients() -> list[Tensor]:
        for leaf in leaves:
            leaf.grad = None
        call(operation, input, given, impl).float().square().sum().backward()
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    expected = gradients()
    compiler = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
    with compiled_autograd._enable(compiler):
        actual = gradients()
    assert len(actual) == len(expected)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


# ---- derivatives that kernels lack ---------------------------------------------------------------


def penalty(impl: str, operation: str, needed: tuple[str, ...]) -> list[Tensor | None]:
    """Gradients of a function of gradients."""
    leaves = {"input": image(), **parameters()}
    for name in needed:
        leaves[name].requires_grad_()
    wanted = [leaves[name] for name in needed]
    output = call(operation, leaves["input"], leaves, impl)
    first = torch.autograd.grad(output.float().square().mean(), wanted, create_graph=True)
    loss = sum(grad.float().square().sum() for grad in first)
    return list(torch.autograd.grad(loss, wanted, allow_unused=True))


@pytest.mark.parametrize(
    "needed", [("input",), ("input", "weight", "bias"), ("weight",), ("bias",)]
)
@every_operation
@pytest.mark.usefixtures("on_sm_90")
def test_auto_gives_derivatives_of_gradients(operation: str, needed: tuple[str, ...]) -> None:
    if operation.startswith("alone"):
        needed = tuple(name for name in needed if name != "weight") or ("gamma", "input")
    if operation != "convolution":
        needed = (*needed, "gamma", "beta")
    assert dispatch.resolve(image(), parameters()["weight"], "auto") == "cuda"
    actual, expected = penalty("auto", operation, needed), penalty("torch", operation, needed)
    for name, ours, wanted in zip(needed, actual, expected, strict=True):
        if wanted is None:
            continue
        assert ours is not None, name
        scale = wanted.abs().max().item()
        assert (ours - wanted).abs().max().item() <= 0.02 * scale + 1e-2, name


@pytest.mark.usefixtures("on_sm_90")
def test_auto_gives_hessians() -> None:
    weight = parameters()["weight"]
    vector = image()

    def function(impl: str) -> Callable[[Tensor], Tensor]:
        return lambda x: depthwise_conv2d(x, weight, impl=impl).float().pow(3).sum()

    for product in (torch.autograd.functional.hvp, torch.autograd.functional.vhp):
        _, actual = product(function("auto"), image(), vector)
        _, expected = product(function("torch"), image(), vector)
        torch.testing.assert_close(actual, expected, atol=0.5, rtol=0.02)
    small = image(1, 3, 2, 2)
    for vectorize in (False, True):
        actual, expected = (
            torch.autograd.functional.jacobian(function(impl), small, vectorize=vectorize)
            for impl in ("auto", "torch")
        )
        torch.testing.assert_close(actual, expected, atol=0.5, rtol=0.02)


def batched_gradients(impl: str) -> Tensor:
    """A backward pass within vmap, of a forward pass outside."""
    input, weight = image().requires_grad_(), parameters()["weight"]
    output = depthwise_conv2d(input, weight, impl=impl)
    grads = torch.stack([image(), image() * 2])
    return torch.autograd.grad(output, input, grads, is_grads_batched=True)[0]


def transforms(operation: str, impl: str) -> dict[str, Callable[[], Any]]:
    given, input = parameters(), image(1, 3, 2, 2)

    def function(x: Tensor) -> Tensor:
        return call(operation, x, given, impl).float().square().sum()

    def forward_mode() -> Any:
        with forward_ad.dual_level():
            output = function(forward_ad.make_dual(input, torch.ones_like(input)))
            return forward_ad.unpack_dual(output).tangent

    return {
        "grad": lambda: torch.func.grad(function)(input),
        "jvp": lambda: torch.func.jvp(function, (input,), (torch.ones_like(input),))[1],
        "jacrev": lambda: torch.func.jacrev(function)(input),
        "hessian": lambda: torch.func.jvp(
            torch.func.grad(function), (input,), (torch.ones_like(input),)
        )[1],
        "forward mode": forward_mode,
    }


# Running statistics would be changed in place within the transforms.
@pytest.mark.parametrize("operation", ["convolution", "frozen", "alone frozen"])
@pytest.mark.usefixtures("on_sm_90")
def test_auto_takes_pytorch_within_transforms(operation: str) -> None:
    expected = transforms(operation, "torch")
    for name, transform in transforms(operation, "auto").items():
        actual = transform()
        assert actual is not None, name
        torch.testing.assert_close(
            actual, expected[name](), msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("operation", ["convolution", "frozen", "alone frozen"])
def test_a_named_kernel_refuses_transforms(operation: str) -> None:
    for name, transform in transforms(operation, "cuda").items():
        with pytest.raises(RuntimeError, match="use impl='torch'") as raised:
            transform()
        assert "\n" not in str(raised.value), name


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("impl", ["auto", "cuda"])
@pytest.mark.usefixtures("on_sm_90")
def test_batched_gradients(impl: str) -> None:
    expected = batched_gradients("torch")
    torch.testing.assert_close(batched_gradients(impl), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.usefixtures("on_sm_90")
def test_vmap() -> None:
    inputs, weight = torch.stack([image(), image() * 2]), parameters()["weight"]
    function = torch.func.vmap(depthwise_conv2d, in_dims=(0, None), randomness="error")
    expected = torch.stack([depthwise_conv2d(x, weight, impl="torch") for x in inputs])
    torch.testing.assert_close(function(inputs, weight), expected, atol=2e-2, rtol=2e-2)
    assert explain(inputs[0], weight).startswith("cuda")
    seen = []

    def explained(x: Tensor) -> Tensor:
        seen.append(explain(x, weight))
        return x

    torch.func.vmap(explained)(inputs)
    assert seen[0].startswith("torch") and "not cuda: a transform of torch.func" in seen[0]
    with pytest.raises(RuntimeError, match=r"impl='cuda'.* use impl='torch'"):
        torch.func.vmap(lambda x: depthwise_conv2d(x, weight, impl="cuda"))(inputs)


def test_functional_call_is_no_transform() -> None:
    layer = DepthwiseConv2d(3, 3, impl="cuda").to(DEVICE).half()
    doubled = {name: p.detach() * 2 for name, p in layer.named_parameters()}
    output = torch.func.functional_call(layer, doubled, (image(),))
    expected = depthwise_conv2d(image(), doubled["weight"], doubled["bias"], impl="cuda")
    assert torch.equal(output, expected)


def test_gradients_that_are_kept_differentiable_may_be_changed_in_place() -> None:
    input, given = image().requires_grad_(), parameters()
    output = call("training", input, given, "cuda")
    (grad,) = torch.autograd.grad(output.float().sum(), input, create_graph=True)
    grad += 1
    assert not grad._is_view() and grad.requires_grad


def test_the_reference_keeps_the_layout_of_channels_outermost() -> None:
    input, weight = strided.channels_outermost(image()).double(), parameters()["weight"].double()
    output = reference.forward(input, weight, None)
    assert output.stride() == input.stride()
    assert torch.equal(output, F.conv2d(input, weight, padding=1, groups=3))


def test_an_import_leaves_dynamo_alone() -> None:
    """Importing it takes a second, which only a program that compiles should spend."""
    program = "import sys, convmixer_kernels; print('torch._dynamo' in sys.modules)"
    assert run_python(program, interpret=False) == "False\n"
