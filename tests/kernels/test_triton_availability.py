"""Reasons for which the Triton implementation cannot run, or cannot serve an input."""

from __future__ import annotations

import sys

import pytest
import torch

from convmixer_kernels import devices
from convmixer_kernels.backends import triton as backend
from convmixer_kernels.filters import Filter
from tests.helpers.depthwise_cases import DEVICE
from tests.helpers.python_process import run_python

pytestmark = pytest.mark.gpu
NINE = Filter(9, 9)


def test_other_devices_are_refused() -> None:
    reason = backend.unavailable(torch.device("meta"))
    assert reason == "it takes CUDA tensors, not tensors on meta"


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    reason = backend.unavailable(torch.device(DEVICE))
    assert reason is not None and "pip install triton" in reason


def test_the_package_imports_without_triton() -> None:
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import convmixer_kernels, torch\n"
        "from convmixer_kernels import dispatch\n"
        "print(dispatch.backend('triton').unavailable(torch.device('cpu')))\n"
        "input, weight = torch.randn(1, 2, 5, 5), torch.randn(2, 1, 3, 3)\n"
        "print(convmixer_kernels.depthwise_conv2d(input, weight).shape)\n"
    )
    lines = run_python(program, interpret=False).splitlines()
    assert "pip install triton" in lines[0]
    assert lines[1] == "torch.Size([1, 2, 5, 5])"


def test_cpu_tensors_need_the_interpreter() -> None:
    program = (
        "import torch\n"
        "from convmixer_kernels.backends import triton as backend\n"
        "print(backend.unavailable(torch.device('cpu')))\n"
    )
    assert run_python(program, interpret=True) == "None\n"
    assert "set TRITON_INTERPRET=1 before" in run_python(program, interpret=False)


def test_the_interpreter_cannot_be_turned_on_late() -> None:
    program = (
        "import os, torch, triton\n"
        "os.environ['TRITON_INTERPRET'] = '1'\n"
        "from convmixer_kernels.backends import triton as backend\n"
        "print(backend.unavailable(torch.device('cpu')))\n"
    )
    assert "has changed since Triton was imported" in run_python(program, interpret=False)


def test_interpreted_kernels_refuse_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_interpreted", lambda: True)
    reason = backend.unavailable(torch.device("cuda", 0))
    assert reason is not None and "unset it to use the GPU" in reason


def test_old_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(backend, "_launcher_problem", lambda: None)
    monkeypatch.setattr(devices, "capability", lambda index: (7, 5))
    reason = backend.unavailable(torch.device("cuda", 0))
    assert reason == "it needs compute capability 8.0 or newer; cuda:0 has 7.5"
    monkeypatch.setattr(devices, "capability", lambda index: (8, 0))
    assert backend.unavailable(torch.device("cuda", 0)) is None


def test_a_missing_c_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        @property
        def active(self) -> None:
            raise RuntimeError("Failed to find C compiler.\nPlease specify it.")

    monkeypatch.setattr("triton.runtime.driver", Driver())
    reason = backend._launcher_problem.__wrapped__()
    assert reason is not None and "(Failed to find C compiler.); install gcc" in reason


def test_what_is_supported() -> None:
    cuda = torch.device("cuda")
    for size in (3, 5, 7, 8, 9, 11, 13, 15):
        assert backend.unsupported(cuda, torch.float16, Filter(size, size), True) is None
    assert backend.unsupported(cuda, torch.float32, NINE, True) is None
    assert backend.unsupported(cuda, torch.float16, Filter(6, 6), False) is None
    reason = backend.unsupported(cuda, torch.float16, Filter(6, 6), True)
    assert reason is not None and "3, 5, 7, 8, 9, 11, 13, 15, not 6" in reason
    reason = backend.unsupported(cuda, torch.float16, Filter(1, 32), False)
    assert reason is not None and "up to 31 rows and columns, not 1 x 32" in reason
    reason = backend.unsupported(cuda, torch.float64, NINE, False)
    assert reason is not None and "float16, bfloat16 and float32, not torch.float64" in reason


def test_bfloat16_is_refused_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_interpreted", lambda: True)
    reason = backend.unsupported(torch.device("cpu"), torch.bfloat16, NINE, False)
    assert reason is not None and "bfloat16; use float16 or float32" in reason
    monkeypatch.setattr(backend, "_interpreted", lambda: False)
    assert backend.unsupported(torch.device("cuda"), torch.bfloat16, NINE, False) is None
