"""A driver that lets Triton compile for a GPU and run what it has compiled on the emulated one.

Triton compiles to PTX as it does for a GPU of that architecture; ptxas is left out.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import struct
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.backends.nvidia.compiler import CUDABackend

from convmixer_kernels import architectures, emulated_gpu
from convmixer_kernels.backends import triton as backend
from convmixer_kernels.backends.triton import launch_context
from convmixer_kernels.backends.triton.launch_context import LaunchContext

# The layout of parameters in memory, by their type in a signature.
_FORMATS = {"i1": "b", "i8": "b", "i16": "h", "i32": "i", "i64": "q"}
_FORMATS |= {"u1": "B", "u8": "B", "u16": "H", "u32": "I", "u64": "Q", "fp32": "f", "fp64": "d"}
_SCRATCH = struct.pack("Q", 0)  # two last addresses, of memory that these kernels do not use


# Texts of PTX are kept apart from Triton's cache: whoever compiles a kernel for a GPU would find
# the text there in place of machine code.
_CACHE = emulated_gpu.CSRC.parent / "build" / "triton"

# The interpreter knows kernels by their names alone, so each architecture has names of its own.
_numbers = itertools.count()


class _Utils:
    """Answers to the questions that Triton asks a GPU before it launches a kernel."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self._shared_bytes = architectures.find(capability).shared_bytes

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self._shared_bytes}

    def load_binary(
        self, name: str, kernel: bytes, shared: int, device: int
    ) -> tuple[str, str, int, int, int]:
        """Make a kernel known under a name of its own: Triton compiles functions many times."""
        own = f"{name}_{next(_numbers)}"
        text = kernel.decode().replace(f".entry {name}(", f".entry {own}(")
        emulated_gpu.interpreter().load(f"{own}.ptx", text)
        return own, own, 0, 0, 1024


class _Launcher:
    """A launcher that is called as Triton calls its own."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self._types = list(source.signature.values())
        self._threads = 32 * metadata.num_warps
        self._shared_bytes = metadata.shared

    def __call__(
        self,
        x: int,
        y: int,
        z: int,
        stream: int,
        kernel: str,
        packed_metadata: Any,
        launch_metadata: Any,
        enter_hook: Any,
        exit_hook: Any,
        *arguments: Any,
    ) -> None:
        # Triton lets a copy whose mask is off name an address outside of every tensor, and does not
        # promise to write each result once.
        changes = {"check_absent_copies": False, "find_rewrites": False}
        with emulated_gpu.launching(**changes) as interpreter:
            values = [
                self._value(type, argument)
                for type, argument in zip(self._types, arguments, strict=True)
                if type != "constexpr"
            ]
            block, shared_bytes = (self._threads, 1, 1), self._shared_bytes
            values += [_SCRATCH, _SCRATCH]
            interpreter.launch(kernel, (x, y, z), block, shared_bytes, values)

    @staticmethod
    def _value(type: str, argument: Any) -> bytes:
        if not type.startswith("*"):
            return struct.pack(_FORMATS[type], argument)
        if isinstance(argument, Tensor):
            emulated_gpu.permit(argument, writable=True)
            return struct.pack("Q", argument.data_ptr())
        return struct.pack("Q", argument or 0)


class Driver(DriverBase):
    """One GPU of some architecture, whose tensors are those of the CPU."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self._capability = capability
        self.utils = _Utils(capability)
        self.launcher_cls = _Launcher

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_device(self) -> int:
        # Triton keeps what it has compiled by this number.
        major, minor = self._capability
        return 10 * major + minor

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_capability(self, device: int) -> tuple[int, int]:
        return self._capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.get_current_device(), 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, type: str) -> str:
        return type

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("nothing is measured on an emulated GPU")


@contextlib.contextmanager
def running(capability: tuple[int, int], multiprocessors: int = 1) -> Iterator[ModuleType]:
    """The Triton backend, compiling for a GPU that is emulated.

    The process must not have TRITON_INTERPRET set.
    """
    context = LaunchContext(capability, multiprocessors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(_CACHE))
        # The text of PTX takes the place of machine code.
        patch.setattr(CUDABackend, "make_cubin", lambda self, ptx, *rest: ptx.encode())
        patch.setattr(launch_context, "INTERPRETER", context)
        patch.setattr(triton.runtime.driver, "_active", _driver(capability))
        yield backend


@functools.cache
def _driver(capability: tuple[int, int]) -> Driver:
    return Driver(capability)
