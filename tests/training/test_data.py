"""Image sources, splits, augmentation, and the order of batches."""

from __future__ import annotations

import itertools
import os
import pickle
import random
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from convmixer import evaluate, train
from convmixer.config.fields import override
from convmixer.config.recipes import load_recipe
from convmixer.config.settings import Config
from convmixer.data import batched_operations
from convmixer.data.operations import as_tensor
from convmixer.data.sources import ArrayImages, load_split, load_splits, stratified_split
from convmixer.errors import UsageError, one_line
from convmixer.training import loaders, plots, resident
from convmixer.training.bad_images import BadImages
from convmixer.training.distributed import Processes
from convmixer.training.loaders import (
    EpochBatches,
    EvaluationLoader,
    TrainingLoader,
    _loader_options,
    image_seeds,
)
from convmixer.training.reporting import Console
from convmixer.training.resident import resident_images
from convmixer.training.run_folder import RunFolder
from convmixer.training.scoring import score
from convmixer.training.trainer import Trainer
from tests.helpers.training import (
    tiny_config,
    tiny_images_config,
    write_cifar_batches,
    write_image_folder,
)

CPU = torch.device("cpu")


def test_stratified_split_takes_the_fraction_of_every_class():
    labels = np.repeat(np.arange(4), [10, 20, 30, 2])
    rest, held_out = stratified_split(labels, 0.2, seed=3)
    assert sorted([*rest, *held_out]) == list(range(62))
    assert np.bincount(labels[held_out]).tolist() == [2, 4, 6, 1]
    again = stratified_split(labels, 0.2, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip((rest, held_out), again, strict=True))
    assert not np.array_equal(held_out, stratified_split(labels, 0.2, seed=4)[1])


def test_digits_have_three_disjoint_splits_of_the_whole():
    splits = load_splits(tiny_config().data, channels=1)
    parts = [splits.train, splits.validation, splits.test]
    assert [len(part.labels) for part in parts] == [1295, 143, 359]
    pixels = np.concatenate([part.pixels.reshape(-1, 64) for part in parts])
    from sklearn.datasets import load_digits

    original = load_digits().images.reshape(-1, 64) * (255 / 16)
    assert np.allclose(np.sort(pixels, axis=0), np.rint(np.sort(original, axis=0)))
    for part in parts:
        assert np.ptp(np.bincount(part.labels) / len(part.labels)) < 0.02


def test_digits_splits_do_not_depend_on_the_seed_of_the_run():
    first = load_splits(tiny_config(seed=0).data, channels=1)
    second = load_splits(tiny_config(seed=5).data, channels=1)
    assert np.array_equal(first.test.pixels, second.test.pixels)


def test_a_tilde_stands_for_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_cifar_batches(tmp_path / "cifar")
    write_image_folder(tmp_path / "images", {"train": 1, "test": 1})
    write_image_folder(tmp_path / "tests", {"test": 1})
    cifar = override(load_recipe("cifar10"), {"data.folder": "~/cifar"})
    assert len(load_splits(cifar.data, channels=3).test.labels) == 20
    images = override(load_recipe("imagenet"), {"data.folder": "~/images"})
    assert len(load_splits(images.data, channels=3).test.labels) == 2
    images.data.folder = "~/tests"
    assert len(load_split(images.data, 3, "test")[0].labels) == 2


@pytest.mark.parametrize("below", ["", "cifar-10-batches-py"])
def test_cifar10_batches_are_read_with_their_channels_in_order(tmp_path, below):
    write_cifar_batches(tmp_path / "cifar" / below)
    config = override(load_recipe("cifar10"), {"data.folder": str(tmp_path / "cifar")})
    splits = load_splits(config.data, channels=3)
    assert (len(splits.train.labels), len(splits.test.labels)) == (40, 20)
    raw = pickle.loads((tmp_path / "cifar" / below / "data_batch_2").read_bytes())
    red, green, blue = raw["data"][3].reshape(3, 32, 32)
    expected = np.stack([red, green, blue], axis=-1)
    assert np.array_equal(splits.train.image(8 + 3), expected)
    assert splits.train.labels[8 + 3] == 3


def test_cifar10_as_folders_of_images(tmp_path):
    write_image_folder(tmp_path, {"train": 3, "test": 2})
    config = override(load_recipe("columbia"), {"data.folder": str(tmp_path)})
    splits = load_splits(config.data, channels=3)
    assert len(splits.train.labels) == 4 and len(splits.validation.labels) == 2
    assert splits.class_names == ("class0", "class1") and len(splits.test.labels) == 4


def test_image_folder_with_val_and_test_validates_on_val(tmp_path):
    write_image_folder(tmp_path, {"train": 3, "val": 2, "test": 1})
    config = override(load_recipe("imagenet"), {"data.folder": str(tmp_path)})
    splits = load_splits(config.data, channels=3)
    sizes = [len(part.labels) for part in (splits.train, splits.validation, splits.test)]
    assert sizes == [6, 4, 2]


def test_image_folder_with_val_alone_tests_on_val(tmp_path):
    write_image_folder(tmp_path, {"train": 3, "val": 2})
    config = override(load_recipe("imagenet"), {"data.folder": str(tmp_path)})
    splits = load_splits(config.data, channels=3)
    assert splits.validation is None and len(splits.test.labels) == 4


def test_missing_cifar10_names_what_was_looked_for(tmp_path):
    config = override(
        load_recipe("cifar10"), {"data.folder": str(tmp_path / "none"), "data.download": False}
    )
    with pytest.raises(UsageError) as caught:
        load_splits(config.data, channels=3)
    message = str(caught.value)
    assert "data_batch_1" in message and "--data FOLDER" in message and "\n" not in message
    assert str(tmp_path / "none" / "cifar-10-batches-py") in message


def test_failing_download_is_one_line_with_its_reason(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise OSError("<urlopen error no route to host>\nmore")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", no_network)
    config = override(load_recipe("cifar10"), {"data.folder": str(tmp_path)})
    with pytest.raises(UsageError, match=r"downloading it failed .*no route to host") as caught:
        load_splits(config.data, channels=3)
    assert "\n" not in str(caught.value)


class _Malicious:
    def __reduce__(self):
        return os.getcwd, ()


def test_batch_files_cannot_run_code(tmp_path):
    write_cifar_batches(tmp_path)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({"data": _Malicious(), "labels": []}))
    config = override(load_recipe("cifar10"), {"data.folder": str(tmp_path)})
    with pytest.raises(UsageError, match=r"test_batch is not a CIFAR-10 batch: .*getcwd"):
        load_splits(config.data, channels=3)


def test_damaged_batch_file_is_named(tmp_path):
    write_cifar_batches(tmp_path)
    path = tmp_path / "data_batch_4"
    path.write_bytes(path.read_bytes()[:1000])
    config = override(load_recipe("cifar10"), {"data.folder": str(tmp_path)})
    with pytest.raises(UsageError, match="data_batch_4 is not a CIFAR-10 batch"):
        load_splits(config.data, channels=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [0, 1, 2, 3, 4, 5, 6, 10]}, "labels that are no whole numbers from 0 to 9"),
        ({"labels": [0, 1, 2, 3, 4, 5, 6, -1]}, "labels that are no whole numbers from 0 to 9"),
        ({"labels": [0.0] * 8}, "labels that are no whole numbers from 0 to 9"),
        ({"labels": [0] * 7}, r"7 labels beside uint8 pixels \(8, 3072\)"),
        ({"data": np.zeros((8, 3072))}, "8 labels beside float64 pixels"),
        ({"data": np.zeros((8, 3071), np.uint8)}, r"pixels \(8, 3071\)"),
        ({"data": [1, 2]}, "AttributeError"),
        ({"labels": None}, "TypeError"),
    ],
)
def test_batches_of_other_numbers_are_refused(changes, message, tmp_path):
    write_cifar_batches(tmp_path)
    path = tmp_path / "test_batch"
    whole = pickle.loads((tmp_path / "data_batch_1").read_bytes())
    path.write_bytes(pickle.dumps(whole | changes, protocol=2))
    config = override(load_recipe("cifar10"), {"data.folder": str(tmp_path)})
    with pytest.raises(UsageError, match=f"test_batch is not a CIFAR-10 batch: .*{message}"):
        load_splits(config.data, channels=3)


def test_batches_of_cifar100_and_other_files_are_refused(tmp_path):
    config = override(load_recipe("cifar10"), {"data.folder": str(tmp_path)})
    for content, message in (
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "fine_labels": [0]}), "'labels'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"", "an empty file"),
        (pickle.dumps([1, 2]), "TypeError"),
    ):
        write_cifar_batches(tmp_path)
        (tmp_path / "test_batch").write_bytes(content)
        with pytest.raises(UsageError, match=f"test_batch is not a CIFAR-10 batch: .*{message}"):
            load_splits(config.data, channels=3)


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_3", "test_batch"])
def test_a_missing_batch_file_is_named(tmp_path, name):
    write_cifar_batches(tmp_path)
    (tmp_path / name).unlink()
    config = override(load_recipe("cifar10"), {"data.folder": str(tmp_path)})
    with pytest.raises(UsageError, match=f"holds CIFAR-10 without {name}$"):
        load_splits(config.data, channels=3)


def test_test_images_need_no_training_images(tmp_path):
    write_image_folder(tmp_path, {"val": 3}, classes=4)
    config = override(load_recipe("imagenet"), {"data.folder": str(tmp_path)})
    images, class_names, _ = load_split(config.data, 3, "test")
    assert images.labels.tolist() == [label for label in range(4) for _ in range(3)]
    assert class_names == ("class0", "class1", "class2", "class3")
    with pytest.raises(UsageError, match=r"looked for .*train"):
        load_split(config.data, 3, "train")


def test_a_split_is_that_of_the_run():
    splits = load_splits(tiny_config().data, channels=1)
    for name in ("train", "validation", "test"):
        images, class_names, _ = load_split(tiny_config().data, 1, name)
        assert np.array_equal(images.pixels, getattr(splits, name).pixels)
        assert class_names == splits.class_names


@pytest.mark.parametrize(
    ("made", "looked_for"), [({}, "train"), ({"train": 2}, "test"), ({"train": 0, "test": 2}, "")]
)
def test_image_folder_without_images_names_what_was_looked_for(tmp_path, made, looked_for):
    write_image_folder(tmp_path, made)
    config = override(load_recipe("imagenet"), {"data.folder": str(tmp_path)})
    with pytest.raises(UsageError, match=f"looked for .*{looked_for}"):
        load_splits(config.data, channels=3)


def test_test_images_of_an_unknown_class_are_refused(tmp_path):
    write_image_folder(tmp_path, {"train": 2, "test": 2})
    (tmp_path / "test" / "class1").rename(tmp_path / "test" / "stranger")
    config = override(load_recipe("imagenet"), {"data.folder": str(tmp_path)})
    with pytest.raises(UsageError, match="stranger is a class that the training images"):
        load_splits(config.data, channels=3)


def test_damaged_image_is_named(tmp_path):
    write_image_folder(tmp_path, {"train": 2, "test": 2})
    damaged = tmp_path / "train" / "class0" / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    config = override(load_recipe("imagenet"), {"data.folder": str(tmp_path)})
    splits = load_splits(config.data, channels=3)
    with pytest.raises(UsageError, match=r"cannot read image .*class0.1\.png"):
        splits.train.image(1)


# Order of batches


def _keys(**arguments) -> list[list[tuple[int, int]]]:
    batches = EpochBatches(50, 12, seed=1, **arguments)
    batches.epoch = 3
    return list(batches)


def test_an_epoch_takes_every_image_at_most_once_in_an_order_of_its_own():
    batches = EpochBatches(50, 12, seed=1)
    orders = []
    for batches.epoch in (0, 1):
        keys = [key for batch in batches for key in batch]
        assert len(keys) == batches.steps * 12 == 48 and len(set(keys)) == 48
        assert {epoch for epoch, _ in keys} == {batches.epoch}
        orders.append([index for _, index in keys])
    assert orders[0] != orders[1]


def test_the_order_is_that_of_the_seed():
    orders = [
        [key for batch in EpochBatches(50, 12, seed=seed) for key in batch] for seed in (1, 2)
    ]
    assert orders[0] != orders[1]


def test_processes_and_accumulation_share_the_images_of_each_step():
    whole = _keys()
    dealt = [_keys(parts=2, rank=rank, world=3) for rank in range(3)]
    for step, batch in enumerate(whole):
        pieces = [rank[2 * step + part] for part in range(2) for rank in dealt]
        assert all(len(piece) == 2 for piece in pieces)
        assert sorted(key for piece in pieces for key in piece) == sorted(batch)


def test_starting_at_a_step_gives_the_rest_of_the_epoch():
    batches = EpochBatches(50, 12, seed=1, parts=2)
    batches.epoch = 3
    whole = list(batches)
    batches.first_step = 3
    assert list(batches) == whole[6:] and len(batches) == len(whole[6:])


@pytest.mark.parametrize(
    ("size", "arguments", "message"),
    [
        (11, {}, "batch_size 12 exceeds the 11 training images"),
        (50, {"parts": 5}, "not a multiple of accumulation_steps 5"),
        (50, {"world": 8}, "not a multiple of accumulation_steps 1 times 8 processes"),
    ],
)
def test_impossible_batches_are_refused(size, arguments, message):
    with pytest.raises(UsageError, match=message):
        EpochBatches(size, 12, seed=0, **arguments)


def _loader(workers: int = 0, **changes) -> TrainingLoader:
    config = tiny_config(**changes)
    images = load_splits(config.data, channels=1).train.select(np.arange(32))
    batches = EpochBatches(32, 8, seed=config.seed)
    return TrainingLoader(images, config, batches, workers=workers, device=CPU)


RESIDENT = pytest.mark.parametrize("resident", ["true", "false"])


@RESIDENT
def test_images_do_not_depend_on_the_number_of_workers(resident):
    here, there = (
        list(_loader(workers, data__device_resident=resident).epoch(1)) for workers in (0, 2)
    )
    assert len(here) == 4
    for (images, targets), (other_images, other_targets) in zip(here, there, strict=True):
        assert torch.equal(images, other_images) and torch.equal(targets, other_targets)


@RESIDENT
def test_images_continue_in_the_middle_of_an_epoch(resident):
    loader = _loader(data__device_resident=resident)
    whole, rest = list(loader.epoch(1)), list(loader.epoch(1, first_step=3))
    assert len(rest) == 1
    assert all(map(torch.equal, whole[3], rest[0]))


def test_a_process_that_draws_numbers_goes_on_with_the_next_epoch():
    here, there = (_loader(workers, data__device_resident="true") for workers in (0, 1))
    for epoch, first_step, next_epoch in (
        (0, 0, 1),
        (1, 0, None),
        (0, 2, 1),
        (0, 0, 1),
        (1, 3, None),
    ):
        expected = itertools.chain(*here.epoch(epoch, first_step))
        found = itertools.chain(*there.epoch(epoch, first_step))
        assert all(itertools.starmap(torch.equal, zip(found, expected, strict=True)))
        assert (there._begun and there._begun[0]) == next_epoch


@RESIDENT
def test_images_do_not_depend_on_how_many_are_augmented_together(resident, monkeypatch):
    # Few of the operations are applied, so that batches differ in the most of one image.
    changes = {
        "data__device_resident": resident,
        "augment__rand_augment": "rand-m5-n4-p0.2-mstd0.5-inc1",
    }
    whole = list(_loader(**changes).epoch(1))
    monkeypatch.setattr(loaders, "IMAGES_AUGMENTED_TOGETHER", 16)
    parts = list(_loader(**changes).epoch(1))
    assert all(map(torch.equal, itertools.chain(*whole), itertools.chain(*parts)))


def test_batches_are_augmented_together_up_to_a_number_of_images(monkeypatch):
    monkeypatch.setattr(loaders, "IMAGES_AUGMENTED_TOGETHER", 25)
    counts: list[int] = []
    apply = batched_operations.apply

    def counted(images, *arguments):
        counts.append(len(images))
        return apply(images, *arguments)

    monkeypatch.setattr(batched_operations, "apply", counted)
    loader = _loader(data__device_resident="true")
    assert [len(images) for images, _ in loader.epoch(0)] == [8] * 4 and counts == [24, 8]
    monkeypatch.setattr(loaders, "IMAGES_AUGMENTED_TOGETHER", 5)
    counts.clear()
    assert len(list(_loader(data__device_resident="true").epoch(0))) == 4 and counts == [8] * 4


@RESIDENT
def test_processes_and_accumulation_have_the_images_of_one_process(resident):
    config = tiny_config(data__device_resident=resident, augment__mix_images=2)
    images = load_splits(config.data, channels=1).train.select(np.arange(32))

    def epoch(**shares):
        batches = EpochBatches(32, 16, seed=0, **shares)
        return list(TrainingLoader(images, config, batches, workers=0, device=CPU).epoch(2))

    one = epoch()
    four = [epoch(parts=2, rank=rank, world=2) for rank in range(2)]
    for step in range(2):
        parts = [four[rank][2 * step + part] for part in range(2) for rank in range(2)]
        assert all(map(torch.equal, one[step], map(torch.cat, zip(*parts, strict=True))))


def test_images_are_loaded_in_8_bits_with_the_channels_of_a_pixel_side_by_side(tmp_path):
    write_image_folder(tmp_path, {"train": 4, "test": 1})
    config = tiny_images_config(tmp_path, data__device_resident="false")
    images = load_splits(config.data, channels=3).train
    batches = EpochBatches(8, 4, seed=0)
    loader = TrainingLoader(images, config, batches, workers=0, device=CPU)
    (content, *_), _ = loader.loaded(0)
    assert content.dtype == torch.uint8 and content.shape == (4, 3, 8, 8)
    assert content.is_contiguous(memory_format=torch.channels_last)


def test_epochs_and_seeds_augment_differently():
    def image(loader: TrainingLoader, epoch: int) -> torch.Tensor:
        return loader._loader.dataset[(epoch, 5)].content

    first, others = (_loader(seed=seed, data__device_resident="false") for seed in (0, 1))
    assert torch.equal(image(first, 0), image(first, 0))
    assert not torch.equal(image(first, 0), image(first, 1))
    assert not torch.equal(image(first, 0), image(others, 0))


def test_no_two_images_share_a_seed():
    seeds = np.concatenate(
        [image_seeds(*key, 500) for key in itertools.product(range(3), range(3))]
    )
    assert seeds.shape == (4500, 2) and seeds.min() >= 0
    assert len(set(seeds.flatten().tolist())) == 9000
    assert not np.array_equal(image_seeds(0, 1, 500), image_seeds(1, 0, 500))


class _Processes(torch.utils.data.Dataset):
    """The process group of the process that loads, and how it takes an interrupt."""

    def __getitem__(self, _):
        return os.getpgrp(), int(signal.getsignal(signal.SIGINT))

    def __len__(self):
        return 1


def test_workers_leave_signals_to_the_main_process():
    options = _loader_options(1, CPU)
    ((group, interrupt),) = torch.utils.data.DataLoader(_Processes(), **options)
    assert int(group) != os.getpgrp() and int(interrupt) == signal.SIG_IGN


def test_loading_leaves_the_random_state_of_the_program_alone():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    list(_loader().epoch(0))
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


@RESIDENT
def test_evaluation_shards_are_the_whole_once(resident):
    pixels = np.arange(7, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    images = ArrayImages(pixels, np.arange(7), "L")
    config = tiny_config(data__device_resident=resident)
    seen = []
    for rank in range(3):
        loader = EvaluationLoader(images, config, 2, Processes(CPU, rank, 3), workers=0)
        first, again = list(loader), list(loader)
        assert all(map(torch.equal, itertools.chain(*first), itertools.chain(*again)))
        seen += [int(label) for _, labels in first for label in labels]
    assert sorted(seen) == list(range(7))


# Images on the device


def _resident(images, config: Config) -> bool:
    found = resident_images(images, config, CPU, BadImages(config.data.bad_images))
    if found is not None:
        assert found.pixels.dtype == torch.uint8 and len(found.pixels) == len(images.labels)
        assert found.pixels.shape[1] == config.model.in_chans
        assert np.array_equal(found.labels, images.labels)
        assert torch.equal(found.pixels[3], as_tensor(images.image(3)))
    return found is not None


def test_images_stay_on_the_device_where_their_policy_allows_it():
    images = load_splits(tiny_config().data, channels=1).train
    blur = {"augment__rand_augment": "rand-m5-t3a"}
    assert _resident(images, tiny_config())
    assert not _resident(images, tiny_config(data__device_resident="false"))
    assert not _resident(images, tiny_config(**blur))
    with pytest.raises(UsageError, match=r"device_resident: .* rand-m5-t3a blurs"):
        _resident(images, tiny_config(data__device_resident="true", **blur))


@pytest.mark.parametrize(("limit", "least"), [("MOST_BYTES", 1295 * 64), ("LARGEST_SIDE", 8)])
def test_large_images_stay_on_the_device_only_where_asked_to(limit, least, monkeypatch):
    images = load_splits(tiny_config().data, channels=1).train
    monkeypatch.setattr(resident, limit, least)
    assert _resident(images, tiny_config())
    monkeypatch.setattr(resident, limit, least - 1)
    assert not _resident(images, tiny_config())
    assert _resident(images, tiny_config(data__device_resident="true"))


def test_images_in_files_stay_on_the_device_if_they_have_one_size(tmp_path):
    write_image_folder(tmp_path, {"train": 3, "test": 1})
    config = tiny_images_config(tmp_path)
    images = load_splits(config.data, channels=3).train
    assert _resident(images, config)
    Image.new("RGB", (9, 7)).save(tmp_path / "train" / "class1" / "1.png")
    assert not _resident(images, config)
    with pytest.raises(UsageError, match="one size, and here are 10 x 12 and 9 x 7 pixels"):
        _resident(images, override(config, {"data.device_resident": True}))


# Images that cannot be read


def _damage(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"no image")


def _training_loader(config, workers: int = 0) -> TrainingLoader:
    images = load_splits(config.data, channels=3).train
    batches = EpochBatches(len(images.labels), 2, seed=0)
    return TrainingLoader(images, config, batches, workers=workers, device=CPU)


@pytest.fixture
def damaged(tmp_path) -> Path:
    write_image_folder(tmp_path, {"train": 4, "test": 4})
    _damage(tmp_path, "train/class0/1.png", "train/class1/3.png", "test/class1/0.png")
    return tmp_path


@pytest.mark.parametrize(("workers", "resident"), [(0, "false"), (2, "false"), (0, "true")])
def test_an_image_that_cannot_be_read_is_replaced_by_the_next(damaged, workers, resident):
    changes = {"augment__mixup": 0, "augment__cutmix": 0, "data__device_resident": resident}
    config = tiny_images_config(damaged, **changes)
    loader = _training_loader(config, workers)
    found = [list(loader.epoch(epoch)) for epoch in (0, 1)]
    assert len(found[0]) == 4
    assert sorted(map(_file, loader.bad_images.unreported())) == ["class0/1.png", "class1/3.png"]
    assert loader.bad_images.unreported() == []
    # The last image of all is followed by the first.
    labels = torch.cat([targets for _, targets in found[1]]).argmax(1)
    assert torch.bincount(labels).tolist() == [5, 3]
    rest = list(_training_loader(config).epoch(1, first_step=2))
    assert all(map(torch.equal, itertools.chain(*found[1][2:]), itertools.chain(*rest)))


def _file(line: str) -> str:
    return "/".join(line.removeprefix("cannot read image ").split(": ")[0].split("/")[-2:])


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_cannot_be_read_are_left_out_of_an_evaluation(damaged, workers):
    config = tiny_images_config(damaged)
    images = load_splits(config.data, channels=3).test
    loader = EvaluationLoader(images, config, 4, Processes(CPU), workers=workers)
    assert [labels.tolist() for _, labels in loader] == [[0, 0, 0, 0], [1, 1, 1]]
    assert list(map(_file, loader.bad_images.unreported())) == ["class1/0.png"]


@pytest.mark.parametrize("workers", [0, 2, None])
@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (0, r"cannot read image \S+\.png: it is a text file$"),
        (1, r"; 2 images cannot be read, and data\.bad_images allows 1$"),
    ],
)
def test_more_images_that_cannot_be_read_than_allowed_end_the_epoch(
    damaged, workers, limit, message
):
    changes = {
        "data__bad_images": limit,
        "data__device_resident": "true" if workers is None else "false",
    }
    config = tiny_images_config(damaged, **changes)
    with pytest.raises(UsageError) as caught:
        list(_training_loader(config, workers or 0).epoch(0))
    assert re.search(message, one_line(caught.value))


def test_images_none_of_which_can_be_read_are_refused(tmp_path):
    write_image_folder(tmp_path, {"train": 1, "test": 1})
    _damage(tmp_path, *(f"{split}/class{c}/0.png" for split in ("train", "test") for c in (0, 1)))
    config = tiny_images_config(tmp_path)
    with pytest.raises(UsageError, match="none of the 2 training images can be read: cannot read"):
        list(_training_loader(config).epoch(0))
    images = load_splits(config.data, channels=3).test
    loader = EvaluationLoader(images, config, 2, Processes(CPU), workers=0)
    model = torch.nn.Flatten()
    with pytest.raises(UsageError, match="no image to evaluate on"):
        score(model, loader, config, Processes(CPU))


def test_images_that_several_processes_cannot_read_count_once_and_together(tmp_path, capsys):
    config = tiny_config(data__bad_images=2)
    processes = SimpleNamespace(**vars(Processes(CPU)), is_main=True)
    trainer = Trainer(
        config, load_splits(config.data, 1), RunFolder(tmp_path / "run"), Processes(CPU), Console()
    )
    processes.gather = lambda own: [[*own, "a"], ["b", "a"]]
    trainer.processes = processes
    trainer.report_bad_images()
    trainer.report_bad_images()
    assert capsys.readouterr().out.splitlines() == ["skipped: a", "skipped: b"]
    processes.gather = lambda own: [own, ["c"]]
    with pytest.raises(UsageError, match=r"^c; 3 images cannot be read, and .* allows 2$"):
        trainer.report_bad_images()


def test_runs_say_where_their_images_are_augmented():
    lines = [_loader(data__device_resident=resident).description for resident in ("true", "false")]
    assert lines == [
        "images: all on cpu (0.0 MiB), augmented there many at once",
        "images: augmented one by one, in this process",
    ]


def test_runs_and_evaluations_say_which_images_were_skipped(damaged, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plots, "save_curves", lambda *_: None)
    summary = train(tiny_images_config(damaged), tmp_path / "run")
    assert summary["bad_images"] == 3 and summary["test_images"] == 7
    lines = capsys.readouterr().out.splitlines()
    skipped = [line.removeprefix("skipped: ") for line in lines if line.startswith("skipped: ")]
    assert sorted(map(_file, skipped)) == ["class0/1.png", "class1/0.png", "class1/3.png"]
    scores = evaluate(tmp_path / "run")
    assert (scores["bad_images"], scores["images"]) == (1, 7)
    assert re.search(r"^skipped: cannot read image \S+class1/0\.png", capsys.readouterr().out, re.M)
