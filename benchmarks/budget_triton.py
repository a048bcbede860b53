"""Compiles the Triton kernels without a GPU and weighs their machine code.

The representative problems below make the launchers' own choice of configuration, so that what is
weighed is what ships. Not in a process with TRITON_INTERPRET=1, where there is nothing to compile.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import sass
from convmixer_kernels.backends.triton import configurations
from convmixer_kernels.backends.triton.configurations import Configuration, Device, Problem

_MULTIPROCESSORS = {"80": 108, "86": 84, "89": 128, "90": 132, "100": 148, "120": 170}
_TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
OPERATIONS = ("forward", "input_gradient", "weight_gradient")


@dataclass(frozen=True)
class Case:
    """A kernel to compile: an operation on a (N, C, H, W) problem."""

    operation: str
    kernel_size: int
    dtype: torch.dtype = torch.float16
    shape: tuple[int, int, int, int] = (64, 1536, 32, 32)
    channels_last: bool = False

    def problem(self) -> Problem:
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        tensor = torch.empty(self.shape, dtype=self.dtype, device="meta")
        tensor = tensor.to(memory_format=memory_format)
        return Problem.of(tensor, tensor, self.kernel_size)

    def configuration(self, architecture: str) -> Configuration:
        capability = (int(architecture[:-1]), int(architecture[-1]))
        device = Device(capability, _MULTIPROCESSORS[architecture])
        if self.operation == "weight_gradient":
            return configurations.weight_gradient(self.problem(), device)
        return configurations.forward(self.problem(), device)

    def name(self, configuration: Configuration) -> str:
        images, _, height, width = self.shape
        dtype = str(self.dtype).removeprefix("torch.")
        parts = [dtype, f"{self.kernel_size}", f"{images}x{height}x{width}"]
        parts.append(f"strips {configuration.strips}")
        if configuration.banded:
            parts.append("banded")
        if self.channels_last:
            parts.append("channels_last")
        return f"{self.operation}<{', '.join(parts)}>"


def collect(architectures: list[str]) -> list[sass.Kernel]:
    """Every case for every architecture, such as "80" and "90"."""
    jobs = [(case, architecture) for architecture in architectures for case in cases()]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        return list(pool.map(weigh, *zip(*jobs, strict=True)))


def cases() -> Iterator[Case]:
    """What is representative: every kernel size, and each way in which types and shapes differ."""
    for operation in OPERATIONS:
        for size in configurations.KERNEL_SIZES:
            yield Case(operation, size)
    for operation in ("forward", "weight_gradient"):
        for size in (9, 15):
            yield Case(operation, size, torch.bfloat16)
            yield Case(operation, size, torch.float32)
            yield Case(operation, size, shape=(1, 256, 32, 32))
            yield Case(operation, size, channels_last=True)
            for width in (28, 14, 7):
                yield Case(operation, size, shape=(64, 1536, width, width))


def weigh(case: Case, architecture: str) -> sass.Kernel:
    """Compiles a case and reads its machine code.

    Raises:
        RuntimeError: the process interprets Triton.
        FileNotFoundError: no cuobjdump is installed.
    """
    configuration = case.configuration(architecture)
    compiled = compile_case(case, configuration, architecture)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        (kernel,) = sass.read_cubin(cubin, architecture)
    return dataclasses.replace(
        kernel, name=case.name(configuration), shared=compiled.metadata.shared
    )


def compile_case(case: Case, configuration: Configuration, architecture: str) -> Any:
    """The compiled kernel of Triton, for arguments as a launch with dense tensors passes them."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from convmixer_kernels.backends.triton import (
        depthwise_forward,
        depthwise_weight_gradient,
        launching,
    )

    problem = case.problem()
    element = f"*{_TYPES[case.dtype]}"
    pointers: dict[str, str | None]
    if case.operation == "weight_gradient":
        function = depthwise_weight_gradient.kernel(problem)
        constants = depthwise_weight_gradient.constants(problem, configuration)
        pointers = {"input_ptr": element, "grad_ptr": element}
        pointers |= {"weight_sums_ptr": "*fp32", "bias_sums_ptr": "*fp32"}
    else:
        flipped = case.operation == "input_gradient"
        function = depthwise_forward.kernel(problem)
        constants = depthwise_forward.constants(problem, configuration, flipped)
        pointers = {"input_ptr": element, "filter_ptr": element}
        pointers |= {"bias_ptr": None if flipped else "*fp32", "output_ptr": element}
    if not isinstance(function, triton.runtime.jit.JITFunction):
        raise RuntimeError("kernels cannot be compiled in a process with TRITON_INTERPRET=1")

    names = function.arg_names
    constexprs: dict[str, Any] = {name: None for name in pointers if pointers[name] is None}
    constexprs |= constants
    signature = {
        name: "constexpr" if name in constexprs else pointers.get(name, "i32") for name in names
    }
    # What Triton finds out about the address of a tensor when it is called.
    aligned = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=function,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constexprs.items()},
        attrs={
            (names.index(name),): aligned
            for name, type_name in pointers.items()
            if type_name is not None
        },
    )
    return triton.compile(
        source,
        target=GPUTarget("cuda", int(architecture), 32),
        options=launching.options(configuration),
    )
