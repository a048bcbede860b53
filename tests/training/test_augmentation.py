"""Augmentation: the images of timm and torchvision, one by one and many at once."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision import transforms

from convmixer.config.fields import override
from convmixer.config.recipes import load_recipe
from convmixer.config.settings import Config
from convmixer.data import batched_operations
from convmixer.data.augmentation import (
    Augmentation,
    as_tensor,
    draw_erased_box,
    evaluation_crop,
)
from convmixer.data.operations import (
    LARGEST_SIDE_OF_PILLOW,
    Kind,
    Operation,
    Resampling,
    apply,
    rotation,
)
from convmixer.data.sources import ArrayImages, load_splits
from convmixer.errors import UsageError
from convmixer.training.loaders import EpochBatches, TrainingLoader
from convmixer.training.run_state import seed_cpu
from tests.helpers.training import tiny_config

CPU = torch.device("cpu")


def _pixels(count: int, channels: int, height: int, width: int) -> np.ndarray:
    """Random images (N, H, W, C) of various contrasts, one of which is of one colour."""
    generator = np.random.default_rng(height * width)
    shape = (count, height, width, channels)
    levels = generator.integers(0, 256, shape) * generator.integers(30, 256, (count, 1, 1, 1)) / 255
    levels += generator.integers(0, 100, (count, 1, 1, 1))
    levels[0] = 77
    return levels.clip(0, 255).astype(np.uint8)


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0])


def _picture(size: int = 32) -> Image.Image:
    return _image(_pixels(2, 3, size, size)[1])


def _cifar(**changes) -> Config:
    """The recipe cifar10 without augmentation, and with `changes`."""
    plain = {
        "augment.scale": [1, 1],
        "augment.ratio": [1, 1],
        "augment.flip": 0,
        "augment.rand_augment": None,
        "augment.random_erasing": 0,
    }
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return override(load_recipe("cifar10"), plain | named)


# Images are those of timm's and torchvision's transforms from the same random state


def _tensor(image: Image.Image) -> Tensor:
    return as_tensor(np.array(image))


def _seeded(transform, image: Image.Image, seed: int) -> Tensor:
    seed_cpu(seed)
    if isinstance(transform, Augmentation):
        return transform(np.array(image))
    return _tensor(transform(image))


def _timm(text: str) -> tuple[dict[str, str], transforms.Compose]:
    """A policy of timm after the crop that is drawn in any case."""
    mean = tuple(round(255 * value) for value in load_recipe("cifar10").data.mean)
    policy = rand_augment_transform(text, {"translate_const": 14, "img_mean": mean})
    crop = RandomResizedCropAndInterpolation(32, (1, 1), (1, 1), "random")
    return {"rand_augment": text}, transforms.Compose([crop, policy])


@pytest.mark.parametrize(
    ("changes", "transform"),
    [
        _timm("rand-m7-mstd0.5-inc1"),
        _timm("rand-m5-n4-p1"),
        _timm("rand-m8-n3-tweights-inc1"),
        _timm("rand-m7-n3-t3a"),
        ({"rand_augment": "torchvision-n3-m8"}, transforms.RandAugment(3, 8)),
        ({"rand_augment": "torchvision-n2-m30"}, transforms.RandAugment(2, 30)),
        ({"color_jitter": 0.3}, transforms.ColorJitter(0.3, 0.3, 0.3)),
        ({"color_jitter": 1.5}, transforms.ColorJitter(1.5, 1.5, 1.5)),
        ({"crop_padding": 4}, transforms.RandomCrop(32, padding=4)),
        *(
            (
                {"scale": [0.2, 1], "ratio": [0.5, 2], "train_interpolation": name},
                RandomResizedCropAndInterpolation(32, (0.2, 1), (0.5, 2), name),
            )
            for name in ("random", "bilinear", "bicubic", "nearest")
        ),
    ],
)
def test_images_are_those_of_timm_and_torchvision(changes, transform):
    config = _cifar(**{f"augment__{name}": value for name, value in changes.items()})
    augmentation, image = Augmentation(config), _picture()
    if "scale" in changes:
        image = image.crop((0, 0, 25, 31))
    drawn = [_seeded(augmentation, image, seed) for seed in range(40)]
    for seed, ours in enumerate(drawn):
        assert torch.equal(ours, _seeded(transform, image, seed)), seed
    assert len({bytes(each.numpy()) for each in drawn}) > 10


# Larger squares are resized and sheared by PyTorch, with the filters of Pillow


def _photograph(channels: int) -> np.ndarray:
    """A smooth picture with edges, uint8 (150, 200, C)."""
    coarse = _image(_pixels(2, channels, 15, 20)[1])
    pixels = np.array(coarse.resize((200, 150), Resampling.BICUBIC)).reshape(150, 200, channels)
    pixels[40:90, 60:130] = _pixels(2, channels, 50, 70)[1]
    return pixels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interpolation", [Resampling.BILINEAR, Resampling.BICUBIC])
@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 150, 200),
        (20, 37, 99, 83),
        (149, 0, 1, 200),
        (-5, 9, 99, 83),
        (60, 9, 95, 97),
        (9, 110, 95, 97),
    ],
    ids=str,
)
def test_crops_of_photographs_are_those_of_pillow(box, interpolation, channels):
    pixels = _photograph(channels)
    top, left, height, width = box
    cropped = _image(pixels).crop((left, top, left + width, top + height))
    expected = _tensor(cropped.resize((97, 97), interpolation)).int()
    operation = Operation(Kind.CROP, box, interpolation)
    difference = (apply(as_tensor(pixels), [operation], 97, ()) - expected).abs()
    assert (difference > 0).double().mean() < 0.2
    # Bicubic levels beyond 0 and 255 are clipped along the other axis first.
    assert (difference > 1).double().mean() < (0.005 if interpolation == 3 else 1e-9)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "values",
    [
        (1, 0.27, 0, 0, 1, 0), (1, -0.31, 4.5, 0, 1, 0), (1, 0, 0, -0.19, 1, 0),
        (1, 0, 33.3, 0, 1, 0), (1, 0, 0, 0, 1, -71.7), (1, 0, -4, 0, 1, 0), (1, 0, 0, 0, 1, 0),
        (1, 0, 900, 0, 1, 0), (1, 0, 0, 0, 1, -900), (1, 5, 0, 0, 1, 0), (1, 0, 96.6, 0, 1, 0),
        (1, 0, -92.5, 0, 1, 0),
    ],
    ids=str,
)  # fmt: skip
def test_shears_and_translations_of_photographs_are_those_of_pillow(values, channels):
    fill = (124, 116, 104)[:channels]
    pixels = as_tensor(_photograph(channels))[:, :97, :97]
    operation = Operation(Kind.AFFINE, tuple(map(float, values)), Resampling.BICUBIC)
    expected = apply(pixels, [operation], LARGEST_SIDE_OF_PILLOW, fill)
    difference = (apply(pixels, [operation], 97, fill).int() - expected.int()).abs()
    assert difference.max() <= 1 and (difference > 0).double().mean() < 0.01


def test_the_order_in_memory_stays():
    pixels = as_tensor(_photograph(3))
    crop = Operation(Kind.CROP, (0, 0, 90, 120), Resampling.BICUBIC)
    invert = Operation(Kind.INVERT)
    for operations in ([], [crop], [crop, Operation(Kind.FLIP)], [crop, invert], [invert]):
        assert apply(pixels, operations, 97, ()).permute(1, 2, 0).is_contiguous()


def test_the_strongest_posterize_leaves_black():
    # timm calls Pillow with 0 bits, which it refuses.
    augmentation = Augmentation(_cifar(augment__rand_augment="rand-m10-n1-inc1-p1.0"))
    kinds = [augmentation.draw(32, 32)[-1] for _ in range(200)]
    assert Operation(Kind.POSTERIZE, (0,)) in kinds
    assert not apply(_tensor(_picture()), [Operation(Kind.POSTERIZE, (0,))], 32, ()).any()


@pytest.mark.parametrize("size", [8, 32])
def test_the_erased_box_is_that_of_timm(size):
    theirs, erased = RandomErasing(0.4, mode="const", device="cpu"), 0
    for seed in range(200):
        random.seed(seed)
        expected = theirs(torch.ones(3, size, size))
        random.seed(seed)
        top, left, height, width = draw_erased_box(0.4, size)
        ours = torch.ones(3, size, size)
        ours[:, top : top + height, left : left + width] = 0
        assert torch.equal(ours, expected)
        erased += height > 0
    assert 50 < erased < 110


def test_images_are_mirrored_with_the_probability_of_the_settings():
    image = _picture()
    always = Augmentation(_cifar(augment__flip=1.0))
    assert torch.equal(always(np.array(image)), _tensor(ImageOps.mirror(image)))
    seldom = Augmentation(_cifar(augment__flip=0.3))
    random.seed(0)
    flips = [seldom.draw(32, 32)[-1] == Operation(Kind.FLIP) for _ in range(500)]
    assert 110 < sum(flips) < 190


def test_without_augmentation_the_image_stays():
    assert torch.equal(Augmentation(_cifar())(np.array(_picture())), _tensor(_picture()))


def test_a_padded_crop_of_an_image_of_another_size_comes_after_resizing():
    augmentation = Augmentation(_cifar(augment__crop_padding=2))
    image = _picture(40)
    resized = _tensor(image.resize((32, 32), Resampling.BILINEAR))
    padded = torch.nn.functional.pad(resized, (2, 2, 2, 2))
    windows = padded.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4).reshape(25, -1)
    for seed in range(10):
        assert (windows == _seeded(augmentation, image, seed).flatten()).all(1).any()


@pytest.mark.parametrize(
    "policy", ["rand-x9", "torchvision-n1-q8", "torchvision-n1-m31", "torchvision-n1-m", "auto"]
)
def test_unknown_rand_augment_is_refused(policy):
    with pytest.raises(UsageError, match="rand_augment"):
        Augmentation(_cifar(augment__rand_augment=policy))


# Many images at once


def _affine(*values: float) -> list[Operation]:
    kinds = (Resampling.BILINEAR, Resampling.BICUBIC, Resampling.NEAREST)
    return [Operation(Kind.AFFINE, values, kind) for kind in kinds]


def _crops(*boxes: tuple[int, int, int, int]) -> list[Operation]:
    kinds = (Resampling.BILINEAR, Resampling.BICUBIC)
    return [Operation(Kind.CROP, box, kind) for box in boxes for kind in kinds]


OPERATIONS = {
    # A box that is larger than the result is one that Pillow may resize by columns first.
    "crop": _crops((0, 0, 11, 9), (1, 2, 7, 5), (0, 0, 1, 1), (3, 0, 8, 9), (2, 1, 5, 8)),
    "padded crop": _crops((-2, 3, 8, 8), (4, -3, 8, 8), (20, 20, 8, 8)),
    "nearest crop": [Operation(Kind.CROP, (1, 1, 5, 7)), Operation(Kind.CROP, (0, 2, 8, 3))],
    "shear": _affine(1, 0.27, 0, 0, 1, 0) + _affine(1, 0, 0, -0.19, 1, 0),
    "move": _affine(1, 0, 2.3, 0, 1, 0) + _affine(1, 0, 0, 0, 1, -3.7) + _affine(1, 0, 4, 0, 1, 0),
    "rotate": [rotation(angle, 9, 11, r) for angle in (-23.1, 8.4, 30) for r in (2, 3)],
    "flip": [Operation(Kind.FLIP)],
    "invert": [Operation(Kind.INVERT)],
    "auto contrast": [Operation(Kind.AUTO_CONTRAST)],
    "equalize": [Operation(Kind.EQUALIZE)],
    "posterize": [Operation(Kind.POSTERIZE, (bits,)) for bits in range(9)],
    "solarize": [Operation(Kind.SOLARIZE, (value,)) for value in (0, 76.5, 128, 255, 256)],
    "solarize add": [Operation(Kind.SOLARIZE_ADD, (value,)) for value in (0, 30, 110)],
    **{
        kind.name.lower(): [Operation(kind, (factor,)) for factor in (0.0, 0.1, 0.73, 1.0, 1.9)]
        for kind in (Kind.BRIGHTNESS, Kind.CONTRAST, Kind.COLOR, Kind.SHARPNESS)
    },
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_many_images_at_once_are_those_of_pillow(name, channels):
    operations = OPERATIONS[name] * 4
    fill = (124, 116, 104)[:channels]
    pixels = _pixels(len(operations), channels, 11, 9)
    expected = torch.stack(
        [
            apply(as_tensor(each), [operation], 8, fill)
            for each, operation in zip(pixels, operations, strict=True)
        ]
    )
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    table = batched_operations.as_table([[operation] for operation in operations])
    found = batched_operations.apply(images, table, 8, fill)
    assert found.dtype == torch.uint8 and found.shape == expected.shape
    difference = (found.int() - expected.int()).abs()
    assert difference.max() <= 1
    # Pillow rounds between rows and columns, and may take the columns first.
    assert (difference > 0).double().mean() < (0.1 if name == "crop" else 0.01)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 5), (3, 4)])
@pytest.mark.parametrize("kind", list(Kind)[4:14])
def test_the_smallest_images_are_those_of_pillow(kind, shape):
    bare = (Kind.INVERT, Kind.AUTO_CONTRAST, Kind.EQUALIZE)
    operation = Operation(kind, () if kind in bare else (3.0,))
    pixels = _pixels(3, 3, *shape)
    expected = torch.stack([apply(as_tensor(each), [operation], 8, ()) for each in pixels])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    table = batched_operations.as_table([[operation]] * 3)
    assert torch.equal(batched_operations.apply(images, table, 8, ()), expected)


@pytest.mark.parametrize(
    ("recipe", "channels", "changes"),
    [
        ("digits", 1, {}),
        ("cifar10", 3, {}),
        ("cifar10-quick", 3, {"color_jitter": 0.4, "rand_augment": "torchvision-n3-m20"}),
        ("columbia", 3, {"scale": [0.5, 1], "rand_augment": "rand-m9-n3-p1-mstd0.5-inc1"}),
        ("imagenet", 3, {}),
    ],
)
def test_images_on_the_device_are_those_of_the_processor(recipe, channels, changes):
    """Crops, flips, RandAugment, colours, mixing, normalising and erasing, one after another."""
    named = {f"augment.{name}": value for name, value in changes.items()}
    shape = (24, 30) if recipe == "imagenet" else (32, 32)
    sizes = {"data.image_size": 20 if recipe == "imagenet" else 32, "model.patch_size": 1}
    pixels = _pixels(48, channels, *shape)
    images = ArrayImages(
        pixels if channels == 3 else pixels[..., 0],
        np.arange(48) % 10,
        "RGB" if channels == 3 else "L",
    )
    epochs = []
    for resident in ("true", "false"):
        settings = {"data.device_resident": resident, "batch_size": 48}
        config = override(load_recipe(recipe), named | sizes | settings)
        batches = EpochBatches(48, 16, seed=0)
        loader = TrainingLoader(images, config, batches, workers=0, device=CPU)
        epochs.append(list(loader.epoch(0)))
        assert loader.is_resident == (resident == "true")
    level = 1 / (255 * min(config.data.std))
    for (images_1, targets_1), (images_2, targets_2) in zip(*epochs, strict=True):
        assert torch.equal(targets_1, targets_2)
        difference = (images_1 - images_2).abs()
        # An operation on a level that differs by 1 may make more of it: equalize most of all.
        assert (difference > 1.1 * level).double().mean() < 0.02
        assert difference.mean() < 0.05 * level


def test_grey_images_of_the_digits_stay_grey():
    config = tiny_config(augment__rand_augment="rand-m9-n4-mstd0.5-inc1-p1.0")
    images = load_splits(config.data, channels=1).train
    augmentation = Augmentation(config)
    assert all(augmentation(images.image(index)).shape == (1, 8, 8) for index in range(60))


# Evaluation


def test_evaluation_crops_the_centre():
    image = _picture(40)
    config = override(load_recipe("cifar10"), {"data.crop_fraction": 0.8})
    assert torch.equal(evaluation_crop(config)(np.array(image)), _tensor(image)[:, 4:36, 4:36])


@pytest.mark.parametrize(("name", "method"), [
    ("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)
])  # fmt: skip
def test_evaluation_resizes_with_the_interpolation_of_the_settings(name, method):
    image = _picture(50)
    changes = {"data.crop_fraction": 0.9, "data.interpolation": name}
    prepared = evaluation_crop(override(load_recipe("cifar10"), changes))(np.array(image))
    resized = image.resize((35, 35), method)  # 32 / 0.9 = 35.6, rounded down
    # The crop starts at pixel round(1.5) = 2.
    assert torch.equal(prepared, _tensor(resized)[:, 2:34, 2:34])
