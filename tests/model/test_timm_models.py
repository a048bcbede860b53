"""The models under timm's names, through the calls that timm's scripts and tests make."""

from __future__ import annotations

import runpy
import sys

import pytest
import torch
from torch import Tensor, nn

from convmixer import get_variant, list_variants, save_checkpoint

timm = pytest.importorskip("timm")
data = pytest.importorskip("timm.data")
optim = pytest.importorskip("timm.optim")
manipulate = pytest.importorskip("timm.models._manipulate")
timm_models = pytest.importorskip("convmixer.timm_models")

NAME = "kernels_convmixer_256_4_ks8_p1_cifar10"


def small(**arguments) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(NAME, **{"dim": 8, "depth": 2, "patch_size": 2, **arguments})


def images(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(1))


def test_every_variant_is_registered_and_no_name_of_timm_is_taken():
    assert set(timm.list_models(module="timm_models")) == {
        f"kernels_{name}" for name in list_variants()
    }
    assert timm.model_entrypoint("convmixer_768_32").__module__ == "timm.models.convmixer"


@pytest.mark.parametrize("name", ["convmixer_1536_20", "convmixer_768_32"])
def test_settings_and_parameters_are_those_of_timms_own_model(name):
    with torch.device("meta"):
        ours = timm.create_model(f"kernels_{name}", num_classes=7, in_chans=1)
        theirs = timm.create_model(name, num_classes=7, in_chans=1)
    own = {"architecture", "pool_size", "url"}
    for key in (ours.default_cfg.keys() | theirs.default_cfg.keys()) - own:
        assert ours.default_cfg[key] == theirs.default_cfg[key], key
    assert ours.default_cfg["pool_size"] == (32, 32)
    shapes = [(key, tensor.shape) for key, tensor in ours.state_dict().items()]
    assert shapes == [(key, tensor.shape) for key, tensor in theirs.state_dict().items()]
    config = data.resolve_data_config({}, model=ours)
    assert config == data.resolve_data_config({}, model=theirs)
    assert (config["crop_pct"], config["interpolation"]) == (0.96, "bicubic")


@pytest.mark.parametrize("name", list_variants())
def test_pool_size_is_that_of_the_features(name):
    variant = get_variant(name)
    model = timm.create_model(f"kernels_{name}", dim=2, depth=1).eval()
    features = model.forward_features(images(1, *model.default_cfg["input_size"]))
    assert features.shape[2:] == model.default_cfg["pool_size"]
    assert model.num_classes == variant.architecture.n_classes


def test_a_training_step_as_in_train_py():
    """Arguments as the script passes them: None for what was not asked for."""
    model = timm.create_model(
        NAME,
        pretrained=False,
        in_chans=3,
        num_classes=4,
        drop_rate=0.5,
        **dict.fromkeys(("drop_path_rate", "drop_block_rate", "global_pool")),
        **dict.fromkeys(("bn_momentum", "bn_eps")),
        scriptable=False,
        checkpoint_path=None,
        dim=8,
        depth=2,
        patch_size=2,
    )
    with torch.no_grad():
        model.get_classifier().weight.mul_(0.5)
        model.get_classifier().bias.mul_(0.5)
    model.set_grad_checkpointing(enable=True)
    groups = optim.create_optimizer_v2(
        model, opt="adamw", lr=0.1, weight_decay=0.1, layer_decay=0.5
    ).param_groups
    scales = {group["lr_scale"] for group in groups}
    assert scales == {1, 0.5, 0.25, 0.125}
    optimizer = optim.create_optimizer_v2(model, opt="sgd", lr=0.1)
    averaged = timm.utils.ModelEmaV3(model, decay=0.5)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nn.functional.cross_entropy(model.train()(images(4, 3, 8, 8)), torch.arange(4))
    loss.backward()
    optimizer.step()
    averaged.update(model)
    for old, new, mean in zip(
        before, model.parameters(), averaged.module.parameters(), strict=True
    ):
        assert not torch.equal(old, new)
        torch.testing.assert_close(mean, (old + new) / 2)


def test_checkpoints_of_a_run_are_validated_as_in_validate_py(tmp_path):
    model = small(num_classes=4).eval()
    batch = images(2, 3, 8, 8)
    model(batch)
    torch.save({"state_dict": model.state_dict(), "arch": NAME}, tmp_path / "last.pth.tar")
    other = small(num_classes=4, global_pool="avg", scriptable=False)
    nn.init.zeros_(other.head.weight)
    timm.models.load_checkpoint(other, str(tmp_path / "last.pth.tar"), use_ema=True)
    other = other.to(memory_format=torch.channels_last).eval()
    torch.testing.assert_close(other(batch), model(batch))


@pytest.mark.parametrize(
    ("global_pool", "pool"),
    [
        ("avg", Tensor.mean),
        ("fast", Tensor.mean),
        ("fastavg", Tensor.mean),
        ("max", Tensor.amax),
        ("fastmax", Tensor.amax),
    ],
)
def test_poolings_have_timms_names(global_pool, pool):
    """benchmark.py asks for "fast"."""
    model = small(global_pool=global_pool).eval()
    features = model.forward_features(images(2, 3, 8, 8))
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, pool(features, (2, 3)))


def test_no_pooling():
    model = small(num_classes=0, global_pool="")
    assert model(images(2, 3, 8, 8)).shape == (2, 8, 4, 4)


def test_dropout_is_before_the_classifier_and_in_training_alone():
    model = small(drop_rate=0.5)
    features = images(64, 8, 4, 4).abs() + 1
    dropped = model.forward_head(features, pre_logits=True)
    assert 0.3 < (dropped == 0).float().mean() < 0.7
    assert (model.eval().forward_head(features, pre_logits=True) > 0).all()


@pytest.mark.parametrize(
    ("act_layer", "module"),
    [(nn.ReLU, nn.ReLU), ("relu", nn.ReLU), (nn.GELU, nn.GELU), ("gelu", nn.GELU)],
)
def test_activations(act_layer, module):
    assert type(small(act_layer=act_layer).blocks[0][2]) is module


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_device_and_dtype(dtype):
    model = small(dtype=dtype, device="meta")
    assert {(p.dtype, p.device.type) for p in model.parameters()} == {(dtype, "meta")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"act_layer": nn.SiLU}, "act_layer: got <class 'torch.nn.*SiLU'>, expected nn.GELU, nn.R"),
        ({"act_layer": "silu"}, "act_layer: got 'silu', expected"),
        ({"drop_path_rate": 0.1}, "drop_path_rate: no argument of ConvMixer"),
        ({"global_pool": "catavgmax"}, "global_pool: got 'catavgmax', expected 'avg' or 'max'"),
        ({"global_pool": ""}, "n_classes: got 10 without pooling, expected 0"),
        ({"drop_rate": 1.5}, "drop_rate: got 1.5, expected 0 to 1"),
        ({"n_classes": 3}, "n_classes: the number of classes is num_classes in timm"),
    ],
)
def test_what_is_not_taken_is_refused_in_a_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        small(**arguments)
    assert "\n" not in str(caught.value)


def as_the_authors_call_it(name: str) -> str:
    """Layers of figure 3 have numbers: the stem's are 0 to 2, pooling follows the two blocks."""
    name = name.removeprefix("stem.").replace("head.", "7.")
    return name.replace("blocks.0.", "3.").replace("blocks.1.", "4.")


@pytest.mark.parametrize("rename", [str, as_the_authors_call_it])
def test_weights_from_a_file_fit_other_classes_and_channels(rename, tmp_path):
    stored = small()
    state = {rename(name): tensor for name, tensor in stored.state_dict().items()}
    save_checkpoint(state, tmp_path / "weights.pt")
    source = {"file": str(tmp_path / "weights.pt"), "hf_hub_id": None}
    model = small(pretrained=True, pretrained_cfg_overlay=source, num_classes=3, in_chans=1)
    assert model.head.out_features == 3
    assert torch.equal(model.blocks[1][1].weight, stored.blocks[1][1].weight)
    torch.testing.assert_close(
        model.stem[0].weight, manipulate.adapt_input_conv(1, stored.stem[0].weight)
    )


def test_features_only():
    extractor = small(features_only=True, out_indices=(0, 1)).eval()
    assert extractor.feature_info.channels() == [8, 8]
    assert extractor.feature_info.reduction() == [2, 2]
    first, last = extractor(images(2, 3, 8, 8))
    model = small().eval()
    torch.testing.assert_close(last, model.forward_features(images(2, 3, 8, 8)))
    torch.testing.assert_close(last, model.blocks[1](first))


def test_scripts_run_with_the_models_registered(tmp_path, monkeypatch, capsys):
    script = tmp_path / "script.py"
    script.write_text("import sys, timm\nprint(sys.argv, __name__, timm.is_model(sys.argv[2]))\n")
    monkeypatch.setattr(sys, "argv", ["timm_models", str(script), "--model", NAME])
    runpy.run_module("convmixer.timm_models", run_name="__main__")
    assert capsys.readouterr().out == f"{[str(script), '--model', NAME]} __main__ True\n"
    monkeypatch.setattr(sys, "argv", ["timm_models"])
    with pytest.raises(SystemExit, match=r"usage: python -m convmixer\.timm_models SCRIPT"):
        runpy.run_module("convmixer.timm_models", run_name="__main__")


# ---- what timm's tests ask of every model --------------------------------------------------------


@pytest.mark.parametrize("stem", ["patch", "resnet"])
def test_checkpointing_changes_no_output(stem):
    model, batch = small(stem=stem).eval(), images(1, 3, 8, 8)
    output = model(batch)
    assert output.isfinite().all()
    features, _ = model.forward_intermediates(batch)
    torch.testing.assert_close(features, model.forward_features(batch))
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(batch), output)
    torch.testing.assert_close(model.forward_intermediates(batch)[0], features)


@pytest.mark.parametrize("residual", ["depthwise", "none", "both"])
def test_every_parameter_gets_a_gradient(residual):
    model = small(num_classes=42, residual=residual).train()
    output = model(images(2, 3, 8, 8))
    output.mean().backward()
    assert output.shape == (2, 42)
    assert [name for name, each in model.named_parameters() if each.grad is None] == []


def test_the_parts_that_the_settings_name_are_there():
    model, batch = small().eval(), images(1, 3, 8, 8)
    names = model.state_dict().keys()
    for part in ("classifier", "first_conv"):
        assert f"{model.default_cfg[part]}.weight" in names
    assert model.num_classes == model.default_cfg["num_classes"] > 0
    features = model.forward_features(batch)
    pooled = model.forward_head(features, pre_logits=True)
    assert features.shape[1] == model.num_features
    assert pooled.shape[1] == model.head_hidden_size
    model.reset_classifier(0)
    assert model.num_classes == 0
    torch.testing.assert_close(model(batch), pooled)
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(batch), features)


@pytest.mark.parametrize("levels", [(0, 1), (-2, -1)])
def test_intermediates_are_those_that_the_feature_information_promises(levels):
    model, batch = small().eval(), images(1, 3, 10, 8)
    information = timm.models.FeatureInfo(model.feature_info, levels)
    _, intermediates = model.forward_intermediates(batch, [level % 2 for level in levels])
    assert len(intermediates) == len(levels)
    for feature, channels, reduction in zip(
        intermediates, information.channels(), information.reduction(), strict=True
    ):
        assert feature.shape == (1, channels, 10 // reduction, 8 // reduction)


@pytest.mark.parametrize("training", [True, False])
def test_traced_by_torch_fx_as_timm_traces(training):
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    tracing = {
        "leaf_modules": timm.models.get_notrace_modules(),
        "autowrap_functions": timm.models.get_notrace_functions(),
        "param_shapes_constant": True,
    }
    model, batch = small(num_classes=42).train(training), images(2, 3, 8, 8)
    nodes = extraction.get_graph_node_names(model, tracer_kwargs=tracing)
    traced = extraction.create_feature_extractor(
        model,
        train_return_nodes=[nodes[0][-1]],
        eval_return_nodes=[nodes[1][-1]],
        tracer_kwargs=tracing,
    ).train(training)
    (output,) = traced(batch).values()
    assert output.shape == (2, 42)
    if not training:
        assert torch.equal(output, model(batch))
        return
    output.mean().backward()
    assert [name for name, each in traced.named_parameters() if each.grad is None] == []
    assert sum(p.numel() for p in traced.parameters()) == sum(p.numel() for p in model.parameters())
