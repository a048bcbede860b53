"""Weights for other classes, other channels and wrapped models."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from convmixer import ConvMixer, create_model, load_checkpoint, save_checkpoint
from convmixer.errors import UsageError
from convmixer.model.features import FeatureInfo

NAME = "convmixer_128_4_ks8_p1_cifar10"
SMALL = {"dim": 8, "depth": 2, "patch_size": 2}
HEAD = ("head.weight", "head.bias")
STEM = "stem.0.weight"


def build(seed: int = 1, **overrides) -> ConvMixer:
    torch.manual_seed(seed)
    return create_model(NAME, **{**SMALL, **overrides})


def store(model: nn.Module, path) -> dict[str, Tensor]:
    save_checkpoint({"state_dict": model.state_dict()}, path)
    return model.state_dict()


def assert_equal_but(state: dict[str, Tensor], stored: dict[str, Tensor], *others: str) -> None:
    for name in state.keys() - set(others):
        assert torch.equal(state[name], stored[name]), name


@pytest.mark.parametrize("classes", [0, 3])
def test_the_head_is_new_for_another_number_of_classes(classes, tmp_path):
    stored = store(build(), tmp_path / "weights.pt")
    model = build(2, pretrained=tmp_path / "weights.pt", n_classes=classes)
    assert model.num_classes == classes
    assert_equal_but(model.state_dict(), stored, *HEAD)
    initial = build(2, n_classes=classes).state_dict()
    for name in HEAD:
        assert (name in initial) == (classes > 0)
        assert classes == 0 or torch.equal(model.state_dict()[name], initial[name])


def test_a_file_without_a_head_gets_one(tmp_path):
    stored = store(build(n_classes=0), tmp_path / "weights.pt")
    model = build(2, pretrained=tmp_path / "weights.pt", n_classes=3)
    assert_equal_but(model.state_dict(), stored, *HEAD)
    assert torch.equal(model.head.weight, build(2, n_classes=3).head.weight)


def test_the_head_is_loaded_where_the_classes_agree(tmp_path):
    stored = store(build(n_classes=3), tmp_path / "weights.pt")
    model = build(2, pretrained=tmp_path / "weights.pt", n_classes=3)
    assert_equal_but(model.state_dict(), stored)


def test_features_need_no_head(tmp_path):
    stored = store(build(n_classes=3), tmp_path / "weights.pt")
    extractor = build(2, pretrained=tmp_path / "weights.pt", features_only=True, out_indices=2)
    assert_equal_but(extractor.model.state_dict(), stored)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_stem_is_adapted_to_other_channels(channels, dtype, tmp_path):
    manipulate = pytest.importorskip("timm.models._manipulate")
    stored = store(build().to(dtype), tmp_path / "weights.pt")
    model = build(2, pretrained=tmp_path / "weights.pt", in_chans=channels).to(dtype)
    assert_equal_but(model.state_dict(), stored, STEM)
    expected = manipulate.adapt_input_conv(channels, stored[STEM].clone())
    torch.testing.assert_close(model.stem[0].weight.detach(), expected)
    assert model.in_chans == channels


def test_grey_weights_for_colour_images_see_the_mean_channel(tmp_path):
    grey = build(in_chans=1).eval()
    store(grey, tmp_path / "weights.pt")
    colour = build(2, pretrained=tmp_path / "weights.pt", in_chans=3).eval()
    images = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(colour(images), grey(images.mean(1, keepdim=True)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        # All that was not asked to differ must agree.
        ({"in_chans": 1, "n_classes": 10, "patch_size": 3}, "stem.0.weight is (8, 1, 2, 2) in"),
        ({"n_classes": 3, "depth": 3}, "not in the file: blocks.2.0.fn.0.weight"),
        ({"in_chans": 1, "dim": 9}, "stem.0.weight is (8, 1, 2, 2) in the file and (9, 1, 2, 2)"),
    ],
)
def test_all_else_must_agree(overrides, message, tmp_path):
    store(build(), tmp_path / "weights.pt")
    with pytest.raises(UsageError, match=re.escape(message)):
        build(2, pretrained=tmp_path / "weights.pt", **overrides)


@pytest.mark.parametrize("difference", [{"n_classes": 3}, {"in_chans": 1}])
def test_nothing_is_adapted_unasked(difference, tmp_path):
    path = tmp_path / "weights.pt"
    store(build(**difference), path)
    for load in (lambda: load_checkpoint(build(2), path), lambda: build(2, pretrained=path)):
        with pytest.raises(UsageError, match="does not fit the model; shapes differ"):
            load()


def test_a_stem_that_is_no_patch_embedding_is_refused(tmp_path):
    store(build(), tmp_path / "weights.pt")
    for stem in (nn.PixelUnshuffle(2), nn.Sequential(nn.Linear(4, 8))):
        model = build(2)
        model.stem = stem
        with pytest.raises(UsageError, match=r"stem\.0\.weight"):
            load_checkpoint(model, tmp_path / "weights.pt", other_channels=True)


def test_a_damaged_stem_is_refused(tmp_path):
    save_checkpoint({**build().state_dict(), STEM: torch.ones(8)}, tmp_path / "weights.pt")
    with pytest.raises(UsageError, match=r"stem\.0\.weight is \(8,\) in the file"):
        build(2, pretrained=tmp_path / "weights.pt", in_chans=1)


def _compiled_blocks(model: ConvMixer) -> ConvMixer:
    model.blocks[0] = torch.compile(model.blocks[0], backend="eager")
    return model


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: torch.compile(model, backend="eager"),
        nn.DataParallel,
        AveragedModel,
        lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
        _compiled_blocks,
    ],
    ids=["compiled", "parallel", "averaged", "parallel-compiled", "compiled-block"],
)
def test_wrapped_models(wrap, tmp_path):
    stored = store(build(), tmp_path / "weights.pt")
    wrapped = wrap(build(2))
    load_checkpoint(wrapped, tmp_path / "weights.pt")
    loaded = [tensor for name, tensor in wrapped.state_dict().items() if name != "n_averaged"]
    for tensor, expected in zip(loaded, stored.values(), strict=True):
        assert torch.equal(tensor, expected)
    # A plain model loads what a wrapped one saves, too.
    store(wrapped, tmp_path / "wrapped.pt")
    plain = build(3)
    load_checkpoint(plain, tmp_path / "wrapped.pt")
    assert_equal_but(plain.state_dict(), stored)
    with pytest.raises(UsageError, match=r"does not fit the model; shapes differ: head\.weight"):
        load_checkpoint(wrap(build(2, n_classes=3)), tmp_path / "weights.pt")


def test_the_home_folder_is_meant_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_checkpoint(build().state_dict(), "~/weights.pt")
    assert (tmp_path / "weights.pt").is_file()
    assert_equal_but(build(2, pretrained="~/weights.pt").state_dict(), build().state_dict())


def test_feature_info_is_that_of_timm():
    timm_features = pytest.importorskip("timm.models._features")
    model = build(depth=4)
    theirs = timm_features.FeatureInfo([dict(entry) for entry in model.feature_info], (1, 3))
    ours = FeatureInfo(model.feature_info, (1, 3))
    assert (len(ours), ours[2], ours[-1]) == (len(theirs), theirs[2], theirs[-1])
    for idx in (None, 2, [0, 3]):
        assert ours.get_dicts(idx=idx) == theirs.get_dicts(idx=idx)
        keys = ["module", "num_chs"]
        assert ours.get_dicts(keys, idx) == theirs.get_dicts(keys, idx)
        for method in ("channels", "reduction", "module_name"):
            assert getattr(ours, method)(idx) == getattr(theirs, method)(idx)
        assert ours.get("index", idx) == theirs.get("index", idx)
    assert ours.from_other((0,)).module_name() == ["blocks.0"]
