"""A ConvMixer taken apart, changed, and traced, as users of timm do with theirs."""

from __future__ import annotations

import pickle
import re

import pytest
import torch
from torch import Tensor, nn

from convmixer import ConvMixer


def small(**arguments) -> ConvMixer:
    torch.manual_seed(0)
    defaults = {"dim": 8, "depth": 2, "kernel_size": 3, "patch_size": 2, "n_classes": 5}
    return ConvMixer(**{**defaults, **arguments}).eval()


def images(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(1))


def run(modules: list[nn.Module], input: Tensor) -> Tensor:
    for module in modules:
        input = module(input)
    return input


@pytest.mark.parametrize("part", [slice(1), slice(2), slice(1, None), slice(0, 0), slice(None)])
@pytest.mark.parametrize("name", ["stem", "block"])
def test_slices_run_their_modules_in_a_row(name, part):
    model, batch = small(in_chans=8), images(2, 8, 6, 6)
    whole = model.stem if name == "stem" else model.blocks[0]
    modules = list(whole)[part]
    assert list(whole[part]) == modules
    torch.testing.assert_close(whole[part](batch), run(modules, batch))


def test_slices_keep_implementation_and_residual():
    model = small(residual="both", dw_impl="torch")
    assert model.stem[:2].impl == model.stem[:].impl == "torch"
    block, batch = model.blocks[0], images(2, 8, 6, 6)
    torch.testing.assert_close(block[:](batch), block(batch))
    torch.testing.assert_close(
        block[:](batch), run(list(block)[1:], block[0](batch)) + block[0](batch)
    )
    # The second residual starts from the depthwise branch, which must be there.
    block.append(nn.Tanh())
    torch.testing.assert_close(block[1:](batch), run(list(block)[1:], batch))


@pytest.mark.parametrize("residual", ["depthwise", "both"])
def test_appended_modules_run_after_the_others(residual):
    model, batch = small(residual=residual), images(2, 3, 6, 6)
    embedded = model.stem(batch)
    mixed = model.blocks[0](embedded)
    model.stem.append(nn.Hardtanh(-0.5, 0.5))
    model.blocks[0].append(nn.Tanh())
    torch.testing.assert_close(model.stem(batch), embedded.clamp(-0.5, 0.5))
    torch.testing.assert_close(model.blocks[0](embedded), mixed.tanh())


def test_another_patch_embedding_takes_its_own_channels():
    model = small()
    model.stem[0] = nn.Conv2d(1, 8, kernel_size=2, stride=2)
    assert model.in_chans == 1
    assert model(images(2, 1, 6, 6)).shape == (2, 5)
    message = re.escape("input: got shape (2, 3, 6, 6), expected (N, 1, H, W)")
    with pytest.raises(ValueError, match=message):
        model(images(2, 3, 6, 6))

    model.stem = nn.PixelUnshuffle(2)
    model.blocks = nn.Sequential()
    model.head = nn.Identity()
    assert model.in_chans is None
    assert model(images(2, 2, 6, 6)).shape == (2, 8)
    with pytest.raises(ValueError, match=re.escape("expected (N, C, H, W) with H and W")):
        model(images(2, 2, 1, 6))


@pytest.mark.parametrize("stem", ["patch", "resnet"])
def test_symbolic_trace(stem):
    model, batch = small(stem=stem, residual="both"), images(2, 3, 7, 9)
    traced = torch.fx.symbolic_trace(model)
    nodes = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    assert nodes >= {"blocks.0", "blocks.1", "head"}
    assert torch.equal(traced(batch), model(batch))
    # Sizes are not constants of the graph, and input is still checked.
    assert torch.equal(traced(batch[:1, :, :6]), model(batch[:1, :, :6]))
    with pytest.raises(ValueError, match="input: got shape"):
        traced(images(2, 1, 6, 6))
    assert torch.equal(pickle.loads(pickle.dumps(traced))(batch), model(batch))
    traced.train()
    traced(batch)
    assert traced.get_submodule("blocks.0.3").num_batches_tracked == 1


def test_feature_extraction_of_torchvision():
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    model, batch = small(), images(2, 3, 6, 6)
    features = extraction.create_feature_extractor(model, ["stem", "blocks.0"])(batch)
    torch.testing.assert_close(features["blocks.0"], model.blocks[0](features["stem"]))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_jit_trace_and_export():
    model, batch = small(), images(2, 3, 6, 6)
    torch.testing.assert_close(torch.jit.trace(model, batch)(batch), model(batch))
    exported = torch.export.export(model, (batch,)).module()
    torch.testing.assert_close(exported(batch), model(batch))
