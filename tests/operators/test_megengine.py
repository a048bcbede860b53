"""MegEngine's name for a depthwise convolution, as RepLKNet, UniRepLKNet and SLaK use it."""

from __future__ import annotations

import importlib
import runpy
import sys
import warnings

import pytest
import torch
from torch import nn

from convmixer_kernels import modules
from convmixer_kernels.megengine import DepthWiseConv2dImplicitGEMM
from tests.helpers.modules import assert_same_results

SERVED = [3, 4, (13, 5), 31]
IN_PYTORCH = [33, (51, 5), (5, 51)]


@pytest.mark.parametrize("kernel", [*SERVED, *IN_PYTORCH])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.filterwarnings("ignore:DepthWiseConv2dImplicitGEMM", "ignore:Using padding='same'")
def test_equals_conv2d(kernel, bias):
    layer = DepthWiseConv2dImplicitGEMM(3, kernel, bias=bias).double()
    assert (layer.bias is not None) == bias
    plain = nn.Conv2d(3, 3, kernel, padding="same", groups=3, bias=bias).double()
    plain.load_state_dict(layer.state_dict())
    image = torch.randn(2, 3, 9, 6, dtype=torch.float64)
    assert_same_results(layer, plain, image)


@pytest.mark.parametrize("kernel", SERVED)
def test_the_function_of_this_package_runs(kernel, monkeypatch):
    calls = []
    monkeypatch.setattr(
        modules, "depthwise_conv2d", lambda input, *_, dilation, impl: calls.append(impl) or input
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = DepthWiseConv2dImplicitGEMM(3, kernel)
    layer(torch.randn(1, 3, 4, 4))
    assert calls == ["auto"]
    assert layer.bias is None


@pytest.mark.parametrize("kernel", IN_PYTORCH)
def test_what_runs_in_pytorch_is_said_once(kernel):
    height, width = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for channels in (3, 4):
            DepthWiseConv2dImplicitGEMM(channels, kernel)
    assert len(caught) == 1
    assert "run in PyTorch" in str(caught[0].message)
    assert f"not {height} x {width}" in str(caught[0].message)
    assert caught[0].filename == __file__


def test_others_import_it_from_its_folder(monkeypatch, capsys):
    runpy.run_module("convmixer_kernels.megengine", run_name="__main__")
    monkeypatch.syspath_prepend(capsys.readouterr().out.strip())
    module = importlib.import_module("depthwise_conv2d_implicit_gemm")
    monkeypatch.delitem(sys.modules, "depthwise_conv2d_implicit_gemm")
    assert module.DepthWiseConv2dImplicitGEMM is DepthWiseConv2dImplicitGEMM
