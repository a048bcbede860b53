"""ConvMixer against figure 3, the equations, and the interface of timm."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convmixer import ConvMixer, FeatureExtractor
from convmixer.model.layers import LayerNorm2d
from convmixer_kernels import DepthwiseConv2d
from tests.model.figure_3 import figure_3


def small(**arguments) -> ConvMixer:
    torch.manual_seed(0)
    defaults = {"dim": 8, "depth": 3, "kernel_size": 5, "patch_size": 4, "n_classes": 10}
    return ConvMixer(**{**defaults, **arguments})


def images(*size: int, seed: int = 1) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def randomise(model: nn.Module) -> nn.Module:
    """Give parameters and running statistics values that no layer leaves as they are."""
    generator = torch.Generator().manual_seed(2)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.4 + 0.1)
    return model


@pytest.mark.parametrize(("kernel_size", "patch_size"), [(9, 7), (8, 2), (3, 1)])
def test_equals_figure_3_in_training_and_evaluation(kernel_size, patch_size):
    torch.manual_seed(0)
    paper = figure_3(12, 2, kernel_size, patch_size, 10)
    torch.manual_seed(0)
    model = ConvMixer(12, 2, kernel_size, patch_size, 10)
    # The same seed gives the same initial values.
    for ours, theirs in zip(model.parameters(), paper.parameters(), strict=True):
        assert torch.equal(ours, theirs)

    batch, gradient = images(3, 3, 23, 30), images(3, 10)
    for mode in (True, False):
        output, expected = model.train(mode)(batch), paper.train(mode)(batch)
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
        output.backward(gradient)
        expected.backward(gradient)
    for ours, theirs in zip(model.parameters(), paper.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)
    for ours, theirs in zip(model.buffers(), paper.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("residual", ["depthwise", "none", "both"])
@pytest.mark.parametrize("stacked", [1, 3])
def test_block_follows_equations_2_and_3(activation, residual, stacked):
    model = small(depth=1, activation=activation, residual=residual, stacked=stacked)
    model = randomise(model).double().eval()
    state = model.state_dict()
    act = {"gelu": F.gelu, "relu": F.relu}[activation]

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, scale, shift = (
            state[f"{name}.{entry}"][:, None, None]
            for entry in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    def convolve(x: Tensor, name: str, **arguments) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **arguments)

    batch = images(2, 3, 12, 16).double()
    x = norm(act(convolve(batch, "stem.0", stride=4)), "stem.2")
    branch = x
    for i in range(stacked):
        branch = act(convolve(branch, f"blocks.0.0.fn.{2 * i}", padding=2, groups=8))
    branch = norm(branch, f"blocks.0.0.fn.{2 * stacked}")
    x = branch if residual == "none" else branch + x
    mixed = norm(act(convolve(x, "blocks.0.1")), "blocks.0.3")
    x = mixed + x if residual == "both" else mixed
    torch.testing.assert_close(model.forward_features(batch), x)
    logits = F.linear(x.mean((2, 3)), state["head.weight"], state["head.bias"])
    torch.testing.assert_close(model(batch), logits)


def test_table_5_stack_has_the_published_size():
    with torch.device("meta"):
        model = ConvMixer(512, 12, 3, 7, 1000, stacked=3)
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_950_568


@pytest.mark.parametrize("channels_last", [False, True])
def test_layer_norm_normalises_channels_at_each_position(channels_last):
    layer = LayerNorm2d(6)
    randomise(layer)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    batch = images(2, 6, 3, 4).contiguous(memory_format=memory_format)
    output = layer(batch)
    for image in range(2):
        for row in range(3):
            for column in range(4):
                values = batch[image, :, row, column].double()
                expected = (values - values.mean()) / (values.var(unbiased=False) + 1e-5).sqrt()
                expected = expected * layer.weight + layer.bias
                torch.testing.assert_close(output[image, :, row, column].double(), expected)
    assert output.is_contiguous(memory_format=memory_format)


def test_layer_norm_replaces_every_batch_norm():
    model = small(norm="layer")
    layers = [module for module in model.modules() if isinstance(module, LayerNorm2d)]
    assert len(layers) == 1 + 2 * 3
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert not list(model.buffers())
    names = [name for name, _ in model.named_parameters()]
    assert names == [name for name, _ in small().named_parameters()]
    batch = images(4, 3, 16, 16)
    # Images do not influence each other.
    torch.testing.assert_close(model(batch)[:1], model(batch[:1]))


@pytest.mark.parametrize("patch_size", [2, 4, 12, 14])
def test_resnet_stem_keeps_the_internal_resolution(patch_size):
    patch, resnet = (
        ConvMixer(2, 1, 3, patch_size, 0, stem=stem, in_chans=1) for stem in ("patch", "resnet")
    )
    sizes = [*range(patch_size, 3 * patch_size + 2), 224]
    for size in sizes:
        batch = torch.zeros(2, 1, size, patch_size)
        assert resnet.stem(batch).shape == patch.stem(batch).shape
    convolution, norm, activation, pooling = resnet.stem
    assert convolution.kernel_size == (patch_size, patch_size)
    assert convolution.stride == (patch_size // 2, patch_size // 2)
    assert [type(norm), type(activation)] == [nn.BatchNorm2d, nn.GELU]
    assert isinstance(pooling, nn.MaxPool2d)
    assert pooling.stride == 2


def test_resnet_stem_computes_convolution_norm_activation_pooling():
    model = randomise(small(stem="resnet")).double().eval()
    state = model.state_dict()
    batch = images(2, 3, 12, 16).double()
    x = F.conv2d(batch, state["stem.0.weight"], state["stem.0.bias"], stride=2, padding=2)
    mean, var = state["stem.1.running_mean"], state["stem.1.running_var"]
    x = F.batch_norm(x, mean, var, state["stem.1.weight"], state["stem.1.bias"])
    x = F.max_pool2d(F.gelu(x), 3, stride=2)
    torch.testing.assert_close(model.stem(batch), x)


@pytest.mark.parametrize("size", [(4, 4), (5, 31), (24, 17)])
def test_any_size_of_at_least_a_patch(size):
    model = small().eval()
    assert model(images(2, 3, *size)).shape == (2, 10)
    assert model.forward_features(images(2, 3, *size)).shape == (2, 8, size[0] // 4, size[1] // 4)


@pytest.mark.parametrize("shape", [(2, 3, 3, 16), (2, 3, 16, 3), (2, 1, 16, 16), (3, 16, 16)])
def test_bad_input(shape):
    expected = re.escape(f"input: got shape {shape}, expected (N, 3, H, W)")
    for call in (small(), small().forward_intermediates):
        with pytest.raises(ValueError, match=expected) as caught:
            call(torch.zeros(shape))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("dim", 0),
        ("dim", 8.0),
        ("depth", 0),
        ("kernel_size", 0),
        ("kernel_size", (3, 3)),
        ("patch_size", -1),
        ("n_classes", -1),
        ("in_chans", 0),
        ("in_chans", True),
        ("stacked", 0),
        ("activation", "silu"),
        ("norm", "group"),
        ("norm", ["batch"]),
        ("residual", "pointwise"),
        ("stem", "conv"),
        ("dw_impl", "cudnn"),
    ],
)
def test_bad_arguments(argument, value):
    message = f"^{argument}: got {re.escape(repr(value))}, expected"
    with pytest.raises(ValueError, match=message) as caught:
        small(**{argument: value})
    assert "\n" not in str(caught.value)


def test_odd_patches_have_no_resnet_stem():
    with pytest.raises(ValueError, match="patch_size: got 7, expected an even size"):
        small(stem="resnet", patch_size=7)


def test_implementation_reaches_every_depthwise_layer():
    model = small(dw_impl="torch", stacked=2)
    layers = [module for module in model.modules() if isinstance(module, DepthwiseConv2d)]
    assert [layer.impl for layer in layers] == ["torch"] * 6


def test_head():
    model = small()
    assert (model.num_classes, model.num_features, model.in_chans) == (10, 8, 3)
    features = model.forward_features(images(2, 3, 16, 16))
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    torch.testing.assert_close(model.forward_head(features), model.get_classifier()(pooled))

    assert small(n_classes=0)(images(2, 3, 16, 16)).shape == (2, 8)


def test_reset_classifier():
    model = small().double().eval()
    features = model.forward_features(images(2, 3, 16, 16).double())
    old = model.get_classifier()
    model.reset_classifier(num_classes=5)
    assert model.num_classes == 5
    assert model.get_classifier() is not old
    assert model.forward_head(features).shape == (2, 5)
    assert model.forward_head(features).dtype == torch.float64
    assert not any(module.training for module in model.modules())

    model.reset_classifier(0, "max")
    torch.testing.assert_close(model.forward_head(features), features.amax((2, 3)))
    model.reset_classifier(0, "")
    assert model.forward_head(features) is features
    with pytest.raises(ValueError, match="num_classes: got 3 without pooling, expected 0"):
        model.reset_classifier(3)
    with pytest.raises(ValueError, match="global_pool: got 'median'"):
        model.reset_classifier(3, "median")
    with pytest.raises(ValueError, match="num_classes: got -1"):
        model.reset_classifier(-1)
    model.reset_classifier(3, "avg")
    assert model.forward_head(features).shape == (2, 3)


def test_parameter_groups():
    model = small()
    group_parameters = pytest.importorskip("timm.models._manipulate").group_parameters
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse))
        assert len(groups) == 1 + 3 + 1
        assert groups[0] == ["stem.0.weight", "stem.0.bias", "stem.2.weight", "stem.2.bias"]
        assert all(name.startswith("blocks.1.") for name in groups[2])
        assert groups[4] == ["head.weight", "head.bias"]


def test_no_weight_decay_names_biases_and_norms():
    model = small(depth=1)
    decayed = {name for name, _ in model.named_parameters()} - model.no_weight_decay()
    convolutions = {"stem.0.weight", "blocks.0.0.fn.0.weight", "blocks.0.1.weight"}
    assert decayed == convolutions | {"head.weight"}


def saved_bytes(model: nn.Module, batch: Tensor) -> tuple[int, Tensor]:
    """Bytes that autograd keeps for the backward pass outside checkpoints, and the output."""
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(batch)
    return total, output


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_gradient_checkpointing_changes_memory_alone(norm, momentum):
    plain = small(norm=norm)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    checkpointed = copy.deepcopy(plain)
    checkpointed.set_grad_checkpointing()
    calls = []
    checkpointed.blocks[1][1].register_forward_hook(lambda *_: calls.append(1))
    buffers = [id(buffer) for buffer in checkpointed.buffers()]
    for step in range(2):
        batch, gradient = images(2, 3, 32, 32, seed=step), images(2, 10, seed=step)
        expected_bytes, expected = saved_bytes(plain, batch)
        used_bytes, output = saved_bytes(checkpointed, batch)
        assert used_bytes < expected_bytes / 2
        torch.testing.assert_close(output, expected, rtol=0, atol=0)
        output.backward(gradient)
        expected.backward(gradient)
    assert len(calls) == 4
    for ours, theirs in zip(checkpointed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=0)
    for ours, theirs in zip(checkpointed.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert [id(buffer) for buffer in checkpointed.buffers()] == buffers

    checkpointed.set_grad_checkpointing(False)
    assert saved_bytes(checkpointed, batch)[0] == expected_bytes


def test_gradient_checkpointing_leaves_statistics_alone_when_backward_fails():
    model = small()
    model.set_grad_checkpointing()
    output = model(images(2, 3, 16, 16))
    state = copy.deepcopy(model.state_dict())

    def fail(*_):
        raise RuntimeError("interrupted")

    model.blocks[0][1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="interrupted"):
        output.sum().backward()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_forward_intermediates():
    model = small().eval()
    batch = images(2, 3, 16, 20)
    outputs = []
    x = model.stem(batch)
    for block in model.blocks:
        x = block(x)
        outputs.append(x)

    features, intermediates = model.forward_intermediates(batch)
    torch.testing.assert_close(features, outputs[-1])
    torch.testing.assert_close(intermediates, outputs)
    for indices, expected in (
        (1, [2]),
        (2, [1, 2]),
        ([0, 2], [0, 2]),
        ([-1, 0], [0, 2]),
        ((-3,), [0]),
    ):
        got = model.forward_intermediates(batch, indices, intermediates_only=True)
        torch.testing.assert_close(got, [outputs[i] for i in expected])

    features, _ = model.forward_intermediates(batch, [1])
    torch.testing.assert_close(features, outputs[2])
    ran = []
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    features, _ = model.forward_intermediates(batch, [1], stop_early=True)
    assert ran == [0, 1]
    torch.testing.assert_close(features, outputs[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"indices": 4}, "indices: got the last 4, expected 1 to 3 blocks"),
        ({"indices": 0}, "indices: got the last 0"),
        ({"indices": [3]}, "indices: got 3, expected -3 to 2"),
        ({"indices": [-4]}, "indices: got -4"),
        ({"indices": []}, "indices: got an empty sequence"),
        ({"output_fmt": "NHWC"}, "output_fmt: got 'NHWC', expected 'NCHW'"),
    ],
)
def test_bad_intermediates(arguments, message):
    with pytest.raises(ValueError, match=message):
        small().forward_intermediates(images(1, 3, 16, 16), **arguments)


def test_feature_extractor():
    model = small(depth=4).eval()
    batch = images(2, 3, 16, 20)
    expected = model.forward_intermediates(batch, [0, 2], intermediates_only=True)
    extractor = FeatureExtractor(model, (2, -4))
    torch.testing.assert_close(extractor(batch), expected)
    assert len(model.blocks) == 3
    assert isinstance(model.get_classifier(), nn.Identity)
    assert extractor.feature_info.channels() == [8, 8]
    assert extractor.feature_info.reduction() == [4, 4]
    assert extractor.feature_info.module_name() == ["blocks.0", "blocks.2"]
    extractor.set_grad_checkpointing()
    assert model.grad_checkpointing


def test_features_through_timm():
    features = pytest.importorskip("timm.models._features")
    model = small(depth=4).eval()
    batch = images(2, 3, 16, 20)
    expected = model.forward_intermediates(batch, [1, 2], intermediates_only=True)
    getter = features.FeatureGetterNet(model, out_indices=[1, 2])
    torch.testing.assert_close(getter(batch), expected)
    assert getter.feature_info.channels() == [8, 8]


def test_channels_last():
    model = small().eval()
    batch = images(2, 3, 32, 32)
    expected = model(batch)
    model = model.to(memory_format=torch.channels_last)
    batch = batch.contiguous(memory_format=torch.channels_last)
    features = model.forward_features(batch)
    assert features.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_autocast(norm):
    model = small(norm=norm)
    batch = images(2, 3, 32, 32)
    expected = copy.deepcopy(model)(batch)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, atol=0.05, rtol=0.05)
    output.sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize(
    ("checkpointing", "interrupted"), [(False, False), (True, False), (True, True)]
)
def test_compile(checkpointing, interrupted):
    model = small(depth=2)
    expected_model = copy.deepcopy(model)
    model.set_grad_checkpointing(checkpointing)
    if interrupted:
        # The compiler cannot take a block with a break as a whole, and leaves it to PyTorch.
        model.blocks[0][1].register_forward_hook(lambda *_: torch._dynamo.graph_break())
    compiled = torch.compile(model, backend="aot_eager", fullgraph=not interrupted)
    gradient = images(2, 10)
    for step in range(2):
        batch = images(2, 3, 16, 16, seed=step)
        output, expected = compiled(batch), expected_model(batch)
        torch.testing.assert_close(output, expected)
        output.backward(gradient)
        expected.backward(gradient)
    for ours, theirs in zip(model.parameters(), expected_model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    for ours, theirs in zip(model.buffers(), expected_model.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch._dynamo.reset()


def test_copies():
    model = small(residual="both", norm="layer").eval()
    batch = images(1, 3, 16, 16)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(copied(batch), model(batch))
