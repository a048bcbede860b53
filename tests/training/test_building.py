"""Models and their precision, built from settings."""

from __future__ import annotations

import pytest
import torch

from convmixer.config.fields import FIELDS
from convmixer.model.layers import ACTIVATIONS, NORMS
from convmixer.model.network import RESIDUALS, STEMS
from convmixer.training import environment
from convmixer_kernels.dispatch import IMPLEMENTATIONS
from tests.helpers.training import tiny_config

CPU = torch.device("cpu")


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("amp", ["none", "fp16", "bf16"])
def test_the_implementation_is_that_for_the_planes_of_the_run(channels_last, amp, monkeypatch):
    asked = []

    def resolve(input, weight, impl, fused):
        asked.append((input, weight, impl, fused))
        return "triton"

    monkeypatch.setattr(environment, "resolve", resolve)
    monkeypatch.setattr(environment, "effective_amp", lambda config, device: config.amp)
    config = tiny_config(model__patch_size=3, channels_last=channels_last, amp=amp)
    assert environment.depthwise_implementation(config, CPU) == "triton"
    ((input, weight, impl, fused),) = asked
    dtype = {"none": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[amp]
    assert (tuple(input.shape), input.dtype) == ((1, 8, 2, 2), dtype)
    assert (tuple(weight.shape), weight.dtype) == ((8, 1, 3, 3), dtype)
    assert input.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert input.is_contiguous() != channels_last
    assert impl == config.model.dw_impl and fused


def test_autocast_computes_in_the_precision_of_the_settings(monkeypatch):
    monkeypatch.setattr(environment, "effective_amp", lambda config, device: config.amp)
    matrix = torch.ones(2, 2)
    for amp, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16), ("none", torch.float32)):
        with environment.autocast(tiny_config(amp=amp), CPU):
            assert (matrix @ matrix).dtype == dtype


@pytest.mark.parametrize(
    ("field", "accepted"),
    [
        ("activation", ACTIVATIONS),
        ("norm", NORMS),
        ("residual", RESIDUALS),
        ("stem", STEMS),
        ("dw_impl", ("auto", *IMPLEMENTATIONS)),
    ],
)
def test_settings_accept_what_the_model_accepts(field, accepted):
    assert FIELDS[f"model.{field}"].metadata["choices"] == tuple(accepted)
