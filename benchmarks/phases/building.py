"""The extension for this GPU, and the small programs of the phases `micro` and `sanitize`."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.lib import facts
from benchmarks.phases import source_variants
from benchmarks.phases.context import ROOT, Visit, tool
from convmixer_kernels.backends.cuda import device as cuda_device

sys.path.append(str(ROOT / "csrc" / "build_tools"))

import cuda_build
import toolchain

SOURCES = Path(__file__).resolve().parent
PROGRAMS = ROOT / "build" / "programs"
_PROBE = (
    "import torch; from convmixer_kernels.backends.cuda import device; "
    "print(device.unavailable(torch.device('cuda')) or 'available')"
)


def extension(visit: Visit) -> None:
    """A build that was carried here if it loads, else a new one on all processor cores.

    The programs are compiled meanwhile.
    """
    visit.needs_gpu("the extension")
    begun = time.monotonic()
    major, minor = torch.cuda.get_device_capability()
    architecture = f"{major}{minor}"
    programs: dict[str, subprocess.Popen[str]] = {}
    with visit.attempt("compiling programs"):
        programs = _start_programs(architecture)
    with visit.attempt("extension"):
        refusal = cuda_device.unavailable(visit.device)
        if refusal is not None:
            visit.facts.add("carried extension", refused=refusal)
            _build(visit, architecture)
        seconds = round(time.monotonic() - begun, 1)
        visit.facts.add("extension", carried=refusal is None, seconds=seconds)
    for name, running in programs.items():
        with visit.attempt(f"compiling {name}"):
            output, _ = running.communicate()
            if running.returncode:
                raise RuntimeError(facts.shortened(output))


def _build(visit: Visit, architecture: str) -> None:
    build = tool(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        seconds=600,
        CONVMIXER_KERNELS_BUILD_CUDA="1",
        CONVMIXER_KERNELS_ARCHITECTURES=architecture,
    )
    (visit.folder / "build.log").write_text(build.stdout[-1_000_000:])
    if build.returncode:
        raise RuntimeError(f"the extension does not build: {facts.shortened(build.stdout)}")
    # This process has already failed to load the one that was carried.
    answer = tool([sys.executable, "-c", _PROBE], seconds=60).stdout.strip()
    if answer != "available":
        raise RuntimeError(f"the extension was built, but {facts.shortened(answer)}")


def _start_programs(architecture: str) -> dict[str, subprocess.Popen[str]]:
    toolkit = toolchain.find_toolkit()
    PROGRAMS.mkdir(parents=True, exist_ok=True)
    builds = [
        ("micro", SOURCES / "micro.cu", cuda_build.CSRC),
        ("splits", SOURCES / "splits.cu", cuda_build.CSRC),
        ("planted_faults", SOURCES / "planted_faults.cu", cuda_build.CSRC),
        *(
            (
                f"micro, {variant.label}",
                SOURCES / "micro.cu",
                source_variants.write(variant, cuda_build.CSRC, PROGRAMS),
            )
            for variant in source_variants.VARIANTS
        ),
    ]
    return {
        name: subprocess.Popen(
            compile_command(toolkit, architecture, source, csrc, program(name)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, source, csrc in builds
    }


def program(name: str) -> Path:
    return PROGRAMS / name.replace(", ", "-").replace(" ", "_")


def compile_command(
    toolkit: toolchain.Toolkit, architecture: str, source: Path, csrc: Path, output: Path
) -> list[str]:
    """The extension's flags, with the headers of `csrc`."""
    return [
        *(str(toolkit.nvcc), "-ccbin", toolkit.host_compiler),
        *(*cuda_build.NVCC_FLAGS, f"-I{csrc}"),
        *(f"-arch=sm_{architecture}", str(source)),
        *(str(csrc / each) for each in ("host/launch.cpp", "kernels/merge_splits.cu")),
        *("-o", str(output)),
    ]
