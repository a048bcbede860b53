"""Augmentation of training images: what is drawn for an image, and the augmented image."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import RandAugment as TimmRandAugment
from timm.data.auto_augment import rand_augment_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision import transforms

from convmixer.config.settings import Config
from convmixer.data.image_files import Pixels
from convmixer.data.operations import (
    NOTHING,
    Kind,
    Operation,
    Resampling,
    apply,
    as_tensor,
    rotation,
)
from convmixer.errors import UsageError

TRANSLATE_FRACTION = 0.45
"""timm's RandAugment moves an image by up to this part of its size."""

_INTERPOLATIONS = {
    "random": (Resampling.BILINEAR, Resampling.BICUBIC),
    "bilinear": (Resampling.BILINEAR,),
    "bicubic": (Resampling.BICUBIC,),
    "nearest": (Resampling.NEAREST,),
}
_COLOURS = (Kind.BRIGHTNESS, Kind.CONTRAST, Kind.COLOR)
_ERASED_AREA = (0.02, 1 / 3)
_ERASED_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))
_TRIES = 10
"""Tries to draw a rectangle that fits into the image; timm gives up after as many."""

NO_BOX = (0, 0, 0, 0)


class _Drawn(list[Operation]):
    """The operations that a policy has drawn for an image of a width and a height."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__()
        self.width, self.height = width, height


def _of_timm(name: str, drawn: _Drawn, *values: float, resample: Any, **_: Any) -> _Drawn:
    """Note an operation of timm's RandAugment in place of applying it; see timm's `AugmentOp`."""
    plain = name.removesuffix("Increasing").removesuffix("Original")
    if plain in _TIMM_KINDS:
        drawn.append(Operation(_TIMM_KINDS[plain], values))
        return drawn
    (value,) = values
    if plain == "Desaturate":
        drawn.append(Operation(Kind.COLOR, (min(1.0, max(0.0, 1.0 - value)),)))
        return drawn
    interpolation = random.choice(resample)
    if plain == "Rotate":
        drawn.append(rotation(value, drawn.width, drawn.height, interpolation))
        return drawn
    if plain.endswith("Rel"):
        value *= drawn.width if plain == "TranslateXRel" else drawn.height
    drawn.append(_moved(plain.removesuffix("Rel"), value, interpolation))
    return drawn


def _moved(name: str, value: float, interpolation: Resampling) -> Operation:
    """Return a shear by `value` pixels a pixel, or a translation by `value` pixels."""
    values = {
        "ShearX": (1.0, value, 0.0, 0.0, 1.0, 0.0),
        "ShearY": (1.0, 0.0, 0.0, value, 1.0, 0.0),
        "TranslateX": (1.0, 0.0, value, 0.0, 1.0, 0.0),
        "TranslateY": (1.0, 0.0, 0.0, 0.0, 1.0, value),
    }[name]
    return Operation(Kind.AFFINE, values, interpolation)


_TIMM_KINDS = {
    "AutoContrast": Kind.AUTO_CONTRAST,
    "Equalize": Kind.EQUALIZE,
    "Invert": Kind.INVERT,
    "Posterize": Kind.POSTERIZE,
    "Solarize": Kind.SOLARIZE,
    "SolarizeAdd": Kind.SOLARIZE_ADD,
    "Color": Kind.COLOR,
    "Contrast": Kind.CONTRAST,
    "Brightness": Kind.BRIGHTNESS,
    "Sharpness": Kind.SHARPNESS,
    "GaussianBlur": Kind.BLUR,
}


class _TimmPolicy:
    """timm's RandAugment, such as `rand-m9-mstd0.5-inc1`."""

    def __init__(self, text: str, config: Config) -> None:
        mean = tuple(round(255 * value) for value in config.data.mean)
        hparams: dict[str, Any] = {
            "translate_const": int(config.data.image_size * TRANSLATE_FRACTION),
            "img_mean": mean if len(mean) == 3 else mean[0],
        }
        try:
            self._policy: TimmRandAugment = rand_augment_transform(text, hparams)
        except (AssertionError, ValueError, KeyError):
            raise UsageError(f"augment.rand_augment: timm does not know {text!r}") from None
        self.fill = mean
        self.is_batched = all(operation.name != "GaussianBlur" for operation in self._policy.ops)
        for operation in self._policy.ops:
            operation.aug_fn = functools.partial(_of_timm, operation.name)
        # NumPy would make an array of the list for each image.
        self._policy.ops = np.array(self._policy.ops, dtype=object)

    def draw(self, width: int, height: int) -> list[Operation]:
        drawn: _Drawn = self._policy(_Drawn(width, height))
        return drawn


class _TorchvisionPolicy:
    """torchvision's RandAugment: `torchvision-n1-m8` is one operation of magnitude 8."""

    is_batched = True

    def __init__(self, text: str, config: Config) -> None:
        options = {part[:1]: part[1:] for part in text.split("-")[1:]}
        if not options.keys() <= {"n", "m"} or not all(map(str.isdigit, options.values())):
            raise UsageError(_unknown_policy(text))
        self._count, self._magnitude = int(options.get("n", 2)), int(options.get("m", 9))
        self._policy = transforms.RandAugment(self._count, self._magnitude)
        bins = self._policy.num_magnitude_bins
        if self._magnitude >= bins:
            raise UsageError(
                f"augment.rand_augment: torchvision's magnitude is at most {bins - 1}, got {text!r}"
            )
        self.fill = (0,) * config.model.in_chans
        self._choices_by_size: dict[tuple[int, int], list[tuple[str, float, bool]]] = {}

    def draw(self, width: int, height: int) -> list[Operation]:
        choices = self._choices(width, height)
        return [self._operation(choices, width, height) for _ in range(self._count)]

    def _choices(self, width: int, height: int) -> list[tuple[str, float, bool]]:
        """Return the name of each operation, its value, and whether its sign is drawn."""
        if (width, height) not in self._choices_by_size:
            bins = self._policy.num_magnitude_bins
            space = self._policy._augmentation_space(bins, (height, width))
            self._choices_by_size[width, height] = [
                (name, float(values[self._magnitude]) if values.ndim else 0.0, signed)
                for name, (values, signed) in space.items()
            ]
        return self._choices_by_size[width, height]

    def _operation(
        self, choices: Sequence[tuple[str, float, bool]], width: int, height: int
    ) -> Operation:
        """Draw as torchvision's `RandAugment.forward` does."""
        name, value, signed = choices[int(torch.randint(len(choices), (1,)))]
        if signed and torch.randint(2, (1,)):
            value = -value
        if name == "Identity":
            return NOTHING
        if name in ("Brightness", "Color", "Contrast", "Sharpness"):
            return Operation(_TIMM_KINDS[name], (1.0 + value,))
        if name in ("Posterize", "Solarize"):
            return Operation(_TIMM_KINDS[name], (value,))
        if name in _TIMM_KINDS:
            return Operation(_TIMM_KINDS[name])
        if name == "Rotate":
            return rotation(value, width, height, Resampling.NEAREST)
        if name.startswith("Translate"):
            value = -float(int(value))  # The image moves by whole pixels, the map the other way.
        return _moved(name, value, Resampling.NEAREST)


def _unknown_policy(text: str) -> str:
    return (
        "augment.rand_augment: expected timm's form such as rand-m9-mstd0.5-inc1 or torchvision's "
        f"such as torchvision-n1-m8, got {text!r}"
    )


def _policy(text: str, config: Config) -> _TimmPolicy | _TorchvisionPolicy:
    if text.startswith("rand"):
        return _TimmPolicy(text, config)
    if text.startswith("torchvision-"):
        return _TorchvisionPolicy(text, config)
    raise UsageError(_unknown_policy(text))


class Augmentation:
    """Random crop, flip, RandAugment and colours of the training images, up to normalisation.

    The functions of timm and torchvision draw, so that the same random state gives their images.

    Raises:
        UsageError: the policy of RandAugment is unknown.
    """

    def __init__(self, config: Config) -> None:
        augment = config.augment
        self._augment = augment
        self.size = config.data.image_size
        self._policy = _policy(augment.rand_augment, config) if augment.rand_augment else None
        self.fill = self._policy.fill if self._policy else (0,) * config.model.in_chans
        self._random_area = augment.scale != [1.0, 1.0] or augment.ratio != [1.0, 1.0]
        self._interpolations = _INTERPOLATIONS[augment.train_interpolation]
        strength = augment.color_jitter
        self._jitter = (max(0.0, 1.0 - strength), 1.0 + strength)

    @property
    def is_batched(self) -> bool:
        """True if `convmixer.data.batched_operations` has all operations."""
        return self._policy is None or self._policy.is_batched

    def __call__(self, image: Pixels) -> Tensor:
        """Return the augmented image, uint8 (C, image_size, image_size)."""
        height, width = image.shape[:2]
        return apply(as_tensor(image), self.draw(width, height), self.size, self.fill)

    def draw(self, width: int, height: int) -> list[Operation]:
        """Draw the operations of an image."""
        augment, size = self._augment, self.size
        drawn: list[Operation] = []
        if augment.crop_padding:
            drawn += self._padded_crop(width, height)
            width = height = size
        if self._random_area or not augment.crop_padding:
            drawn.append(self._area(width, height))
        if augment.flip:
            drawn.append(Operation(Kind.FLIP) if random.random() < augment.flip else NOTHING)
        if self._policy is not None:
            drawn += self._policy.draw(size, size)
        if augment.color_jitter:
            drawn += self._colours()
        return drawn

    def _padded_crop(self, width: int, height: int) -> list[Operation]:
        size, padding = self.size, self._augment.crop_padding
        whole = Operation(Kind.CROP, (0, 0, height, width), Resampling.BILINEAR)
        padded = _stand_in(size + 2 * padding, size + 2 * padding)
        top, left, *_ = transforms.RandomCrop.get_params(padded, (size, size))
        box = (top - padding, left - padding, size, size)
        return [whole, Operation(Kind.CROP, box, Resampling.BILINEAR)]

    def _area(self, width: int, height: int) -> Operation:
        box = RandomResizedCropAndInterpolation.get_params(
            _stand_in(width, height), self._augment.scale, self._augment.ratio
        )
        choices = self._interpolations
        return Operation(Kind.CROP, box, random.choice(choices) if len(choices) > 1 else choices[0])

    def _colours(self) -> list[Operation]:
        order, *factors, _ = transforms.ColorJitter.get_params(*[self._jitter] * 3, None)
        drawn = [index for index in order.tolist() if index < len(_COLOURS)]
        return [Operation(_COLOURS[index], (factors[index],)) for index in drawn]


@functools.lru_cache(maxsize=1000)
def _stand_in(width: int, height: int) -> Tensor:
    """Return an image without contents, for functions that ask for its size."""
    return torch.empty(1, height, width, device="meta")


def draw_erased_box(probability: float, size: int) -> tuple[int, int, int, int]:
    """Draw the box (top, left, height, width) to erase, with the random numbers of timm's.

    Args:
        probability: of a box; without one all four are 0.
        size: the side of the image.
    """
    if random.random() > probability:
        return NO_BOX
    for _ in range(_TRIES):
        area = random.uniform(*_ERASED_AREA) * size * size
        aspect = math.exp(random.uniform(*_ERASED_LOG_ASPECT))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if width < size and height < size:
            return random.randint(0, size - height), random.randint(0, size - width), height, width
    return NO_BOX


def evaluation_crop(config: Config) -> transforms.Compose:
    """Return the resizing and the centre crop of an image for evaluation, to uint8 (C, H, W)."""
    data = config.data
    resized = math.floor(data.image_size / data.crop_fraction)
    return transforms.Compose(
        [
            Image.fromarray,
            transforms.Resize(resized, transforms.InterpolationMode(data.interpolation)),
            transforms.CenterCrop(data.image_size),
            transforms.PILToTensor(),
        ]
    )
