"""DepthwiseConv2d and the conversion of other people's models."""

from __future__ import annotations

import contextlib
import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from convmixer_kernels import (
    DepthwiseConv2d,
    convert_depthwise,
    depthwise_conv2d,
    depthwise_conv2d_gelu_batch_norm,
    gelu_batch_norm,
    modules,
    restore_depthwise,
)
from tests.helpers.modules import assert_same_results


def plain(channels: int, size: int, **arguments) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, size, padding="same", groups=channels, **arguments)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_conv2d_with_the_same_seed(size, bias):
    torch.manual_seed(0)
    expected = plain(4, size, bias=bias)
    torch.manual_seed(0)
    layer = DepthwiseConv2d(4, size, bias=bias)

    assert layer.padding == "same"
    state, expected_state = layer.state_dict(), expected.state_dict()
    assert list(state) == list(expected_state)
    assert all(torch.equal(state[name], expected_state[name]) for name in state)

    image = torch.randn(2, 4, 7, 6, requires_grad=True)
    same_image = image.detach().double().requires_grad_()
    oracle = copy.deepcopy(expected).double()
    output, oracle_output = layer(image), oracle(same_image)
    torch.testing.assert_close(output.double(), oracle_output, atol=1e-5, rtol=1e-5)
    gradient = torch.randn_like(output)
    output.backward(gradient)
    oracle_output.backward(gradient.double())
    torch.testing.assert_close(image.grad.double(), same_image.grad, atol=1e-5, rtol=1e-5)
    for parameter, oracle_parameter in zip(layer.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(
            parameter.grad.double(), oracle_parameter.grad, atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("impl", ["cuda", "triton", "auto", "torch"])
def test_on_the_meta_device_shapes_are_computed_under_any_implementation(impl):
    layer = DepthwiseConv2d(4, 5, impl=impl, device="meta", dtype=torch.float16)
    image = torch.empty(2, 4, 6, 7, device="meta", dtype=torch.float16, requires_grad=True)
    output = layer(image)
    assert (output.shape, output.device.type, output.dtype) == (image.shape, "meta", image.dtype)
    output.sum().backward()
    assert image.grad.shape == image.shape
    assert layer.weight.grad.shape == layer.weight.shape
    assert layer.bias.grad.shape == layer.bias.shape
    named = impl in ("cuda", "triton")
    with contextlib.nullcontext() if not named else pytest.raises(ValueError, match="not 33 x 33"):
        DepthwiseConv2d(4, 33, impl=impl, device="meta", dtype=torch.float16)(image.detach())


@pytest.mark.parametrize("impl", ["auto", "torch", "triton"])
def test_arrays_are_no_tensors(impl):
    layer = DepthwiseConv2d(3, 5, impl=impl)
    for shape in ((3, 4, 4), (1, 3, 4, 4)):
        with pytest.raises(TypeError, match=r"input: got ndarray, expected a torch\.Tensor"):
            layer(np.zeros(shape, dtype=np.float32))
    operands = {"input": torch.zeros(1, 3, 4, 4), "weight": layer.weight, "bias": layer.bias}
    for name, operand in operands.items():
        array = {name: operand.detach().numpy()}
        with pytest.raises(TypeError, match=rf"{name}: got ndarray, expected a torch\.Tensor"):
            depthwise_conv2d(**{**operands, **array}, impl=impl)


def test_single_image():
    layer = DepthwiseConv2d(3, 5)
    image = torch.randn(3, 8, 9)
    torch.testing.assert_close(layer(image), layer(image[None])[0])


def test_impl_reaches_the_function_and_is_shown(monkeypatch):
    seen = []

    def record(input, weight, bias, *, dilation, impl):
        seen.append(impl)
        return input

    monkeypatch.setattr(modules, "depthwise_conv2d", record)
    layer = DepthwiseConv2d(3, 5, impl="torch")
    layer(torch.randn(1, 3, 4, 4))
    layer.impl = "triton"
    layer(torch.randn(1, 3, 4, 4))
    assert seen == ["torch", "triton"]
    assert "kernel_size=(5, 5)" in repr(layer)
    assert "impl='triton'" in repr(layer)


def edit(**changes):
    def change(layer):
        for name, value in changes.items():
            setattr(layer, name, value)

    return change


def grow(layer):
    """Filters of another size, as of a merged branch."""
    layer.weight = nn.Parameter(torch.randn(4, 1, 5, 5))


EDITS = {
    "stride is 2, not 1": edit(stride=2, padding=1),
    r"stride is \(2, 1\), not 1": edit(stride=(2, 1), padding=1),
    r"padding \(1, 1\) is not 'same' for kernel size 3 x 3 with": edit(dilation=(2, 2), padding=1),
    "padding mode is 'circular'": edit(padding_mode="circular"),
    "padding mode is 'reflect'": edit(padding_mode="reflect"),
    r"padding \(0, 0\) is not 'same'": edit(padding=0),
    r"padding \(2, 2\) is not 'same'": edit(padding=(2, 2)),
    r"padding \(0, 0\) is not .same. for": edit(padding="valid"),
    r"kernel_size is \(5, 5\), with weight of shape \(4, 1, 3, 3\)": edit(kernel_size=(5, 5)),
    r"kernel_size is \(3, 3\), with weight of shape \(4, 1, 5, 5\)": grow,
}


@pytest.mark.parametrize("converted", [True, False])
@pytest.mark.parametrize("message", EDITS)
def test_edited_attributes_count(message, converted):
    expected = plain(4, 3)
    layer = DepthwiseConv2d(4, 3)
    if converted:
        layer = DepthwiseConv2d.from_conv2d(copy.deepcopy(expected))
    for module in (layer, expected):
        torch.manual_seed(0)
        EDITS[message](module)
    layer.load_state_dict(expected.state_dict())
    image = torch.randn(2, 4, 8, 7)
    for impl in ("auto", "torch"):
        layer.impl = impl
        assert torch.equal(layer(image), expected(image))
        assert torch.equal(layer(image[0]), expected(image[0]))
    for impl in ("cuda", "triton"):
        layer.impl = impl
        with pytest.raises(ValueError, match=f"impl='{impl}' cannot serve this layer: {message}"):
            layer(image)


@pytest.mark.parametrize(
    "changes",
    [{"dilation": (2, 3)}, {"dilation": [2, 3]}, {"dilation": 2, "padding": (2, 2)}],
)
def test_edited_dilation_is_served(changes):
    expected, layer = plain(4, 3), DepthwiseConv2d(4, 3, impl="triton")
    for module in (layer, expected):
        edit(**changes)(module)
    layer.load_state_dict(expected.state_dict())
    image = torch.randn(2, 4, 8, 7)
    torch.testing.assert_close(layer(image), expected(image))
    assert convert_depthwise(nn.Sequential(expected)).converted == ("0",)


def test_edited_groups_are_an_error_of_pytorch():
    layer = DepthwiseConv2d(4, 3)
    layer.groups = 2
    with pytest.raises(RuntimeError, match="groups=2"):
        layer(torch.randn(2, 4, 8, 7))
    layer.impl = "cuda"
    with pytest.raises(ValueError, match=r"groups is 2, with weight of shape \(4, 1, 3, 3\)"):
        layer(torch.randn(2, 4, 8, 7))


@pytest.mark.parametrize("padding", [1, (1, 1), "same"])
@pytest.mark.parametrize("one", [1, (1, 1)])
def test_other_spellings_of_the_same_attributes_run_kernels(padding, one, monkeypatch):
    called = []
    monkeypatch.setattr(modules, "depthwise_conv2d", lambda *_, dilation, impl: called.append(impl))
    layer = DepthwiseConv2d(4, 3, impl="cuda")
    edit(padding=padding, stride=one, dilation=one)(layer)
    layer(torch.randn(2, 4, 8, 7))
    assert called == ["cuda"]


def test_a_parametrisation_is_computed_once():
    computed = []

    class Doubled(nn.Module):
        def forward(self, weight):
            computed.append(None)
            return 2 * weight

    layer = DepthwiseConv2d(4, 3)
    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    computed.clear()
    layer(torch.randn(2, 4, 8, 7))
    assert len(computed) == 1


def test_symbolic_trace_of_a_converted_model():
    model = Model()
    traced_before = torch.fx.symbolic_trace(model)
    convert_depthwise(model)
    traced = torch.fx.symbolic_trace(model)
    nodes = [[str(node.target) for node in graph.graph.nodes] for graph in (traced, traced_before)]
    assert nodes[0] == nodes[1] and "spelled_out" in nodes[0]
    image = torch.randn(2, 3, 9, 8)
    assert torch.equal(traced(image), model(image))


def test_symbolic_trace_of_the_functions():
    class Functions(nn.Module):
        def forward(self, image, weight, scale):
            image = depthwise_conv2d(image, weight, impl="torch")
            norm = (scale, None, None, None)
            image = gelu_batch_norm(image, *norm, training=True, activation="relu")
            return depthwise_conv2d_gelu_batch_norm(
                image, weight, None, *norm, residual=True, training=True
            )

    module = Functions()
    traced = torch.fx.symbolic_trace(module)
    called = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert called == [depthwise_conv2d, gelu_batch_norm, depthwise_conv2d_gelu_batch_norm]
    arguments = (torch.randn(2, 4, 6, 5), torch.randn(4, 1, 3, 3), torch.rand(4))
    assert torch.equal(traced(*arguments), module(*arguments))


def test_features_of_a_converted_model():
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    model = Model()
    convert_depthwise(model)
    image = torch.randn(2, 3, 9, 8)
    features = extraction.create_feature_extractor(model, ["spelled", "inner.0"])(image)
    torch.testing.assert_close(features["spelled"], model.spelled(model.stem(image)))


def test_features_of_a_converted_timm_model():
    features_fx = pytest.importorskip("timm.models._features_fx")
    convnext = pytest.importorskip("timm.models.convnext")
    model = convnext.ConvNeXt(depths=(1, 1, 1, 1), dims=(4, 8, 8, 8), num_classes=5).eval()
    image = torch.randn(1, 3, 64, 64)
    name = "stages.1.blocks.0.conv_dw"
    wanted = features_fx.create_feature_extractor(model, [name])(image)[name]
    assert convert_depthwise(model)
    actual = features_fx.create_feature_extractor(model, [name])(image)[name]
    torch.testing.assert_close(actual, wanted)


def test_dtype_and_device():
    layer = DepthwiseConv2d(3, 5, device="meta", dtype=torch.float64)
    assert layer.weight.device.type == layer.bias.device.type == "meta"
    assert layer.weight.dtype == layer.bias.dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0}, "channels: got 0"),
        ({"channels": True}, "channels: got True"),
        ({"kernel_size": -3}, "kernel_size: got -3"),
        (
            {"kernel_size": (3, 3, 3)},
            r"kernel_size: got \(3, 3, 3\), expected an integer or a pair",
        ),
        ({"kernel_size": (3, 0)}, "kernel_size: got 0"),
        ({"dilation": 0}, "dilation: got 0"),
        ({"dilation": (1, 2, 1)}, r"dilation: got \(1, 2, 1\)"),
        ({"impl": "cudnn"}, "impl: got 'cudnn'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        DepthwiseConv2d(**{"channels": 4, "kernel_size": 3, **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pair", [(3, 3), [3, 3]])
def test_kernel_size_as_a_pair(pair):
    torch.manual_seed(0)
    expected = DepthwiseConv2d(4, 3)
    torch.manual_seed(0)
    layer = DepthwiseConv2d(4, pair)
    assert layer.kernel_size == (3, 3)
    assert torch.equal(layer.weight, expected.weight)


def test_the_call_of_conv2d_is_refused():
    """Taken by position, 4 output channels would become the kernel size and 5 the bias."""
    with pytest.raises(TypeError, match="positional arguments"):
        DepthwiseConv2d(4, 4, 5)


def test_from_conv2d_shares_parameters_and_carries_hooks():
    convolution = plain(4, 3)
    convolution.bias.requires_grad_(False)
    convolution.eval()
    calls = []
    convolution.register_forward_hook(lambda *_: calls.append("forward"))
    layer = DepthwiseConv2d.from_conv2d(convolution, "torch")

    assert layer.weight is convolution.weight
    assert layer.bias is convolution.bias
    assert layer.impl == "torch"
    assert not layer.training
    image = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(layer(image), convolution(image))
    assert calls == ["forward", "forward"]

    layer.register_forward_hook(lambda *_: calls.append("own"))
    convolution(image)
    assert calls == ["forward", "forward", "forward"]


def test_from_conv2d_keeps_weight_normalisation():
    with pytest.warns(FutureWarning):
        convolution = nn.utils.weight_norm(plain(4, 3))
    image = torch.randn(2, 4, 5, 5)
    layer = DepthwiseConv2d.from_conv2d(convolution)
    assert set(layer.state_dict()) == {"weight_g", "weight_v", "bias"}
    with torch.no_grad():
        layer.weight_g.mul_(2)
    torch.testing.assert_close(layer(image), convolution(image))


class OwnConv2d(nn.Conv2d):
    """A subclass that computes what `nn.Conv2d` does."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__(channels, channels, size, padding=size // 2, groups=channels)
        self.label = "own"

    def labelled(self) -> str:
        return f"{self.label} {self.kernel_size[0]}"


class ScaledConv2d(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 2


class PaddedConv2d(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input + 1, weight, bias)


INELIGIBLE = [
    (nn.Conv1d(4, 4, 3), "a Conv1d is no nn.Conv2d"),
    (ScaledConv2d(4, 4, 3, padding=1, groups=4), "ScaledConv2d has a forward of its own"),
    (PaddedConv2d(4, 4, 3, padding=1, groups=4), "PaddedConv2d has a _conv_forward of its own"),
    (nn.Conv2d(4, 4, 3, padding=1), "1 groups, 4 input and 4 output channels"),
    (nn.Conv2d(4, 8, 3, padding=1, groups=4), "4 groups, 4 input and 8 output channels"),
    (nn.Conv2d(4, 4, 3, padding=1, stride=2, groups=4), r"stride is \(2, 2\)"),
    (
        nn.Conv2d(4, 4, (3, 5), padding=1, dilation=2, groups=4),
        r"padding \(1, 1\) is not 'same' for kernel size 3 x 5 with dilation 2",
    ),
    (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", groups=4), "mode is 'reflect'"),
    (nn.Conv2d(4, 4, 3, groups=4), r"padding \(0, 0\) is not 'same' for kernel size 3"),
    (nn.Conv2d(4, 4, 3, padding="valid", groups=4), r"padding \(0, 0\) is not 'same'"),
    (nn.Conv2d(4, 4, 4, padding=2, groups=4), r"padding \(2, 2\) is not 'same' for kernel size 4"),
    (plain(4, 3, dtype=torch.complex64), "dtype torch.complex64"),
]


@pytest.mark.parametrize(("module", "message"), INELIGIBLE)
def test_ineligible_layers_are_refused_with_the_reason(module, message):
    with pytest.raises(ValueError, match=message) as caught:
        DepthwiseConv2d.from_conv2d(module)
    assert "\n" not in str(caught.value)


def test_a_patched_or_compiled_forward_is_left_alone():
    patched, compiled = plain(4, 7), plain(4, 7)
    patched.forward = lambda input: input
    compiled.compile(backend="eager")
    model = nn.Sequential(patched, compiled)
    report = convert_depthwise(model)
    assert report.converted == ()
    reasons = report.left
    assert set(reasons) == {"0", "1"}
    assert all("its forward has been replaced or compiled" in reason for reason in reasons.values())


class Model(nn.Module):
    """Eligible: spelled, spelled_out, inner.0 and its alias, one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.spelled = plain(4, 8)
        self.spelled_out = nn.Conv2d(4, 4, 7, padding=3, groups=4, bias=False)
        self.inner = nn.Sequential(plain(4, 5), nn.ReLU())
        self.alias = self.inner[0]
        self.one = nn.Conv2d(4, 4, 1, padding="valid", groups=4)
        self.strided = nn.Conv2d(4, 4, 3, padding=1, stride=2, groups=4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.spelled_out(self.spelled(self.stem(image)))
        return self.strided(self.one(self.alias(self.inner(features))))


def test_convert_depthwise():
    model = Model()
    original = copy.deepcopy(model)
    parameters = list(model.parameters())
    report = convert_depthwise(model, impl="torch")
    names = report.converted

    assert names == ("spelled", "spelled_out", "inner.0", "alias", "one")
    assert all(type(model.get_submodule(name)) is DepthwiseConv2d for name in names)
    assert all(model.get_submodule(name).impl == "torch" for name in names)
    assert model.alias is model.inner[0]
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    assert list(model.state_dict()) == list(original.state_dict())

    assert_same_results(model, original, torch.randn(2, 3, 9, 8))

    assert report.left == {
        "stem": "not depthwise: 1 groups, 3 input and 4 output channels",
        "strided": "stride is (2, 2), not 1",
    }


def test_convert_again_changes_the_implementation():
    model = Model()
    convert_depthwise(model)
    layer = model.spelled
    names = convert_depthwise(model, impl="torch").converted
    assert names == ("spelled", "spelled_out", "inner.0", "alias", "one")
    assert model.spelled is layer
    assert layer.impl == "torch"


@pytest.mark.parametrize("impl", ["auto", "cuda", "triton"])
def test_only_what_a_kernel_serves_is_converted(impl):
    most = 31
    model = nn.Sequential(*(plain(4, size) for size in (1, 2, 3, most, most + 2)))
    model.append(nn.Conv2d(4, 4, (1, most), padding="same", groups=4))
    model.append(nn.Conv2d(4, 4, 3, padding="same", dilation=most, groups=4))
    model.append(DepthwiseConv2d(4, most + 2, impl="torch"))
    report = convert_depthwise(model, impl)
    assert report.converted == ("0", "1", "2", "3", "5")
    assert all(isinstance(model[int(name)], DepthwiseConv2d) for name in report.converted)
    assert set(report.left) == {"4", "6", "7"}
    assert report.left["6"] == (
        f"no kernel for its filters: it takes filters that reach over up to {most} rows and "
        f"columns, not {2 * most + 1} x {2 * most + 1} (kernel size 3 x 3 with dilation {most})"
    )
    assert type(model[4]) is nn.Conv2d
    assert model[7].impl == "torch"


def test_the_report_has_a_line_for_each_reason():
    model = nn.Sequential(*(plain(4, 3) for _ in range(4)), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    model.append(nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4))
    assert str(convert_depthwise(model)).splitlines() == [
        "converted 4 (0, 1, 2, ...)",
        "left 2 (4, 5): not depthwise: 1 groups, 4 input and 4 output channels",
        "left 1 (6): stride is (2, 2), not 1",
    ]
    assert str(convert_depthwise(nn.Sequential())) == "converted 0"


def test_restore_undoes_a_conversion():
    model = Model()
    model.own = DepthwiseConv2d(4, 3)
    original = copy.deepcopy(model)
    names = convert_depthwise(model, impl="torch").converted
    seen = []
    model.spelled.register_forward_hook(lambda *_: seen.append("hook"))
    parameters = list(model.parameters())
    assert restore_depthwise(model) == names[:-1]
    assert repr(model) == repr(original).replace("impl='auto'", "impl='torch'")
    assert [vars(layer).keys() for layer in model.modules()] == [
        vars(layer).keys() for layer in original.modules()
    ]
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    assert model.alias is model.inner[0]
    image = torch.randn(2, 3, 9, 8)
    assert torch.equal(model(image), original(image))
    assert seen == ["hook"]
    assert restore_depthwise(model) == ()


def test_a_layer_built_as_it_is_has_nothing_to_go_back_to():
    with pytest.raises(ValueError, match="built as DepthwiseConv2d"):
        DepthwiseConv2d(4, 3).to_conv2d()
    assert type(DepthwiseConv2d.from_conv2d(plain(4, 3)).to_conv2d()) is nn.Conv2d


def test_subclasses_that_compute_the_same_are_converted_and_stay_themselves():
    model = nn.Sequential(OwnConv2d(4, 7), OwnConv2d(4, 3))
    image = torch.randn(2, 4, 9, 8)
    expected = model(image)
    assert convert_depthwise(model, impl="torch").converted == ("0", "1")
    assert type(model[0]) is type(model[1])
    for layer in (*model, copy.deepcopy(model[0]), pickle.loads(pickle.dumps(model[0]))):
        assert isinstance(layer, DepthwiseConv2d) and isinstance(layer, OwnConv2d)
        assert layer.labelled() == f"own {layer.kernel_size[0]}"
        assert layer.impl == "torch"
    torch.testing.assert_close(model(image), expected)
    copied = pickle.loads(pickle.dumps(model))
    assert torch.equal(copied(image), model(image))
    assert restore_depthwise(copied) == ("0", "1")
    assert type(copied[0]) is OwnConv2d
    assert torch.equal(copied(image), expected)


@pytest.mark.parametrize("build", [plain, OwnConv2d])
def test_parametrised_layers_stay_parametrised(build):
    model = nn.Sequential(parametrizations.weight_norm(build(4, 3)))
    names, image = list(model.state_dict()), torch.randn(2, 4, 5, 5)
    original = model[0]
    assert convert_depthwise(model).converted == ("0",)
    assert list(model.state_dict()) == names
    assert isinstance(model[0], DepthwiseConv2d)
    with torch.no_grad():
        original.parametrizations.weight.original0.mul_(2)
    torch.testing.assert_close(model(image), original(image))
    expected = model(image)
    restored = nn.Sequential(model[0])
    assert restore_depthwise(restored) == ("0",)
    assert not isinstance(restored[0], DepthwiseConv2d)
    assert torch.equal(restored(image), expected)
    parametrize.remove_parametrizations(model[0], "weight")
    assert isinstance(model[0], DepthwiseConv2d) and isinstance(model[0], type(build(4, 3)))
    assert restore_depthwise(model) == ("0",)
    assert type(model[0]) is type(build(4, 3))
    assert torch.equal(model(image), expected)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("build", [plain, OwnConv2d])
def test_pruned_layers_stay_pruned(build, before):
    """Pruned before the conversion or after it: the mask is applied before every call."""
    model, image = nn.Sequential(build(4, 3)), torch.randn(2, 4, 5, 5)
    if before:
        prune.l1_unstructured(model[0], "weight", 0.5)
    assert convert_depthwise(model).converted == ("0",)
    layer = model[0]
    if not before:
        prune.l1_unstructured(layer, "weight", 0.5)
    mask = layer.weight_mask
    assert mask.sum() == 18
    for _ in range(2):
        expected = nn.functional.conv2d(
            image, layer.weight_orig * mask, layer.bias, padding=1, groups=4
        )
        torch.testing.assert_close(model(image), expected)
        with torch.no_grad():
            layer.weight_orig.mul_(2)
    model(image).sum().backward()
    assert (layer.weight_orig.grad[mask == 0] == 0).all()
    prune.remove(layer, "weight")
    assert restore_depthwise(model) == ("0",)
    assert (model[0].weight[mask == 0] == 0).all()


def test_convert_timm_model():
    convnext = pytest.importorskip("timm.models.convnext")
    torch.manual_seed(0)
    model = convnext.ConvNeXt(depths=(1, 1, 1, 1), dims=(4, 8, 8, 8), num_classes=5).eval()
    image = torch.randn(1, 3, 64, 64)
    expected = model(image)
    names = convert_depthwise(model).converted
    assert names == tuple(f"stages.{i}.blocks.0.conv_dw" for i in range(4))
    torch.testing.assert_close(model(image), expected)


def test_convert_refuses_a_lone_convolution_and_an_unknown_implementation():
    with pytest.raises(ValueError, match=r"lone convolution.*from_conv2d"):
        convert_depthwise(plain(4, 3))
    with pytest.raises(ValueError, match=r"lone convolution.*to_conv2d"):
        restore_depthwise(DepthwiseConv2d(4, 3))
    for function in (convert_depthwise, restore_depthwise):
        with pytest.raises(TypeError, match=r"module: got 'convnext_tiny', expected an nn\.Module"):
            function("convnext_tiny")
    model = nn.Sequential(DepthwiseConv2d(4, 3), plain(4, 3))
    with pytest.raises(ValueError, match="impl: got 'fast'"):
        convert_depthwise(model, impl="fast")
    assert model[0].impl == "auto"
    assert type(model[1]) is nn.Conv2d


def test_copies_keep_the_implementation():
    layer = DepthwiseConv2d.from_conv2d(plain(4, 3), "torch")
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert copied.impl == "torch"
        assert copied.weight is not layer.weight
        image = torch.randn(1, 4, 5, 5)
        torch.testing.assert_close(copied(image), layer(image))
