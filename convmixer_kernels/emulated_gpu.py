"""A GPU that is an interpreter of PTX: the compiled CUDA kernels on CPU tensors, for tests.

The extension is the one that a GPU runs: the same objects, linked with `csrc/interpreter` in place
of the CUDA runtime. It is built in `build/` beside `csrc/` where that is not up to date, as it is
after the extension was built on a machine without a GPU, as PTX.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from torch import Tensor

CSRC = Path(__file__).resolve().parents[1] / "csrc"


# Changes of the settings that the interpreter starts with (csrc/interpreter/settings.h), by name:
# when copies land, in what order warps and lanes run, and whatever else a GPU leaves open.
settings: dict[str, object] = {}

# True while launches run no kernel, so that nothing need be permitted.
skips_kernels = False
_lock = threading.RLock()
# The first and the last address of a storage, and whether it may be written, by its address.
_permitted: dict[int, tuple[int, int, bool]] = {}
# They are kept alive: a call may launch several kernels, and what it has freed between two of them
# must not be handed out again with the permission of before.
_tensors: list[Tensor] = []


@functools.cache
def extension() -> ModuleType:
    """Import the CUDA extension on the interpreter, built if need be.

    Raises:
        FileNotFoundError: this is not a checkout, or a compiler or build tool is missing; says so.
        RuntimeError: the sources do not compile.
    """
    _runtime().set_files(files())
    extension = _load("_cuda")
    extension.watch(permit)
    return extension


@functools.cache
def _runtime() -> ModuleType:
    return _load("_cuda_runtime")


@functools.cache
def files() -> dict[str, str]:
    """Find the file of PTX that has each kernel of `extension`; errors as there."""
    return {
        kernel.decode(): str(file)
        for file in _build().parent.glob("*.ptx")
        for kernel in re.findall(rb"\.entry (\w+)\(", file.read_bytes())
    }


@functools.cache
def interpreter() -> ModuleType:
    """Import the interpreter that runs the kernels of `extension`; errors as there."""
    return _load("_interpreter")


@contextlib.contextmanager
def launching(**changes: object) -> Iterator[ModuleType]:
    """Let kernels access the tensors of `permit` meanwhile, and nothing else.

    Args:
        changes: what is set otherwise than usual; `settings` goes before it.

    Yields:
        The interpreter, with `settings`.

    Raises:
        RuntimeError: the interpreter has found faults in the kernels; says which.
    """
    machine = interpreter()
    with _lock:
        before = machine.settings()
        machine.set(**_defaults() | changes | settings)
        try:
            yield machine
        finally:
            machine.set(**before)
            machine.forbid_all()
            _permitted.clear()
            _tensors.clear()
            if found := machine.take_findings():
                raise RuntimeError("\n".join(["the kernels have done wrong:", *map(str, found)]))


@contextlib.contextmanager
def kernels_skipped() -> Iterator[None]:
    """Let launches do on the host what they do for a GPU, and run no kernel."""
    global skips_kernels
    extension().watch(None)
    _runtime().skip_kernels(True)
    skips_kernels = True
    try:
        yield
    finally:
        skips_kernels = False
        _runtime().skip_kernels(False)
        extension().watch(permit)


def permit(tensor: Tensor, writable: bool) -> None:
    """Let the kernels that are being launched read a tensor, or write it too."""
    if tensor.numel() == 0:
        return
    _tensors.append(tensor)
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    begin = tensor.data_ptr()
    end = begin + (last + 1) * tensor.element_size()
    # Tensors that share memory are permitted together.
    storage = tensor.untyped_storage().data_ptr()
    if known := _permitted.get(storage):
        interpreter().forbid(known[0])
        begin, end = min(begin, known[0]), max(end, known[1])
        writable = writable or known[2]
    _permitted[storage] = begin, end, writable
    interpreter().permit(begin, end - begin, writable)


@functools.cache
def _defaults() -> dict[str, object]:
    # A copy that reads nothing still names an address, which a GPU was reported to touch. Kernels
    # write each result once.
    values: dict[str, object] = interpreter().settings()
    return values | {"check_absent_copies": True, "find_rewrites": True}


@functools.cache
def _load(name: str) -> ModuleType:
    """Import one of the Python modules that the file of the extension holds."""
    spec = importlib.util.spec_from_file_location(name, _build())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def _build() -> Path:
    tools = CSRC / "build_tools"
    if not tools.is_dir():
        raise FileNotFoundError(
            f"it is compiled from the sources of the project, but {CSRC} does not exist; work in a "
            "checkout, installed with pip install -e ."
        )
    if str(tools) not in sys.path:
        sys.path.append(str(tools))
    import cuda_build
    import toolchain

    try:
        return cuda_build.build_emulated(toolchain.find_toolkit())
    except toolchain.Missing as missing:
        raise FileNotFoundError(str(missing)) from None
    except subprocess.CalledProcessError:
        raise RuntimeError("the sources do not compile, see above") from None
