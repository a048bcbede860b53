"""The phase that runs every kernel under the four tools of compute-sanitizer, without pytest.

Nothing is timed, so all of them run at once.
"""

from __future__ import annotations

import shutil
from functools import partial

from benchmarks.lib import facts
from benchmarks.lib.measurement import NotMeasured
from benchmarks.phases import building, operators, processes
from benchmarks.phases.context import Visit, python_tool, tool

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
# The kernels of PyTorch and of libraries are not ours to check. Names contain one of these.
KERNELS = {
    "cuda": ("depthwise",),
    "triton": (
        "forward_planar_kernel",
        "forward_float32_kernel",
        "weight_gradient_planar_kernel",
        "weight_gradient_float32_kernel",
        "forward_large_kernel",
        "forward_large_float32_kernel",
        "weight_gradient_large_kernel",
        "weight_gradient_large_float32_kernel",
        "expand_bands_kernel",
        "transpose_kernel",
        "moments_kernel",
        "merge_kernel",
        "batch_normalisation_kernel",
        "running_normalisation_kernel",
        "normalise_kernel",
        "gradient_sums_kernel",
        "value_gradient_kernel",
    ),
}
# The faults that each tool must find.
PLANTED = {
    "memcheck": ("memory",),
    "racecheck": ("race", "race_in_warp"),
    "initcheck": ("uninitialised",),
    "synccheck": ("barrier",),
}
_FOUND = 9
# For a run beside all others. Alone on an H200, initcheck needs more than 30 seconds.
_SECONDS = 120
# The caching allocator is off: its blocks hide what lies behind a tensor.
_UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def sanitize(visit: Visit) -> None:
    if visit.dry_run:
        operators.run(visit.implementation, "tiny", visit.device)
        visit.facts.add("sanitizer", tool="none", kernels=visit.implementation)
    processes.side_by_side(
        [*(partial(_cuda, visit, name) for name in TOOLS), partial(_all_of_triton, visit)]
    )


def _cuda(visit: Visit, name: str) -> None:
    with visit.attempt(f"planted faults, {name}"):
        _planted(visit, name)
    _kernels(visit, name, "cuda")


def _all_of_triton(visit: Visit) -> None:
    """Compile the kernels, which the four tools then find compiled."""
    with visit.attempt("compiling for the sanitizers"):
        visit.needs_gpu("a kernel of Triton")
        ran = python_tool("operators", "triton", "few", seconds=_SECONDS)
        if ran.returncode:
            raise RuntimeError(facts.shortened(ran.stdout))
    processes.side_by_side([partial(_kernels, visit, name, "triton") for name in TOOLS])


def _size(name: str, implementation: str) -> str:
    """The shapes to run: initcheck, which follows every byte, took over 30 seconds for `small`."""
    return "small" if implementation == "cuda" and name != "initcheck" else "few"


def command(name: str, kernels: tuple[str, ...]) -> list[str]:
    """The words before a program."""
    filters = [word for kernel in kernels for word in ("--kernel-name", f"kns={kernel}")]
    # Libraries probe a GPU with calls that fail.
    errors = ["--report-api-errors", "no"] if name == "memcheck" else []
    return [
        *(_sanitizer(), "--tool", name, "--error-exitcode", str(_FOUND), "--print-limit", "5"),
        *(*errors, *filters),
    ]


def _sanitizer() -> str:
    beside_nvcc = "/usr/local/cuda/bin/compute-sanitizer"
    found = shutil.which("compute-sanitizer") or shutil.which(beside_nvcc)
    if found is None:
        raise NotMeasured("there is no compute-sanitizer")
    return found


def _planted(visit: Visit, name: str) -> None:
    visit.needs_gpu("compute-sanitizer")
    program = building.program("planted_faults")
    if not program.exists():
        raise NotMeasured(f"{program.name} was not compiled")
    for fault in ("none", *PLANTED[name]):
        ran = tool([*command(name, ("depthwise",)), program, fault], _SECONDS)
        visit.facts.add(
            "planted fault",
            tool=name,
            fault=fault,
            found=ran.returncode == _FOUND,
            right=(ran.returncode == _FOUND) == (fault != "none"),
        )


def _kernels(visit: Visit, name: str, implementation: str) -> None:
    with visit.attempt(f"{name}, {implementation}"):
        visit.needs_gpu("compute-sanitizer")
        ran = python_tool(
            *("operators", implementation, _size(name, implementation)),
            seconds=_SECONDS,
            before=command(name, KERNELS[implementation]),
            **_UNCACHED,
        )
        clean = ran.returncode == 0
        output = {} if clean else {"output": facts.shortened(ran.stdout)}
        visit.facts.add("sanitizer", tool=name, kernels=implementation, clean=clean, **output)
        if not clean:
            print(ran.stdout)  # The log takes all of it.
