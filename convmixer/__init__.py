"""ConvMixer ("Patches Are All You Need?") on fast large-kernel depthwise convolutions.

Names are imported when they are first used, so that `import convmixer` loads neither PyTorch nor
the packages that training needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convmixer.config.recipes import load_recipe
    from convmixer.model.checkpoints import convert_state_dict, load_checkpoint, save_checkpoint
    from convmixer.model.features import FeatureExtractor
    from convmixer.model.network import ConvMixer
    from convmixer.model.variants import (
        Variant,
        create_model,
        get_variant,
        list_variants,
        parameter_count,
    )
    from convmixer.training.evaluation import evaluate
    from convmixer.training.prediction import predict
    from convmixer.training.runs import train
    from convmixer_kernels import __version__

__all__ = [
    "ConvMixer",
    "FeatureExtractor",
    "Variant",
    "__version__",
    "convert_state_dict",
    "create_model",
    "evaluate",
    "get_variant",
    "list_variants",
    "load_checkpoint",
    "load_recipe",
    "parameter_count",
    "predict",
    "save_checkpoint",
    "train",
]

_MODULES = {
    "ConvMixer": "convmixer.model.network",
    "FeatureExtractor": "convmixer.model.features",
    "Variant": "convmixer.model.variants",
    "__version__": "convmixer_kernels",
    "convert_state_dict": "convmixer.model.checkpoints",
    "create_model": "convmixer.model.variants",
    "evaluate": "convmixer.training.evaluation",
    "get_variant": "convmixer.model.variants",
    "list_variants": "convmixer.model.variants",
    "load_checkpoint": "convmixer.model.checkpoints",
    "load_recipe": "convmixer.config.recipes",
    "parameter_count": "convmixer.model.variants",
    "predict": "convmixer.training.prediction",
    "save_checkpoint": "convmixer.model.checkpoints",
    "train": "convmixer.training.runs",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
