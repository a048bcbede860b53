"""DepthwiseConv2d and the conversion of other people's models."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from convmixer_kernels import (
    DepthwiseConv2d,
    convert_depthwise,
    depthwise_conv2d,
    depthwise_conv2d_gelu_batch_norm,
    gelu_batch_norm,
    modules,
)
from convmixer_kernels.convert import unconverted_convolutions


def plain(channels: int, size: int, **arguments) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, size, padding="same", groups=channels, **arguments)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_conv2d_with_the_same_seed(size, bias):
    torch.manual_seed(0)
    expected = plain(4, size, bias=bias)
    torch.manual_seed(0)
    layer = DepthwiseConv2d(4, size, bias)

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


def test_single_image():
    layer = DepthwiseConv2d(3, 5)
    image = torch.randn(3, 8, 9)
    torch.testing.assert_close(layer(image), layer(image[None])[0])


def test_impl_reaches_the_function_and_is_shown(monkeypatch):
    seen = []

    def record(input, weight, bias, *, impl):
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
    r"dilation is \(2, 2\), not 1": edit(dilation=(2, 2)),
    r"dilation is \(3, 3\), not 1": edit(dilation=(3, 3), padding=(3, 3)),
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
    monkeypatch.setattr(modules, "depthwise_conv2d", lambda *_, impl: called.append(impl))
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
        ({"kernel_size": (3, 3)}, r"kernel_size: got \(3, 3\)"),
        ({"impl": "cudnn"}, "impl: got 'cudnn'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        DepthwiseConv2d(**{"channels": 4, "kernel_size": 3, **arguments})
    assert "\n" not in str(caught.value)


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
    pass


INELIGIBLE = [
    (nn.Conv1d(4, 4, 3), "a Conv1d is no nn.Conv2d"),
    (OwnConv2d(4, 4, 3, padding=1, groups=4), "OwnConv2d is a subclass"),
    (nn.Conv2d(4, 4, 3, padding=1), "1 groups, 4 input and 4 output channels"),
    (nn.Conv2d(4, 8, 3, padding=1, groups=4), "4 groups, 4 input and 8 output channels"),
    (nn.Conv2d(4, 4, (3, 5), padding="same", groups=4), "kernel size 3 x 5 is not square"),
    (nn.Conv2d(4, 4, 3, padding=1, stride=2, groups=4), r"stride is \(2, 2\)"),
    (nn.Conv2d(4, 4, 3, padding="same", dilation=2, groups=4), r"dilation is \(2, 2\)"),
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
    assert convert_depthwise(model) == []
    reasons = unconverted_convolutions(model)
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
    names = convert_depthwise(model, impl="torch")

    assert names == ["spelled", "spelled_out", "inner.0", "alias", "one"]
    assert all(type(model.get_submodule(name)) is DepthwiseConv2d for name in names)
    assert all(model.get_submodule(name).impl == "torch" for name in names)
    assert model.alias is model.inner[0]
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    assert list(model.state_dict()) == list(original.state_dict())

    image = torch.randn(2, 3, 9, 8)
    output, expected = model(image), original(image)
    torch.testing.assert_close(output, expected)
    gradient = torch.randn_like(output)
    output.backward(gradient)
    expected.backward(gradient)
    for parameter, other in zip(model.parameters(), original.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)

    assert unconverted_convolutions(model) == {
        "stem": "not depthwise: 1 groups, 3 input and 4 output channels",
        "strided": "stride is (2, 2), not 1",
    }


def test_convert_again_changes_the_implementation():
    model = Model()
    convert_depthwise(model)
    layer = model.spelled
    names = convert_depthwise(model, impl="torch")
    assert names == ["spelled", "spelled_out", "inner.0", "alias", "one"]
    assert model.spelled is layer
    assert layer.impl == "torch"


def test_convert_timm_model():
    convnext = pytest.importorskip("timm.models.convnext")
    torch.manual_seed(0)
    model = convnext.ConvNeXt(depths=(1, 1, 1, 1), dims=(4, 8, 8, 8), num_classes=5).eval()
    image = torch.randn(1, 3, 64, 64)
    expected = model(image)
    names = convert_depthwise(model)
    assert names == [f"stages.{i}.blocks.0.conv_dw" for i in range(4)]
    torch.testing.assert_close(model(image), expected)


def test_convert_refuses_a_lone_convolution_and_an_unknown_implementation():
    with pytest.raises(ValueError, match=r"lone convolution.*from_conv2d"):
        convert_depthwise(plain(4, 3))
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
