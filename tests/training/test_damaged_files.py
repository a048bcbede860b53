"""Hundreds of damaged files: each is read right, or refused in one line that names it."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convmixer import ConvMixer, load_checkpoint
from convmixer.cli import main
from convmixer.config.recipes import RECIPE_FOLDER, load_recipe
from convmixer.data.image_files import read_image
from convmixer.data.sources import _read_cifar10_batch
from convmixer.errors import UsageError
from convmixer.model.checkpoints import read_file
from convmixer.training import plots
from convmixer.training.runs import train
from tests.helpers.training import (
    assert_same_state,
    tiny_images_config,
    write_cifar_batches,
    write_image_folder,
)

Damage = Callable[[bytearray, random.Random], bytes]


def _cut(data: bytearray, chance: random.Random) -> bytes:
    return bytes(data[: chance.randrange(len(data))])


def _flip_bits(data: bytearray, chance: random.Random) -> bytes:
    for _ in range(chance.choice((1, 1, 2, 20))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def _flip_at_the_start(data: bytearray, chance: random.Random) -> bytes:
    data[chance.randrange(min(64, len(data)))] ^= 1 << chance.randrange(8)
    return bytes(data)


def _lose_a_part(data: bytearray, chance: random.Random) -> bytes:
    first, last = sorted(chance.randrange(len(data)) for _ in range(2))
    return bytes(data[:first] + data[last:])


def _repeat_a_part(data: bytearray, chance: random.Random) -> bytes:
    first, last = sorted(chance.randrange(len(data)) for _ in range(2))
    return bytes(data[:last] + data[first:])


def _overwrite_a_part(data: bytearray, chance: random.Random) -> bytes:
    start = chance.randrange(len(data))
    length = min(chance.choice((1, 4, 40)), len(data) - start)
    filling = chance.choice((b"\0", b"\xff", b"\n", None))
    data[start : start + length] = chance.randbytes(length) if filling is None else filling * length
    return bytes(data)


def _become_something_else(data: bytearray, chance: random.Random) -> bytes:
    return chance.choice(
        (
            b"",
            b"\0" * len(data),
            b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 84\n",
            b"<!DOCTYPE html>\n<html><body>404</body></html>\n",
            b"PK\x03\x04" + bytes(data[4:]),
            b"\x80\x04" + bytes(data),
            chance.randbytes(300),
        )
    )


DAMAGES = (
    _cut, _flip_bits, _flip_at_the_start, _lose_a_part, _repeat_a_part, _overwrite_a_part,
    _become_something_else,
)  # fmt: skip


def _damaged(good: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Yield `count` damaged copies of a file, each kind of damage as often as the others."""
    chance = random.Random(seed)
    for number in range(count):
        yield DAMAGES[number % len(DAMAGES)](bytearray(good), chance)


def _check_message(error: UsageError, path: Path) -> None:
    message = str(error)
    assert path.name in message and "\n" not in message and len(message) < 700
    assert "weights_only" not in message


def _picture(mode: str) -> Image.Image:
    generator = np.random.default_rng(0)
    shape = (11, 9) if mode in ("L", "I;16", "F") else (11, 9, len(mode))
    values = generator.random(shape)
    if mode == "F":
        return Image.fromarray(values.astype(np.float32))
    kind, top = (np.uint16, 65535) if mode == "I;16" else (np.uint8, 255)
    return Image.fromarray((values * top).astype(kind))


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        ("png", "RGB"), ("png", "RGBA"), ("png", "I;16"), ("jpg", "RGB"), ("bmp", "RGB"),
        ("gif", "L"), ("tif", "RGB"), ("tif", "F"), ("tif", "I;16"), ("webp", "RGB"),
        ("ppm", "RGB"), ("tga", "RGB"), ("jp2", "RGB"), ("ico", "RGBA"), ("pcx", "RGB"),
    ],
)  # fmt: skip
def test_damaged_images(suffix, mode, tmp_path):
    path = tmp_path / f"picture.{suffix}"
    _picture(mode).save(path)
    good = path.read_bytes()
    refused = 0
    for number, data in enumerate(_damaged(good, 28, seed=1)):
        path.write_bytes(data)
        wanted = "L" if number % 2 else "RGB"
        try:
            image = read_image(str(path), wanted)
        except UsageError as error:
            _check_message(error, path)
            refused += 1
        else:
            assert image.ndim == (2 if wanted == "L" else 3) and image.size > 0
    assert refused >= 8  # at least those of another content, and those that were cut


class _Legacy:
    """Write a file as torch.save did before PyTorch 1.6."""

    @staticmethod
    def save(state, path):
        torch.save(state, path, _use_new_zipfile_serialization=False)


def _save_safetensors(state, path):
    pytest.importorskip("safetensors.torch").save_file(state, path)


@pytest.mark.parametrize(
    ("save", "has_checksums"),
    [(torch.save, True), (_Legacy.save, False), (_save_safetensors, False)],
)
def test_damaged_checkpoints(save, has_checksums, tmp_path):
    torch.manual_seed(0)
    weights = ConvMixer(4, 1, 3, 2, 3).state_dict()
    path = tmp_path / "model.pt"
    save(weights, path)
    good = path.read_bytes()
    refused = 0
    for data in _damaged(good, 70, seed=2):
        path.write_bytes(data)
        model = ConvMixer(4, 1, 3, 2, 3)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        try:
            load_checkpoint(model, path)
        except UsageError as error:
            _check_message(error, path)
            refused += 1
            after = before
        else:
            after = weights if has_checksums else model.state_dict()
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, after[name]) and tensor.isfinite().all()
    assert refused >= 30


def test_damaged_cifar_batches(tmp_path):
    write_cifar_batches(tmp_path)
    path = tmp_path / "data_batch_1"
    good = path.read_bytes()
    refused = 0
    for data in _damaged(good, 70, seed=3):
        path.write_bytes(data)
        try:
            pixels, labels = _read_cifar10_batch(path)
        except UsageError as error:
            _check_message(error, path)
            refused += 1
        else:
            assert pixels.dtype == np.uint8 and pixels.shape == (len(labels), 32, 32, 3)
            assert set(labels.tolist()) <= set(range(10))
    assert refused >= 30


def test_damaged_recipes(tmp_path):
    path = tmp_path / "mine.yaml"
    good = (RECIPE_FOLDER / "digits.yaml").read_bytes()
    refused = 0
    for data in _damaged(good, 84, seed=4):
        path.write_bytes(data)
        try:
            load_recipe(str(path))
        except UsageError as error:
            _check_message(error, path)
            refused += 1
    assert refused >= 30


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A finished run on four images, and its settings."""
    place = tmp_path_factory.mktemp("damaged")
    write_image_folder(place / "images", {"train": 2, "test": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save_curves", lambda *_: None)
        train(tiny_images_config(place / "images"), place / "run", silent=True)
    return place / "run"


@pytest.mark.parametrize(
    "name", ["config.yaml", "last.pt", "best.pt", "summary.json", "metrics.csv"]
)
def test_damaged_run_folders(name, run_folder, tmp_path, monkeypatch):
    """A run that had not come to its end, but for `summary.json`, goes on or says what is wrong."""
    monkeypatch.setattr(plots, "save_curves", lambda *_: None)
    good = (run_folder / name).read_bytes()
    codes = []
    for number, data in enumerate(_damaged(good, 14, seed=5)):
        out = tmp_path / str(number)
        shutil.copytree(run_folder, out)
        if name != "summary.json":
            (out / "summary.json").unlink()
        (out / name).write_bytes(data)
        error = io.StringIO()
        with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
            codes.append(main(["train", "--resume", "--out", str(out)]))
        if codes[-1] == 0:
            assert error.getvalue() == ""
            states = [dict(read_file(folder / "best.pt")) for folder in (run_folder, out)]
            assert_same_state(*states)
        else:
            assert codes[-1] == 2 and error.getvalue().count("\n") == 1
            assert "Traceback" not in error.getvalue()
            # Damaged settings may name another folder of images, or none.
            named = (str(out), "--data", "images found")
            assert any(words in error.getvalue() for words in named)
    needed = {"config.yaml": 4, "last.pt": 10, "best.pt": 0, "summary.json": 8, "metrics.csv": 0}
    assert codes.count(2) >= needed[name]
