"""Image sources, splits, augmentation, and the order of batches."""

from __future__ import annotations

import itertools
import os
import pickle
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from convmixer.config.fields import override
from convmixer.config.recipes import load_recipe
from convmixer.data.augmentation import (
    batch_mixing,
    evaluation_transform,
    soft_targets,
    training_transform,
)
from convmixer.data.sources import ArrayImages, load_split, load_splits, stratified_split
from convmixer.errors import UsageError
from convmixer.training.loaders import (
    EpochBatches,
    TrainingImages,
    TrainingLoader,
    _loader_options,
    evaluation_loader,
    image_seed,
)
from tests.helpers.training import tiny_config, write_cifar_batches, write_image_folder

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
    assert np.array_equal(np.asarray(splits.train.image(8 + 3)), expected)
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


# Augmentation and evaluation


def _picture(size: int = 32) -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _plain_cifar(**changes):
    named = {name.replace("__", "."): value for name, value in changes.items()}
    plain = {
        "augment.scale": [1, 1],
        "augment.ratio": [1, 1],
        "augment.flip": 0,
        "augment.rand_augment": None,
        "augment.random_erasing": 0,
    }
    return override(load_recipe("cifar10"), plain | named)


def _normalised(image: Image.Image) -> torch.Tensor:
    data = load_recipe("cifar10").data
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).double() / 255
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (data.mean, data.std))
    return (pixels - mean) / std


def test_evaluation_normalises_and_crops_the_centre():
    image = _picture(40)
    config = override(load_recipe("cifar10"), {"data.crop_fraction": 0.8})
    prepared = evaluation_transform(config)(image)
    expected = _normalised(image)[:, 4:36, 4:36]
    torch.testing.assert_close(prepared.double(), expected, atol=1e-5, rtol=1e-5)


def test_evaluation_resizes_before_the_crop():
    config = override(load_recipe("imagenet"), {"data.crop_fraction": 0.5})
    assert evaluation_transform(config)(_picture(600)).shape == (3, 224, 224)


def test_training_without_augmentation_is_the_image():
    image = _picture()
    prepared = training_transform(_plain_cifar())(image)
    torch.testing.assert_close(prepared.double(), _normalised(image), atol=1e-5, rtol=1e-5)


def test_flip_mirrors_the_image():
    image = _picture()
    prepared = training_transform(_plain_cifar(augment__flip=1.0))(image)
    torch.testing.assert_close(prepared.double(), _normalised(image).flip(2), atol=1e-5, rtol=1e-5)


def test_padded_crop_moves_the_image():
    image = _picture()
    transform = training_transform(_plain_cifar(augment__crop_padding=2))
    expected = torch.nn.functional.pad(_normalised(image), (2, 2, 2, 2), value=float("nan"))
    positions = set()
    for _ in range(60):
        prepared = transform(image).double()
        for top in range(5):
            for left in range(5):
                window = expected[:, top : top + 32, left : left + 32]
                inside = ~window.isnan()
                if torch.allclose(prepared[inside], window[inside], atol=1e-5):
                    positions.add((top, left))
    assert len(positions) > 10


def test_random_scale_enlarges_a_part():
    image = _picture()
    transform = training_transform(_plain_cifar(augment__scale=[0.25, 0.25]))
    assert (
        transform(image).std() < 0.95 * _normalised(image).std()
    )  # interpolated noise is smoother


def test_random_erasing_replaces_a_rectangle():
    image = _picture()
    config = _plain_cifar(augment__random_erasing=1.0, augment__erasing_mode="const")
    prepared = training_transform(config)(image)
    erased = (prepared == 0).all(0)
    assert 0.01 < erased.float().mean() < 0.45
    rows, columns = erased.any(1), erased.any(0)
    assert erased.sum() == rows.sum() * columns.sum()


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "torchvision-n1-m8"])
def test_rand_augment_in_both_forms_changes_images(policy):
    image = _picture()
    transform = training_transform(_plain_cifar(augment__rand_augment=policy))
    plain = _normalised(image).float()
    assert any((transform(image) - plain).abs().max() > 0.1 for _ in range(20))


def test_rand_augment_takes_grey_images():
    config = tiny_config(augment__rand_augment="rand-m9-n4-mstd0.5-inc1-p1.0")
    images = load_splits(config.data, channels=1).train
    transform = training_transform(config)
    assert all(transform(images.image(index)).shape == (1, 8, 8) for index in range(60))


def test_the_strongest_posterize_leaves_black():
    transform = training_transform(_plain_cifar(augment__rand_augment="rand-m10-n1-inc1-p1.0"))
    image, black = _picture(), _normalised(Image.new("RGB", (32, 32))).float()
    assert any(torch.allclose(transform(image), black, atol=1e-5) for _ in range(200))


@pytest.mark.parametrize(
    "policy", ["rand-x9", "torchvision-n1-q8", "torchvision-n1-m31", "torchvision-n1-m", "auto"]
)
def test_unknown_rand_augment_is_refused(policy):
    with pytest.raises(UsageError, match="rand_augment"):
        training_transform(_plain_cifar(augment__rand_augment=policy))


def _step(transform, kind: type):
    """The one step of this kind in a composed transform."""
    (found,) = [step for step in transform.transforms if isinstance(step, kind)]
    return found


@pytest.mark.parametrize("policy", ["torchvision-n3-m30", "torchvision-n3-m12"])
def test_rand_augment_of_torchvision_has_its_operations_and_magnitude(policy):
    transform = training_transform(_plain_cifar(augment__rand_augment=policy))
    step = _step(transform, transforms.RandAugment)
    assert step.num_ops == 3 and step.magnitude == int(policy[-2:])


@pytest.mark.parametrize(("mode", "per_pixel", "colour"), [
    ("pixel", True, False), ("rand", False, True), ("const", False, False)
])  # fmt: skip
def test_random_erasing_has_the_mode_and_probability_of_the_settings(mode, per_pixel, colour):
    config = _plain_cifar(augment__random_erasing=0.3, augment__erasing_mode=mode)
    step = _step(training_transform(config), RandomErasing)
    assert (step.per_pixel, step.rand_color) == (per_pixel, colour) and step.probability == 0.3


@pytest.mark.parametrize("name", ["bilinear", "bicubic", "nearest"])
def test_the_random_crop_has_the_interpolation_of_the_settings(name):
    transform = training_transform(_plain_cifar(augment__train_interpolation=name))
    step = _step(transform, RandomResizedCropAndInterpolation)
    assert step.interpolation == InterpolationMode(name)


def test_colors_are_jittered_in_three_ways():
    transform = training_transform(_plain_cifar(augment__color_jitter=0.25))
    step = _step(transform, transforms.ColorJitter)
    assert tuple(step.brightness) == tuple(step.contrast) == tuple(step.saturation) == (0.75, 1.25)
    assert step.hue is None


@pytest.mark.parametrize(("name", "method"), [
    ("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)
])  # fmt: skip
def test_evaluation_resizes_with_the_interpolation_of_the_settings(name, method):
    image = _picture(50)
    changes = {"data.crop_fraction": 0.9, "data.interpolation": name}
    prepared = evaluation_transform(override(load_recipe("cifar10"), changes))(image)
    resized = image.resize((35, 35), method)  # 32 / 0.9 = 35.6, rounded down
    # The crop starts at pixel round(1.5) = 2.
    expected = _normalised(resized)[:, 2:34, 2:34]
    torch.testing.assert_close(prepared.double(), expected, atol=1e-5, rtol=1e-5)


def test_mixing_takes_its_strengths_and_probabilities_from_the_settings():
    changes = {"mixup": 0.3, "cutmix": 0.7, "mix_probability": 0.8, "switch_probability": 0.6}
    named = {f"augment__{name}": value for name, value in changes.items()}
    mixing = batch_mixing(tiny_config(**named, label_smoothing=0.2))
    strengths = (mixing.mixup_alpha, mixing.cutmix_alpha, mixing.mix_prob, mixing.switch_prob)
    assert strengths == (0.3, 0.7, 0.8, 0.6)
    assert mixing.label_smoothing == 0.2 and mixing.num_classes == 10


def test_color_jitter_changes_brightness():
    image = _picture()
    transform = training_transform(_plain_cifar(augment__color_jitter=0.5))
    means = [float(transform(image).mean()) for _ in range(10)]
    assert np.ptp(means) > 0.1


def test_soft_targets_are_smoothed_as_cross_entropy_smooths():
    labels = torch.tensor([2, 0, 1])
    logits = torch.randn(3, 4, dtype=torch.float64)
    targets = soft_targets(labels, 4, 0.2)
    ours = torch.nn.functional.cross_entropy(logits, targets.double())
    theirs = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.2)
    torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-7)


def test_mixing_mixes_images_and_smooths_targets():
    config = tiny_config(augment__mixup=1.0, augment__cutmix=0.0, label_smoothing=0.1)
    np.random.seed(0)
    images = torch.randn(4, 1, 8, 8)
    mixed, targets = batch_mixing(config)(images.clone(), torch.tensor([0, 1, 2, 3]))
    share = (float(targets[0, 0]) - 0.01) / 0.9  # of its own label, smoothing apart
    torch.testing.assert_close(mixed[0], share * images[0] + (1 - share) * images[3])
    torch.testing.assert_close(targets.sum(1), torch.ones(4))


def test_no_mixing_without_mixup_and_cutmix():
    assert batch_mixing(tiny_config(augment__mixup=0, augment__cutmix=0)) is None


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


def _loader(workers: int, seed: int = 0) -> TrainingLoader:
    config = tiny_config()
    images = load_splits(config.data, channels=1).train.select(np.arange(32))
    return TrainingLoader(
        TrainingImages(images, training_transform(config), seed),
        EpochBatches(32, 8, seed=seed),
        workers,
        CPU,
    )


def test_images_do_not_depend_on_the_number_of_workers():
    here, there = list(_loader(0).epoch(1)), list(_loader(2).epoch(1))
    assert len(here) == 4
    for (images, labels), (other_images, other_labels) in zip(here, there, strict=True):
        assert torch.equal(images, other_images) and torch.equal(labels, other_labels)


def test_images_continue_in_the_middle_of_an_epoch():
    loader = _loader(0)
    whole, rest = list(loader.epoch(1)), list(loader.epoch(1, first_step=2))
    assert len(rest) == 2
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[2:], rest, strict=True))


def test_epochs_and_seeds_augment_differently():
    samples = _loader(0)._loader.dataset
    others = _loader(0, seed=1)._loader.dataset
    first = samples[(0, 5)][0]
    assert torch.equal(first, samples[(0, 5)][0])
    assert not torch.equal(first, samples[(1, 5)][0]) and not torch.equal(first, others[(0, 5)][0])


def test_no_two_images_share_a_seed():
    # Among them those whose sums of seed, epoch and index agree, however these are weighted.
    near = itertools.product(range(3), range(3), range(200))
    far = itertools.product(range(2), range(3), range(1_000_000, 1_000_100))
    keys = [*near, *far]
    seeds = {image_seed(*key) for key in keys}
    assert len(seeds) == len({seed % 2**32 for seed in seeds}) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert image_seed(0, 0, 1_000_003) != image_seed(0, 1, 0)


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
    list(_loader(0).epoch(0))
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_evaluation_shards_are_the_whole_once():
    pixels = np.arange(7, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    images = ArrayImages(pixels, np.arange(7), "L")
    transform = evaluation_transform(tiny_config())
    seen = []
    for rank in range(3):
        loader = evaluation_loader(images, transform, 2, workers=0, device=CPU, rank=rank, world=3)
        seen += [int(label) for _, labels in loader for label in labels]
    assert sorted(seen) == list(range(7))


def test_a_damaged_image_in_a_worker_process_is_named(tmp_path: Path):
    write_image_folder(tmp_path, {"train": 2, "test": 2})
    (tmp_path / "train" / "class1" / "0.png").write_bytes(b"no image")
    config = override(load_recipe("imagenet"), {"data.folder": str(tmp_path), "image_size": 16})
    images = load_splits(config.data, channels=3).train
    samples = TrainingImages(images, training_transform(config), seed=0)
    loader = TrainingLoader(samples, EpochBatches(4, 4, seed=0), 1, CPU)
    with pytest.raises(UsageError, match="cannot read image"):
        list(loader.epoch(0))
