"""ConvMixer ("Patches Are All You Need?") on fast large-kernel depthwise convolutions."""

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
from convmixer_kernels import __version__

__all__ = [
    "ConvMixer",
    "FeatureExtractor",
    "Variant",
    "__version__",
    "convert_state_dict",
    "create_model",
    "get_variant",
    "list_variants",
    "load_checkpoint",
    "parameter_count",
    "save_checkpoint",
]
