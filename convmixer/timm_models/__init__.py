"""The models of the paper for timm; importing this package registers them.

`timm.create_model("kernels_convmixer_768_32")` and timm's scripts then build `ConvMixer` of this
package. Every name of `list_variants()` is registered with the prefix ``kernels_``, because without
it the model would replace timm's own model of that name. `timm.list_models(module="timm_models")`
lists them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from convmixer.errors import UsageError
from convmixer.model.checkpoints import convert_state_dict
from convmixer.model.network import ConvMixer
from convmixer.model.variants import Variant, create_model, get_variant, list_variants

PREFIX = "kernels_"
_POOLINGS = {"fast": "avg", "fastavg": "avg", "fastmax": "max"}
"""timm's names of poolings that compute the same as those of `ConvMixer`."""
_ACTIVATIONS: dict[object, str] = {nn.GELU: "gelu", nn.ReLU: "relu"}


def _settings(variant: Variant) -> dict[str, Any]:
    """Return timm's `default_cfg` of a variant, with its weights on the hub if timm has them."""
    size = variant.preprocessing.input_size
    positions = size // variant.architecture.patch_size
    return {
        "hf_hub_id": variant.hub_id,
        "num_classes": variant.architecture.n_classes,
        "input_size": (3, size, size),
        "pool_size": (positions, positions),
        "crop_pct": variant.preprocessing.crop,
        "interpolation": variant.preprocessing.interpolation,
        "mean": variant.preprocessing.mean,
        "std": variant.preprocessing.std,
        "first_conv": "stem.0",
        "classifier": "head",
        "license": "mit",
    }


default_cfgs = generate_default_cfgs(
    {
        f"{PREFIX}{variant.name}" + (".in1k" if variant.hub_id else ""): _settings(variant)
        for variant in map(get_variant, list_variants())
    }
)


def _model(
    name: str,
    *,
    num_classes: int,
    global_pool: str = "avg",
    act_layer: type[nn.Module] | str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **arguments: Any,
) -> ConvMixer:
    """Build the variant `name` from the arguments of timm's models and those of `ConvMixer`."""
    if "n_classes" in arguments:
        raise UsageError("n_classes: the number of classes is num_classes in timm")
    if act_layer is not None:
        activation = _ACTIVATIONS.get(act_layer, act_layer)
        if activation not in _ACTIVATIONS.values():
            raise UsageError(
                f"act_layer: got {act_layer!r}, expected nn.GELU, nn.ReLU, 'gelu' or 'relu'"
            )
        arguments["activation"] = activation
    pooling = _POOLINGS.get(global_pool, global_pool)
    model = create_model(name, n_classes=num_classes, global_pool=pooling, **arguments)
    return model.to(device=device, dtype=dtype)


def _renamed(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Convert a state dict for timm, which passes the model as well."""
    return convert_state_dict(state_dict)


def _register(name: str) -> None:
    """Register a function that builds a variant; timm names the model after the function."""

    def entrypoint(pretrained: bool = False, **arguments: Any) -> nn.Module:
        model: nn.Module = build_model_with_cfg(
            functools.partial(_model, name),
            entrypoint.__name__,
            pretrained,
            feature_cfg={"out_indices": arguments.pop("out_indices", 3), "feature_cls": "getter"},
            pretrained_filter_fn=_renamed,
            **arguments,
        )
        return model

    entrypoint.__name__ = entrypoint.__qualname__ = f"{PREFIX}{name}"
    globals()[entrypoint.__name__] = register_model(entrypoint)


# `register_model` appends the functions of the models to this list.
__all__ = ["PREFIX", "default_cfgs"]
for _name in list_variants():
    _register(_name)
