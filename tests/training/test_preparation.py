"""Batches of 8-bit images are mixed, normalised and erased on the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from convmixer.config.fields import override
from convmixer.data.preparation import BatchPreparation, Normalization, build_mixup, soft_targets
from convmixer.errors import UsageError
from tests.helpers.training import tiny_config

CPU = torch.device("cpu")
COUNT = 12


def _preparation(**changes) -> BatchPreparation:
    """The preparation of 12 classes, in groups of 4 images."""
    named = {f"augment__{name}": value for name, value in changes.items()}
    config = tiny_config(label_smoothing=0, augment__mix_images=4, model__n_classes=COUNT, **named)
    return BatchPreparation(config, CPU)


def _prepared(
    boxes: np.ndarray | None = None, preparation: BatchPreparation | None = None, seed=0, **changes
) -> tuple[Tensor, Tensor]:
    """Prepare the 12 images of `_images`, with their places as classes."""
    prepare = _preparation(**changes) if preparation is None else preparation
    seeds = np.random.default_rng(seed).integers(2**63, size=COUNT)
    boxes = np.zeros((COUNT, 4), np.int64) if boxes is None else boxes
    return prepare(_images(), np.arange(COUNT), seeds, boxes)


def _images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (COUNT, 1, 8, 8), generator=generator).byte()


def _levels(normalised: Tensor) -> Tensor:
    """Return normalised images in 0..255 again."""
    data = tiny_config().data
    return (normalised.double() * data.std[0] + data.mean[0]) * 255


def test_images_are_normalised():
    data = override(tiny_config(), {"data.mean": [0.2], "data.std": [0.4]}).data
    images = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)
    expected = torch.tensor([[[[-0.5, 0.0, 2.0]]]])
    torch.testing.assert_close(Normalization(data, CPU)(images), expected)


def test_without_mixing_and_erasing_images_are_only_normalised():
    images, targets = _prepared(mixup=0, cutmix=0)
    torch.testing.assert_close(_levels(images), _images().double(), atol=1e-4, rtol=0)
    assert torch.equal(targets, torch.eye(COUNT))


def test_mixup_has_one_share_for_each_group_and_rounds_to_8_bits():
    images, targets = _prepared(mixup=1.0, cutmix=0)
    plain, shares = _images().double(), targets.diagonal().double()
    assert torch.equal(shares, shares[::4].repeat_interleave(4)) and len(set(shares.tolist())) == 3
    share = shares[:, None, None, None]
    partners = torch.cat([group.flip(0) for group in plain.split(4)])
    mixed = (share * plain + (1 - share) * partners).round()
    assert (_levels(images) - mixed).abs().max() < 1e-3
    assert torch.equal(targets.argmax(1) // 4, torch.arange(COUNT) // 4)


def test_cutmix_takes_one_box_for_each_group():
    images, targets = _prepared(mixup=0, cutmix=1.0)
    levels = _levels(images).round()
    boxes = (levels != _images()).any(1)
    for group in range(3):
        members = boxes[4 * group : 4 * group + 4]
        cut = members.any(0)
        share = 1 - float(cut.double().mean())
        assert float(targets[4 * group, 4 * group]) == pytest.approx(share, abs=0.1)
    assert boxes.any()


def test_erased_noise_is_not_mixed():
    """An image whose partner is erased has nothing of the noise; see the authors' order."""
    boxes = np.zeros((COUNT, 4), np.int64)
    boxes[0] = 1, 2, 5, 4
    plain, _ = _prepared(mixup=1.0, cutmix=0)
    erased, _ = _prepared(boxes, mixup=1.0, cutmix=0)
    changed = erased != plain
    expected = torch.zeros(COUNT, 1, 8, 8, dtype=torch.bool)
    expected[0, :, 1:6, 2:6] = True
    assert torch.equal(changed, expected)
    assert abs(float(erased[expected].mean())) < 0.8 and 0.5 < float(erased[expected].std()) < 1.6


@pytest.mark.parametrize(("mode", "values"), [("pixel", 20), ("rand", 1), ("const", 1)])
def test_boxes_are_filled_as_the_settings_say(mode, values):
    boxes = np.array([[1, 2, 5, 4]] * COUNT)
    images, _ = _prepared(boxes, mixup=0, cutmix=0, erasing_mode=mode)
    inside = images[:, 0, 1:6, 2:6].flatten(1)
    assert all(len(set(each.tolist())) == values for each in inside)
    colours = set(inside[:, 0].tolist())
    assert colours == {0.0} if mode == "const" else len(colours) == COUNT


def test_random_numbers_come_from_the_seeds_of_the_images_alone():
    boxes, preparation = np.array([[1, 2, 5, 4]] * COUNT), _preparation()
    np.random.seed(1), torch.manual_seed(1)
    first = _prepared(boxes, preparation)
    expected = np.random.rand(), torch.rand(1)
    np.random.seed(1), torch.manual_seed(1)
    assert expected == (np.random.rand(), torch.rand(1))
    assert all(map(torch.equal, first, _prepared(boxes, preparation)))
    assert not torch.equal(first[0], _prepared(boxes, preparation, seed=1)[0])


def test_mixing_takes_its_strengths_and_probabilities_from_the_settings():
    changes = {"mixup": 0.3, "cutmix": 0.7, "mix_probability": 0.8, "switch_probability": 0.6}
    named = {f"augment__{name}": value for name, value in changes.items()}
    mixing = build_mixup(tiny_config(**named, label_smoothing=0.2))
    strengths = (mixing.mixup_alpha, mixing.cutmix_alpha, mixing.mix_prob, mixing.switch_prob)
    assert strengths == (0.3, 0.7, 0.8, 0.6)
    assert mixing.label_smoothing == 0.2 and mixing.num_classes == 10


def test_no_mixing_without_mixup_and_cutmix():
    assert build_mixup(tiny_config(augment__mixup=0, augment__cutmix=0)) is None


def test_groups_to_mix_are_even():
    with pytest.raises(UsageError, match=r"augment\.mix_images: .* the odd 5"):
        tiny_config(augment__mix_images=5)


def test_soft_targets_are_smoothed_as_cross_entropy_smooths():
    labels = torch.tensor([2, 0, 1])
    logits = torch.randn(3, 4, dtype=torch.float64)
    targets = soft_targets(labels, 4, 0.2)
    ours = torch.nn.functional.cross_entropy(logits, targets.double())
    theirs = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.2)
    torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-7)
