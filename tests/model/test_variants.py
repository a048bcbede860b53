"""The models of the paper's tables: sizes, names, and how they are built."""

from __future__ import annotations

import dataclasses
import urllib.error

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from convmixer import (
    ConvMixer,
    FeatureExtractor,
    create_model,
    get_variant,
    list_variants,
    parameter_count,
    save_checkpoint,
)
from convmixer.errors import UsageError
from convmixer.model.published import published_rows

# Rows whose printed size is not that of the model they name, with the exact number.
PRINTED_WRONGLY = {
    # 20.2M in table 2; equation 4 and the model agree on 20.5M.
    "convmixer_768_32_ks3_p14_relu": 20_465_896,
}


def numel(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def as_printed(count: int, printed: str) -> str:
    """`count` rounded to the digits and unit of `printed`, such as 51.6M."""
    unit = {"M": 1e6, "K": 1e3}[printed[-1]]
    digits = len(printed[:-1].partition(".")[2])
    return f"{count / unit:.{digits}f}{printed[-1]}"


@pytest.mark.parametrize("name", list_variants())
def test_size(name):
    variant = get_variant(name)
    with torch.device("meta"):
        model = create_model(name)
    assert numel(model) == variant.parameters
    printed = {result.parameters for result in variant.results} - {None}
    if name in PRINTED_WRONGLY:
        assert variant.parameters == PRINTED_WRONGLY[name]
        assert printed != {as_printed(variant.parameters, size) for size in printed}
    else:
        assert printed == {as_printed(variant.parameters, size) for size in printed}


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ((1536, 20, 9, 7, 1000), 51_625_960),
        ((768, 32, 7, 7, 1000), 21_110_248),
        ((1024, 20, 9, 14, 1000), 24_383_464),
        ((256, 8, 9, 1, 10), 706_570),
    ],
)
def test_parameter_count_of_the_plain_model(arguments, count):
    assert parameter_count(*arguments) == count


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"in_chans": 1},
        {"stacked": 3},
        {"n_classes": 0},
        {"norm": "layer", "residual": "both", "activation": "relu", "stem": "resnet"},
    ],
)
def test_parameter_count_of_every_option(options):
    plain = {"dim": 12, "depth": 2, "kernel_size": 5, "patch_size": 4, "n_classes": 7, **options}
    counted = {
        name: value
        for name, value in plain.items()
        if name not in ("norm", "residual", "activation", "stem")
    }
    assert parameter_count(**counted) == numel(ConvMixer(**plain))


def test_every_row_of_the_tables_belongs_to_a_variant():
    rows = list(published_rows())
    counts = {table: 0 for table in range(1, 9)}
    for _, result in rows:
        counts[result.table] += 1
    assert counts == {1: 3, 2: 14, 3: 5, 4: 2, 5: 7, 6: 5, 7: 10, 8: 33}
    collected = [
        (get_variant(name).architecture, result)
        for name in list_variants()
        for result in get_variant(name).results
    ]
    assert len(collected) == len(rows)
    assert set(collected) == set(rows)


@pytest.mark.parametrize(
    ("table", "name", "expected"),
    [
        (1, "convmixer_1536_20", {"top1": 81.37, "images_per_second": 134, "gpu": "RTX 8000"}),
        (2, "convmixer_768_32_ks7_p7", {"top1": 80.74, "recipe": "a1_like", "epochs": 150}),
        (2, "convmixer_1024_12_ks8_p7", {"top1": 77.75, "parameters": "14.6M", "epochs": 90}),
        (3, "convmixer_512_12_ks9_p16", {"top1": 69.65, "images_per_second": 2892, "gpu": "V100"}),
        (4, "convmixer_512_12_ks9_p12_resnet_stem", {"top1": 71.24}),
        (5, "convmixer_512_12_ks3_p7_stacked3", {"top1": 74.53, "images_per_second": 732}),
        (6, "convmixer_512_12_ks9_p7_layer_norm", {"top1": 74.51}),
        (7, "convmixer_256_8_ks9_p1_residual_both_cifar10", {"top1": 94.78, "epochs": 200}),
        (8, "convmixer_256_8_ks15_p1_cifar10", {"top1": 96.08, "note": "weight decay 0"}),
    ],
)
def test_published_results(table, name, expected):
    (result,) = (result for result in get_variant(name).results if result.table == table)
    assert expected.items() <= dataclasses.asdict(result).items()


@pytest.mark.parametrize(
    ("name", "top1", "activation"),
    [
        ("convmixer_1536_20", 81.382, nn.GELU),
        ("convmixer_768_32", 80.158, nn.ReLU),
        ("convmixer_1024_20_ks9_p14", 76.944, nn.GELU),
    ],
)
def test_models_of_timm(name, top1, activation):
    timm = pytest.importorskip("timm")
    variant = get_variant(name)
    with torch.device("meta"):
        model = create_model(name)
        theirs = timm.create_model(name)
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    assert list(shapes) == list(theirs.state_dict())
    assert isinstance(model.blocks[0][2], activation)
    assert isinstance(theirs.blocks[0][2], activation)

    assert variant.hub_top1 == top1
    assert variant.hub_id == f"timm/{name}.in1k"
    settings = theirs.pretrained_cfg
    assert variant.hub_id == settings["hf_hub_id"]
    preprocessing = variant.preprocessing
    assert (3, preprocessing.input_size, preprocessing.input_size) == settings["input_size"]
    assert preprocessing.mean == settings["mean"]
    assert preprocessing.std == settings["std"]
    assert preprocessing.crop == settings["crop_pct"] == 0.96
    assert preprocessing.interpolation == settings["interpolation"] == "bicubic"


def test_cifar10_variants_take_small_images():
    names = list_variants("*_cifar10")
    assert set(names) == {*list_variants(table=7), *list_variants(table=8)}
    for name in names:
        variant = get_variant(name)
        assert variant.architecture.n_classes == 10
        assert variant.preprocessing.input_size == 32
        assert variant.hub_id is variant.hub_top1 is None


def test_list_variants():
    assert len(list_variants()) == len(set(list_variants())) == 52
    assert list_variants("convmixer_1536_20*") == [
        "convmixer_1536_20",
        "convmixer_1536_20_ks9_p14",
        "convmixer_1536_20_ks3_p7",
    ]
    assert list_variants(table=4) == [
        "convmixer_512_12_ks9_p12",
        "convmixer_512_12_ks9_p12_resnet_stem",
    ]
    assert get_variant("convmixer_512_12_ks9_p7").tables == (3, 5, 6)


def test_overrides():
    name = "convmixer_128_4_ks8_p1_cifar10"
    model = create_model(name, n_classes=3, in_chans=1, activation="relu", depth=2, dw_impl="torch")
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 3)
    assert len(model.blocks) == 2
    assert isinstance(model.stem[1], nn.ReLU)
    assert model.blocks[0][0].fn[0].impl == "torch"
    # The variant itself is unchanged.
    assert create_model(name).num_classes == 10


def test_features_only():
    name = "convmixer_128_4_ks8_p1_cifar10"
    extractor = create_model(name, features_only=True, patch_size=2)
    assert isinstance(extractor, FeatureExtractor)
    assert extractor.feature_info.module_name() == ["blocks.1", "blocks.2", "blocks.3"]
    extractor = create_model(name, features_only=True, out_indices=[0, 2], patch_size=2)
    shapes = [feature.shape for feature in extractor(torch.randn(2, 3, 8, 6))]
    assert shapes == [(2, 128, 4, 3)] * 2
    assert extractor.feature_info.reduction() == [2, 2]


def test_pretrained(tmp_path):
    name = "convmixer_128_4_ks8_p1_cifar10"
    model = create_model(name).eval()
    save_checkpoint({"model": model.state_dict()}, tmp_path / "weights.pt")
    loaded = create_model(name, tmp_path / "weights.pt").eval()
    image = torch.randn(1, 3, 8, 8)
    assert torch.equal(loaded(image), model(image))


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)


def test_published_weights_come_from_the_hub(tmp_path, monkeypatch):
    model = ConvMixer(8, 1, 3, 2, activation="relu").eval()
    weights = tmp_path / "model.safetensors"
    save_file(model.state_dict(), weights)
    asked = []

    def cached(*file):
        asked.append(file)
        return str(weights)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    size = {"dim": 8, "depth": 1, "kernel_size": 3, "patch_size": 2}
    loaded = create_model("convmixer_768_32", pretrained=True, **size).eval()
    image = torch.randn(1, 3, 8, 8)
    assert torch.equal(loaded(image), model(image))
    assert asked == [("timm/convmixer_768_32.in1k", "model.safetensors")]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: get_variant("convmixer_1536_21"), "did you mean 'convmixer_1536_20'"),
        (lambda: create_model("resnet50"), "unknown variant 'resnet50'; list_variants"),
        (lambda: create_model("convmixer_768_32", clases=3), "clases: no argument of ConvMixer"),
        (
            lambda: create_model("convmixer_768_32", pretrained=True),
            r"pretrained: cannot fetch .*huggingface.co/timm/convmixer_768_32.in1k \(no network\)",
        ),
        (
            lambda: create_model("convmixer_512_12_ks9_p5", pretrained=True),
            "pretrained: no weights of convmixer_512_12_ks9_p5 are published",
        ),
    ],
)
def test_mistakes(call, message, no_network):
    with pytest.raises(UsageError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_not_pretrained_is_said_as_for_timm():
    assert create_model("convmixer_768_32", pretrained=False, dim=8, depth=1).num_features == 8
