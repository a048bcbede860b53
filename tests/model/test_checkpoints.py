"""Checkpoints of other implementations, damaged checkpoints, and writing without losing any."""

from __future__ import annotations

import argparse
import collections
import os
import re
import zipfile
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from convmixer import ConvMixer, convert_state_dict, load_checkpoint, save_checkpoint
from convmixer.errors import UsageError
from tests.model import figure_3 as paper

DIM, DEPTH, KERNEL, PATCH, CLASSES = 6, 12, 5, 3, 10


def figure_3(activation: type[nn.Module] = nn.GELU) -> nn.Sequential:
    return paper.figure_3(DIM, DEPTH, KERNEL, PATCH, CLASSES, activation)


class TweetResidual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return self[0](x) + x


def figure_8() -> nn.Sequential:
    def activated(convolution: nn.Module) -> nn.Sequential:
        return nn.Sequential(convolution, nn.GELU(), nn.BatchNorm2d(DIM))

    blocks = [
        nn.Sequential(
            TweetResidual(activated(nn.Conv2d(DIM, DIM, KERNEL, groups=DIM, padding=KERNEL // 2))),
            activated(nn.Conv2d(DIM, DIM, 1)),
        )
        for _ in range(DEPTH)
    ]
    return nn.Sequential(
        activated(nn.Conv2d(3, DIM, PATCH, PATCH)),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(DIM, CLASSES),
    )


class MMPretrain(nn.Module):
    """The names and the computation of mmpretrain's ImageClassifier with a ConvMixer backbone."""

    def __init__(self) -> None:
        super().__init__()
        sequential = figure_3()
        self.backbone = nn.Module()
        self.backbone.stem = sequential[:3]
        self.backbone.stages = nn.Sequential(*sequential[3 : 3 + DEPTH])
        self.head = nn.Module()
        self.head.fc = sequential[-1]

    def forward(self, image: Tensor) -> Tensor:
        features = self.backbone.stages(self.backbone.stem(image))
        return self.head.fc(features.mean((2, 3)))


def timm_model() -> nn.Module:
    timm_convmixer = pytest.importorskip("timm.models.convmixer")
    return timm_convmixer.ConvMixer(DIM, DEPTH, KERNEL, PATCH, num_classes=CLASSES)


def our_model(**arguments) -> ConvMixer:
    return ConvMixer(DIM, DEPTH, KERNEL, PATCH, CLASSES, **arguments)


def randomised(model: nn.Module) -> nn.Module:
    """`model` for evaluation, with values in every parameter and buffer that tell them apart."""
    generator = torch.Generator().manual_seed(0)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
        else:
            tensor.fill_(7)
    return model.eval()


@pytest.mark.parametrize("source", [our_model, timm_model, figure_3, figure_8, MMPretrain])
def test_other_implementations_give_the_same_outputs(source, tmp_path):
    theirs = randomised(source())
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    model = our_model().eval()
    load_checkpoint(model, tmp_path / "weights.pth")
    image = torch.randn(2, 3, 13, 16)
    torch.testing.assert_close(model(image), theirs(image), atol=1e-5, rtol=1e-5)
    assert all(
        tensor == 7
        for name, tensor in model.state_dict().items()
        if name.endswith("num_batches_tracked")
    )


def test_relu_checkpoint(tmp_path):
    theirs = randomised(figure_3(nn.ReLU))
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    model = our_model(activation="relu").eval()
    load_checkpoint(model, tmp_path / "weights.pth")
    image = torch.randn(2, 3, 13, 16)
    torch.testing.assert_close(model(image), theirs(image), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("arguments", [{"stacked": 2}, {"norm": "layer"}, {"residual": "both"}])
def test_own_options_round_trip(arguments, tmp_path):
    model = randomised(our_model(**arguments))
    save_checkpoint({"model": model.state_dict()}, tmp_path / "model.pt")
    loaded = our_model(**arguments).eval()
    load_checkpoint(loaded, tmp_path / "model.pt")
    image = torch.randn(1, 3, 9, 9)
    assert torch.equal(loaded(image), model(image))


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3, "args": argparse.Namespace(lr=0.01)},
        lambda state: {"model": state},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"model_ema": state, "model": {}},
        lambda state: {"state_dict_ema": state, "state_dict": {}},
        lambda state: {"model": state, "model_ema": None},
        lambda state: {"model_state_dict": state, "optimizer_state_dict": {"lr": 0.1}},
        lambda state: {"net": state, "acc": 91.2, "epoch": 3},
        lambda state: {"params_ema": state, "params": {}},
        lambda state: {"state_dict": prefixed(state, "model."), "hyper_parameters": {"lr": 0.1}},
        lambda state: {"state_dict": prefixed(state, "net._orig_mod."), "loops": {}},
        lambda state: {"state_dict_ema": {}, "state_dict": state},
        lambda state: {"model": "convmixer_768_32", "state_dict": state},
        lambda state: prefixed(state, "module.model."),
        lambda state: prefixed(state, "module."),
        lambda state: prefixed(state, "_orig_mod."),
        lambda state: prefixed(state, "_orig_mod.module."),
        lambda state: prefixed(state, "module._orig_mod."),
        lambda state: {**prefixed(state, "module."), "n_averaged": torch.tensor(5)},
        lambda state: collections.OrderedDict(state),
    ],
)
@pytest.mark.parametrize("source", [our_model, figure_3])
def test_wrappers_and_prefixes(wrap, source, tmp_path):
    theirs = randomised(source())
    torch.save(wrap(theirs.state_dict()), tmp_path / "checkpoint.pth.tar")
    model = our_model()
    load_checkpoint(model, tmp_path / "checkpoint.pth.tar")
    for ours, expected in zip(
        model.state_dict().values(), theirs.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, expected)


def test_checkpoints_without_batch_counters(tmp_path):
    state = randomised(our_model()).state_dict()
    shorter = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save(shorter, tmp_path / "old.pt")
    model = our_model()
    load_checkpoint(model, tmp_path / "old.pt")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in shorter.items())


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    theirs = randomised(our_model())
    path = tmp_path / "model.safetensors"
    safetensors.save_file(theirs.state_dict(), path)
    model = our_model().eval()
    load_checkpoint(model, path)
    image = torch.randn(1, 3, 9, 9)
    assert torch.equal(model(image), theirs(image))

    path.write_bytes(path.read_bytes()[:-100])
    check_refused(path, "is damaged or no safetensors file")


def test_the_suffix_of_a_file_does_not_matter(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    state = randomised(our_model()).state_dict()
    safetensors.save_file(state, tmp_path / "model.pt")
    torch.save(state, tmp_path / "model.safetensors")
    for name in ("model.pt", "model.safetensors"):
        model = our_model()
        load_checkpoint(model, tmp_path / name)
        assert torch.equal(model.head.weight, state["head.weight"])


def _changed(change: Callable[[Tensor], Tensor], *names: str) -> dict[str, Tensor]:
    """A state dict in which the named weights, or all of them, are changed."""
    return {
        name: change(tensor)
        if name in names or (not names and tensor.is_floating_point())
        else tensor
        for name, tensor in our_model().state_dict().items()
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.to(torch.int8), "int8, not floating-point numbers: head.weight"),
        (lambda t: t.to(torch.int64), "int64, not floating-point numbers: head.weight"),
        (lambda t: t > 0, "bool, not floating-point numbers: head.weight"),
        (lambda t: t.to(torch.complex64), "complex64, not floating-point numbers: head.weight"),
        (lambda t: t.to("meta"), "without values, on the device meta: head.weight"),
        (lambda t: t.to_sparse(), "sparse_coo tensors, not plain ones: head.weight"),
        (lambda t: t.to_sparse_csr(), "sparse_csr tensors, not plain ones: head.weight"),
        (
            lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
            "quantised tensors, not plain ones: head.weight",
        ),
        (lambda t: t * float("nan"), "not finite: head.weight"),
        (lambda t: (t + 9e4).half(), "not finite: head.weight"),
        (lambda t: t.double() + 1e300, "not finite: head.weight"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:.*quantiz")
def test_tensors_that_are_no_weights_are_refused(change, message, tmp_path):
    torch.save(_changed(change, "head.weight"), tmp_path / "model.pt")
    check_refused(tmp_path / "model.pt", message)


def test_all_that_is_wrong_with_tensors_is_said_at_once(tmp_path):
    torch.save(_changed(lambda t: t.to(torch.int8)), tmp_path / "model.pt")
    check_refused(tmp_path / "model.pt", "stem.0.weight, stem.0.bias, stem.2.weight and ", " more")


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn]
)
def test_weights_of_every_precision_are_loaded(dtype, tmp_path):
    state = _changed(lambda t: t.to(dtype))
    torch.save(state, tmp_path / "model.pt")
    model = our_model()
    load_checkpoint(model, tmp_path / "model.pt")
    assert torch.equal(model.head.weight, state["head.weight"].float())


def test_averaged_counters_of_batches_are_loaded(tmp_path):
    """Averages over all entries of a state dict make floating-point numbers of them."""
    names = [n for n in our_model().state_dict() if n.endswith("num_batches_tracked")]
    torch.save(_changed(lambda t: t + 5.0, *names), tmp_path / "model.pt")
    model = our_model()
    load_checkpoint(model, tmp_path / "model.pt")
    assert model.state_dict()[names[0]] == 5


def check_refused(path, *messages: str, model: nn.Module | None = None) -> None:
    """Loading fails with one line that names the file, and the model keeps its weights."""
    model = model or our_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UsageError) as caught:
        load_checkpoint(model, path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    for message in messages:
        assert message in text
    assert "weights_only" not in text
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path / 'none.pt'}: no such file")):
        load_checkpoint(our_model(), tmp_path / "none.pt")


def test_a_folder_is_no_checkpoint(tmp_path):
    check_refused(tmp_path, ": is a folder")
    (tmp_path / "best.pt").touch()
    check_refused(tmp_path, f": is a folder; did you mean {tmp_path / 'best.pt'}?")


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_truncated_file(kept, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(our_model().state_dict(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    reasons = {0.0: "it is an empty file"}
    check_refused(path, "is damaged", reasons.get(kept, "its end is missing"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_corrupt_file(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(our_model().state_dict(), path)
    data = bytearray(path.read_bytes())
    start = data.index(b"collections")
    for offset in range(0, 60, 6):
        broken = bytearray(data)
        broken[start + offset] ^= 0xFF
        path.write_bytes(broken)
        check_refused(path, "is damaged")
    path.write_text("no checkpoint at all\n")
    check_refused(path, "is damaged", "it is a text file")


def test_a_flipped_bit_of_a_weight_is_noticed(tmp_path):
    """PyTorch loads it without a word."""
    path, model = tmp_path / "model.pt", our_model()
    torch.save(model.state_dict(), path)
    data = bytearray(path.read_bytes())
    data[data.index(model.head.weight.detach().numpy().tobytes()) + 100] ^= 1
    path.write_bytes(data)
    check_refused(path, "is damaged", "Bad CRC-32")


def test_a_weight_marked_as_a_folder_is_noticed(tmp_path):
    """PyTorch gives it whatever stands in memory."""
    path = tmp_path / "model.pt"
    torch.save(our_model().state_dict(), path)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    data[data.index(b"model/data/0", start) - 8] |= (
        0x10  # in its entry of the directory of the archive
    )
    path.write_bytes(data)
    check_refused(path, "is damaged", "data/0 is a folder")


def test_files_without_checksums_are_read(tmp_path):
    state = randomised(our_model()).state_dict()
    computed = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "model.pt")
    finally:
        torch.serialization.set_crc32_options(computed)
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("model.pt", "old.pt"):
        model = our_model()
        load_checkpoint(model, tmp_path / name)
        assert torch.equal(model.head.weight, state["head.weight"])


class Unpicklable:
    pass


def test_other_objects_are_not_executed(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"state_dict": our_model().state_dict(), "extra": Unpicklable()}, path)
    check_refused(path, "not made of weights alone", "Unpicklable", "save the state_dict()")


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: {"model": model}])
def test_whole_models_are_refused_with_what_helps(wrap, tmp_path):
    for model, name in ((our_model(), "ConvMixer"), (figure_3(), "Sequential")):
        torch.save(wrap(model), tmp_path / "model.pt")
        check_refused(tmp_path / "model.pt", f".{name}, and code is not run", "state_dict()")


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_programs_and_other_archives_are_refused(tmp_path):
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "model.pt")
    check_refused(tmp_path / "model.pt", "is TorchScript, no file of weights")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("words.txt", "words")
    check_refused(tmp_path / "other.pt", "is a zip archive, no file of weights as torch.save")


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "ckpt", "safetensors", ""])
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 84\n", "git lfs pull"),
        ("<!DOCTYPE html><html>404</html>", "a web page"),
        ("<html>404</html>", "a web page"),
        ("hello", "a text file"),
        ('{"weight_map": {}}', "a JSON file"),
        ("\0" * 64, "a file of zeros"),
        ("\x1f\x8b\x08", "a compressed file"),
        ("", "an empty file"),
    ],
)
def test_it_is_said_what_a_file_is_instead_of_a_checkpoint(content, kind, suffix, tmp_path):
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(content.encode("latin1"))
    check_refused(path, kind)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, no state dict"),
        (torch.ones(3), "holds a Tensor, no state dict"),
        (None, "holds a NoneType, no state dict"),
        ({1: torch.ones(1)}, "no known format (found 1)"),
        ({"model": {"model": {}}}, "is no state dict: not a tensor: model"),
        ({}, "no known format (found nothing)"),
        ({"epoch": 3}, "is no state dict: not a tensor: epoch"),
        (
            {f"layer{i}.weight": torch.ones(1) for i in range(5)},
            "no known format (found layer0.weight, layer1.weight, layer2.weight and 2 more)",
        ),
    ],
)
def test_unknown_formats(content, message, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(content, path)
    check_refused(path, message, "mmpretrain (backbone.stem.*")


def test_a_checkpoint_that_holds_itself_is_refused(tmp_path):
    content: dict[str, object] = {}
    content["model"] = content
    torch.save(content, tmp_path / "model.pt")
    check_refused(tmp_path / "model.pt", "is no state dict: not a tensor: model")


def test_one_weight_under_two_names_is_refused(tmp_path):
    state = our_model().state_dict()
    torch.save(state | {"model.head.bias": torch.zeros(CLASSES)}, tmp_path / "model.pt")
    check_refused(tmp_path / "model.pt", "has head.bias twice, under different prefixes")


def test_several_heads_are_not_merged():
    state = nn.Sequential(*figure_3(), nn.ReLU(), nn.Linear(CLASSES, CLASSES)).state_dict()
    with pytest.raises(UsageError, match="several layers where ConvMixer has one head"):
        convert_state_dict(state)


def test_wrong_shapes(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(our_model().state_dict(), path)
    check_refused(
        path,
        "does not fit the model; shapes differ: head.weight is (10, 6) in the file and (4, 6) in "
        "the model, head.bias is (10,) in the file and (4,) in the model",
        model=ConvMixer(DIM, DEPTH, KERNEL, PATCH, 4),
    )
    check_refused(
        path,
        "stem.0.weight is (6, 3, 3, 3) in the file and (7, 3, 3, 3) in the model",
        "more",
        model=ConvMixer(DIM + 1, DEPTH, KERNEL, PATCH, CLASSES),
    )


@pytest.mark.parametrize("source", [our_model, figure_3])
def test_wrong_depth(source, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(source().state_dict(), path)
    deeper = ConvMixer(DIM, DEPTH + 1, KERNEL, PATCH, CLASSES)
    check_refused(path, "not in the file: blocks.12.0.fn.0.weight", "and 9 more", model=deeper)
    shallower = ConvMixer(DIM, DEPTH - 1, KERNEL, PATCH, CLASSES)
    check_refused(path, "not in the model: blocks.11.0.fn.0.weight", model=shallower)


def test_layer_norm_model_refuses_batch_norm_statistics(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(our_model().state_dict(), path)
    check_refused(path, "not in the model: stem.2.running_mean", model=our_model(norm="layer"))


def test_save_replaces_the_file_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint({"step": 1, "weights": torch.arange(3)}, path)
    mode = path.stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    assert mode == 0o666 & ~umask

    synchronised = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (synchronised.append("fsync"), real_fsync(fd)))

    def replace(source, target):
        # The old file is complete up to here, and the new one too, in the same folder.
        assert torch.load(target)["step"] == 1
        assert torch.load(source)["step"] == 2
        assert os.path.dirname(source) == str(tmp_path)
        synchronised.append("replace")
        real_replace(source, target)

    monkeypatch.setattr(os, "replace", replace)
    save_checkpoint({"step": 2}, str(path))
    # The file, then its new name in the folder.
    assert synchronised == ["fsync", "replace", *(["fsync"] if os.name == "posix" else [])]
    assert torch.load(path) == {"step": 2}
    assert os.listdir(tmp_path) == ["last.pt"]


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint({"step": 1}, path)

    def fail(state, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint({"step": 2}, path)
    assert torch.load(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["last.pt"]


def test_save_into_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder .*none does not exist"):
        save_checkpoint({}, tmp_path / "none" / "last.pt")
