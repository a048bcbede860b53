"""Compilation of the Triton kernels without a GPU, and the weight of their machine code.

The representative problems below make the launchers' own choice of configuration, so that what is
weighed is what ships. Not in a process with TRITON_INTERPRET=1, where there is nothing to compile.
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernel_budget import sass
from convmixer_kernels.backends.triton import configurations
from convmixer_kernels.backends.triton.configurations import Configuration
from convmixer_kernels.backends.triton.launch_context import LaunchContext
from convmixer_kernels.backends.triton.shape_key import KERNEL_SIZES, ShapeKey
from convmixer_kernels.filters import Filter

_MULTIPROCESSORS = {"80": 108, "86": 84, "89": 128, "90": 132, "100": 148, "120": 170}
_TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
# "normalised": with GELU, normalisation and residual; "added": plus the gradient of the residual.
CONVOLUTIONS = (
    "forward",
    "input_gradient",
    "weight_gradient",
    "forward_normalised",
    "input_gradient_added",
)
BATCH_NORM = ("moments", "normalise", "gradient_sums", "value_gradient")
# Copies between channels_last and planes.
TRANSPOSITIONS = ("to_planes", "from_planes")


@dataclass(frozen=True)
class Launch:
    """Function, types, constants and options for which a kernel is compiled.

    Args:
        pointers: Triton's type of each parameter that is a tensor, None for one that is left out.
    """

    function: Any
    pointers: dict[str, str | None]
    constants: dict[str, Any]
    options: dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A kernel to compile: an operation on a (N, C, H, W) problem; GELU where there is a choice.

    Only operations of `CONVOLUTIONS` have a kernel size, and only those of `BATCH_NORM` a layout.
    """

    operation: str
    kernel_size: int = 0
    dtype: torch.dtype = torch.float16
    shape: tuple[int, int, int, int] = (64, 1536, 32, 32)
    channels_last: bool = False

    @property
    def tensor(self) -> Tensor:
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        tensor = torch.empty(self.shape, dtype=self.dtype, device="meta")
        return tensor.to(memory_format=memory_format)

    @property
    def is_large(self) -> bool:
        """True for a filter that the kernels of any filter serve."""
        return self.kernel_size > max(KERNEL_SIZES)

    def shape_key(self) -> ShapeKey:
        fused = self.operation in ("forward_normalised", "input_gradient_added")
        return ShapeKey.of((self.tensor,) * (3 if fused else 2), self.kernel_size, fused)

    def configuration(self, architecture: str) -> Configuration:
        capability = (int(architecture[:-1]), int(architecture[-1]))
        context = LaunchContext(capability, _MULTIPROCESSORS[architecture])
        if self.is_large:
            if self.operation == "weight_gradient":
                filter = Filter(self.kernel_size, self.kernel_size)
                return configurations.large_weight_gradient(self.shape_key(), filter, context)
            return configurations.large_forward(self.shape_key(), 1)
        if self.operation == "weight_gradient":
            return configurations.weight_gradient(self.shape_key(), context)
        return configurations.forward(self.shape_key(), context)

    def name(self, configuration: Configuration | None) -> str:
        images, _, height, width = self.shape
        parts = [str(self.dtype).removeprefix("torch.")]
        if configuration is not None:
            parts.append(f"{self.kernel_size}")
        parts.append(f"{images}x{height}x{width}")
        if configuration is not None:
            parts.append(f"tiles {configuration.tiles}")
            if configuration.cuts_images:
                parts.append("row blocks")
        if self.channels_last:
            parts.append("channels_last")
        return f"{self.operation}<{', '.join(parts)}>"


# Instructions of the main loop for each row of the image.
_MOST_INSTRUCTIONS = {Case("forward", 9): 55, Case("input_gradient", 9): 55}


def collect(architectures: list[str]) -> list[sass.Kernel]:
    """Every case for every architecture, such as "80" and "90".

    Raises:
        RuntimeError: a kernel is not what it should be, see `complaint`.
    """
    jobs = [(case, architecture) for architecture in architectures for case in cases()]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        kernels = list(pool.map(weigh, *zip(*jobs, strict=True)))
    complaints = [complaint(*job, kernel) for job, kernel in zip(jobs, kernels, strict=True)]
    if any(complaints):
        raise RuntimeError("\n".join(filter(None, complaints)))
    return kernels


def cases() -> Iterator[Case]:
    """Yield representative cases: kernel sizes, and the types and shapes that differ."""
    for operation in CONVOLUTIONS:
        for size in KERNEL_SIZES:
            yield Case(operation, size)
    for operation in ("forward", "weight_gradient"):
        for size in (9, 15):
            yield Case(operation, size, torch.bfloat16)
            yield Case(operation, size, torch.float32)
    for operation in ("forward", "weight_gradient", "forward_normalised"):
        for size in (9, 15):
            yield Case(operation, size, shape=(1, 256, 32, 32))
            for width in (28, 14, 7):
                yield Case(operation, size, shape=(64, 1536, width, width))
    # Odd widths, whose elements are addressed one by one, take the most registers.
    for operation in ("forward", "forward_normalised", "input_gradient_added"):
        yield Case(operation, 13, shape=(64, 1536, 7, 7))
        yield Case(operation, 15, shape=(64, 1536, 16, 17))
    for operation in ("forward", "weight_gradient"):
        for size in (17, 21, 31):
            yield Case(operation, size, shape=(64, 384, 64, 64))
        for width in (28, 14, 17):
            yield Case(operation, 31, shape=(64, 384, width, width))
        for dtype in (torch.bfloat16, torch.float32):
            yield Case(operation, 31, dtype, (64, 384, 64, 64))
    for operation in BATCH_NORM:
        yield Case(operation)
        yield Case(operation, dtype=torch.float32)
        yield Case(operation, shape=(64, 1536, 7, 7))
        yield Case(operation, channels_last=True)
    for operation in TRANSPOSITIONS:
        yield Case(operation)
        yield Case(operation, dtype=torch.float32)
        yield Case(operation, shape=(64, 1536, 7, 7))


def complaint(case: Case, architecture: str, kernel: sass.Kernel) -> str | None:
    """Return in what a kernel fails that the table of budgets does not show, or None.

    float32 takes no matrix instructions, all others do; and the reference sizes keep to
    `_MOST_INSTRUCTIONS`.
    """
    if case.operation not in CONVOLUTIONS:
        return None
    if (kernel.mix["HMMA"] > 0) == (case.dtype == torch.float32):
        return f"{kernel.name} sm_{architecture}: {kernel.mix['HMMA']} matrix instructions"
    per_row = kernel.mix["total"] / case.configuration(architecture).unrolled_rows
    if per_row > _MOST_INSTRUCTIONS.get(case, math.inf):
        return (
            f"{kernel.name} sm_{architecture}: {per_row:.0f} instructions a row, "
            f"expected at most {_MOST_INSTRUCTIONS[case]}"
        )
    return None


def weigh(case: Case, architecture: str) -> sass.Kernel:
    """Compile a case and read its machine code.

    Raises:
        RuntimeError: the process interprets Triton, or cuobjdump cannot read the code.
        toolchain.Missing: no cuobjdump is installed.
    """
    configuration = None
    if case.operation in BATCH_NORM:
        launch = batch_norm_launch(case)
    elif case.operation in TRANSPOSITIONS:
        launch = transposition_launch(case)
    else:
        configuration = case.configuration(architecture)
        launch = convolution_launch(case, configuration)
    compiled = compile_launch(launch, architecture)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        try:
            (kernel,) = sass.read_cubin(cubin, architecture)
        except RuntimeError as error:
            raise RuntimeError(f"{case} for sm_{architecture}: {error}") from None
    return dataclasses.replace(
        kernel, name=case.name(configuration), shared=compiled.metadata.shared
    )


def convolution_launch(case: Case, configuration: Configuration) -> Launch:
    """Describe the launch of a convolution or of one of its gradients for a case."""
    from convmixer_kernels.backends.triton import (
        depthwise_forward,
        depthwise_weight_gradient,
        large_filters,
        launching,
    )

    key = case.shape_key()
    element = f"*{_TYPES[case.dtype]}"
    options = launching.options(configuration)
    flipped = case.operation.startswith("input_gradient")
    if case.operation == "weight_gradient":
        if case.is_large:
            kernel = large_filters.weight_gradient_kernel(key)
            constants = large_filters.weight_gradient_constants(key, configuration)
        else:
            kernel = depthwise_weight_gradient.kernel(key)
            constants = depthwise_weight_gradient.constants(key, configuration)
        return Launch(
            kernel,
            {
                "input_ptr": element,
                "grad_ptr": element,
                "weight_sums_ptr": "*fp32",
                "bias_sums_ptr": "*fp32",
            },
            constants,
            options,
        )
    if case.is_large:
        return Launch(
            large_filters.forward_kernel(key),
            {
                "input_ptr": element,
                "bands_ptr" if key.tensor_cores else "filter_ptr": element,
                "bias_ptr": None if flipped else "*fp32",
                "output_ptr": element,
            },
            large_filters.forward_constants(key, configuration, flipped),
            options,
        )
    normalised = case.operation == "forward_normalised"
    activation = "gelu" if normalised else "identity"
    return Launch(
        depthwise_forward.kernel(key),
        {
            "input_ptr": element,
            "filter_ptr": element,
            "bias_ptr": None if flipped else "*fp32",
            "normalisation_ptr": "*fp32" if normalised else None,
            "addend_ptr": element if key.fused else None,
            "output_ptr": element,
        },
        depthwise_forward.constants(key, configuration, flipped, activation),
        options,
    )


def batch_norm_launch(case: Case) -> Launch:
    """Describe the launch of `batch_norm` or `statistics` for a case, with bias and residual."""
    from convmixer_kernels.backends.triton import elementwise
    from convmixer_kernels.backends.triton.kernels import batch_norm, statistics

    element = f"*{_TYPES[case.dtype]}"
    functions = {
        "moments": statistics.moments_kernel,
        "normalise": batch_norm.normalise_kernel,
        "gradient_sums": batch_norm.gradient_sums_kernel,
        "value_gradient": batch_norm.value_gradient_kernel,
    }
    launch = elementwise.plan((case.tensor,) * 3, reduces=True)
    function = functions[case.operation]
    elements = ("value_ptr", "residual_ptr", "grad_ptr", "output_ptr")
    pointers: dict[str, str | None] = {
        name: element if name in elements else "*fp32"
        for name in function.arg_names
        if name.endswith("_ptr")
    }
    options = {"num_warps": launch.options["num_warps"]}
    return Launch(function, pointers, {**launch.constants, "ACTIVATION": "gelu"}, options)


def transposition_launch(case: Case) -> Launch:
    """Describe the launch of `planes` for a case."""
    from convmixer_kernels.backends.triton import planes
    from convmixer_kernels.backends.triton.kernels.transpose import transpose_kernel

    pixels = case.tensor.to(memory_format=torch.channels_last)
    options = planes.plan(pixels, case.operation == "to_planes").options
    element = f"*{_TYPES[case.dtype]}"
    return Launch(
        transpose_kernel,
        {"pixels_ptr": element, "planes_ptr": element},
        {name: value for name, value in options.items() if name.isupper()},
        {"num_warps": options["num_warps"]},
    )


def compile_launch(launch: Launch, architecture: str) -> Any:
    """Compile a Triton kernel for the arguments of a launch with dense tensors.

    Raises:
        RuntimeError: the process interprets Triton.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if not isinstance(launch.function, triton.runtime.jit.JITFunction):
        raise RuntimeError("kernels cannot be compiled in a process with TRITON_INTERPRET=1")
    names = launch.function.arg_names
    present = {name: type for name, type in launch.pointers.items() if type is not None}
    constants = {**dict.fromkeys(launch.pointers.keys() - present.keys()), **launch.constants}
    # At a call Triton finds the address of a dense tensor divisible by 16.
    aligned = [["tt.divisibility", 16]]
    source = ASTSource(
        fn=launch.function,
        signature={
            name: "constexpr" if name in constants else present.get(name, "i32") for name in names
        },
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): aligned for name in present},
    )
    target = GPUTarget("cuda", int(architecture), 32)
    return triton.compile(source, target=target, options=launch.options)
