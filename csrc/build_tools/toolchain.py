"""Find the tools for compiling CUDA on this machine, before anything has been installed."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# All five parts by name: one left out comes in newer, and ptxas refuses the PTX of a newer nvvm.
TOOLKIT_REQUIREMENT = "cuda-toolkit[nvcc,nvvm,crt,cudart,cccl]==13.0.2"
BUILD_REQUIREMENTS = ("ninja", "pybind11>=2.12")
# The first nvcc whose C++20 and PTX cover the kernels.
OLDEST_NVCC = (12, 4)
# mma.sync on bfloat16 and cp.async begin with compute capability 8.0.
OLDEST_ARCHITECTURE = 80
SYSTEM_NVCC = Path("/usr/local/cuda/bin/nvcc")
DEFAULT_ARCHITECTURES = (80, 90, 100, 120)
# The compilers that were seen to work, a line each.
PROBED = Path(__file__).resolve().parents[2] / "build" / "probed_compilers.txt"

_PROBE = """
#include <concepts>
#include <cuda_fp16.h>
template <std::integral T> __global__ void probe(T* x) { *x += 1; }
template __global__ void probe(int*);
"""


class Missing(Exception):
    """The extension cannot be built here, for `reason`; `remedy` is what would help."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.reason = reason
        self.remedy = remedy


@dataclass(frozen=True)
class Toolkit:
    """An nvcc that was seen to compile C++20, and the files of CUDA that belong to it."""

    nvcc: Path
    version: str
    host_compiler: str
    static_runtime: Path
    headers: Path


def build_wanted() -> bool | None:
    """CONVMIXER_KERNELS_BUILD_CUDA: True (1: demanded), False (0: skipped), None (if possible)."""
    value = os.environ.get("CONVMIXER_KERNELS_BUILD_CUDA", "")
    if value not in ("", "0", "1"):
        raise ValueError(f"CONVMIXER_KERNELS_BUILD_CUDA: got {value!r}, expected 0 or 1")
    return {"": None, "0": False, "1": True}[value]


def build_requirements() -> list[str]:
    """The packages that an isolated build installs: nvcc too, if this machine has none."""
    if build_wanted() is False:
        return []
    try:
        _check_host()
    except Missing:
        return []
    has_toolkit = any(isinstance(_inspect(nvcc), Toolkit) for nvcc in _system_compilers())
    return [*BUILD_REQUIREMENTS, *([] if has_toolkit else [TOOLKIT_REQUIREMENT])]


def find_toolkit() -> Toolkit:
    """The first usable nvcc: CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda, then Python packages."""
    _check_host()
    refusals = []
    for nvcc in (*_system_compilers(), *_packaged_compilers()):
        found = _inspect(nvcc)
        if isinstance(found, Toolkit):
            return found
        refusals.append(found)
    raise Missing(
        "; ".join(refusals) or "there is no nvcc",
        "install a CUDA toolkit (12.4 or newer) and set CUDA_HOME, or install the package without "
        "--no-build-isolation, which brings nvcc from PyPI",
    )


def find_ninja() -> str:
    """The ninja of the Python package, or else the one on PATH."""
    if importlib.util.find_spec("ninja"):
        import ninja

        return str(Path(ninja.BIN_DIR) / "ninja")
    if found := shutil.which("ninja"):
        return found
    raise Missing("ninja is not installed", "pip install ninja")


def find_cuobjdump() -> str:
    """The cuobjdump on PATH or in /usr/local/cuda, or else the one that Triton brings."""
    candidates = [shutil.which("cuobjdump"), "/usr/local/cuda/bin/cuobjdump"]
    if (triton := importlib.util.find_spec("triton")) and triton.submodule_search_locations:
        package = Path(triton.submodule_search_locations[0])
        candidates.append(str(package / "backends" / "nvidia" / "bin" / "cuobjdump"))
    for candidate in candidates:
        if candidate and Path(candidate).is_file():
            return candidate
    raise Missing("cuobjdump is not installed", "install a CUDA toolkit, or pip install triton")


def find_pybind11() -> Path:
    """The headers of pybind11."""
    if not importlib.util.find_spec("pybind11"):
        raise Missing("pybind11 is not installed", "pip install pybind11")
    import pybind11

    return Path(pybind11.get_include())


def architectures(toolkit: Toolkit) -> list[str]:
    """For which GPUs to compile, as `gencode_flags` takes them: those asked for, here, or all."""
    asked = os.environ.get("CONVMIXER_KERNELS_ARCHITECTURES", "")
    known = _known_architectures(toolkit)
    if asked:
        return [
            _checked(entry, known, toolkit) for entry in re.split(r"[;, ]+", asked.strip(";, "))
        ]
    present = gpus()
    if present and max(present) < OLDEST_ARCHITECTURE:
        capability = f"{max(present) // 10}.{max(present) % 10}"
        raise Missing(
            f"the GPU here has compute capability {capability}, the kernels need 8.0 or newer",
            "use the triton or torch implementation, or set CONVMIXER_KERNELS_ARCHITECTURES to "
            "build for another GPU",
        )
    wanted = {gpu for gpu in present if gpu >= OLDEST_ARCHITECTURE}
    if wanted and wanted <= known:
        return [str(gpu) for gpu in sorted(wanted)]
    # No GPU, or one newer than this nvcc. PTX of the oldest serves those in between as well.
    oldest, *newer = (str(each) for each in DEFAULT_ARCHITECTURES if each in known)
    return [f"{oldest}+PTX", *newer]


def gpus() -> set[int]:
    """The compute capabilities, times ten, of the GPUs in this machine."""
    if shutil.which("nvidia-smi") is None:
        return set()
    listing = _run("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader").stdout
    return {int(major + minor) for major, minor in re.findall(r"^(\d+)\.(\d)$", listing, re.M)}


def gencode_flags(entries: list[str]) -> list[str]:
    """The flags of nvcc for "90" (machine code), "90-virtual" (PTX) or "120+PTX" (both)."""
    flags = []
    for entry in entries:
        number = entry.removesuffix("+PTX").removesuffix("-virtual")
        if not entry.endswith("-virtual"):
            flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if entry != number:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def _checked(entry: str, known: set[int], toolkit: Toolkit) -> str:
    match = re.fullmatch(r"(\d+)\.?(\d)(\+PTX|-virtual)?", entry)
    if match is None:
        raise ValueError(
            f"CONVMIXER_KERNELS_ARCHITECTURES: got {entry!r}, expected a list such as 80;90;120+PTX"
        )
    number = int(match[1] + match[2])
    if number < OLDEST_ARCHITECTURE or number not in known:
        accepted = ", ".join(str(each) for each in sorted(known) if each >= OLDEST_ARCHITECTURE)
        raise ValueError(
            f"CONVMIXER_KERNELS_ARCHITECTURES: got {entry!r}, nvcc {toolkit.version} and these "
            f"kernels accept {accepted}"
        )
    return f"{number}{match[3] or ''}"


def _known_architectures(toolkit: Toolkit) -> set[int]:
    listing = _run(str(toolkit.nvcc), "--list-gpu-code").stdout
    return {int(number) for number in re.findall(r"\bsm_(\d+)\b", listing)}


def _check_host() -> None:
    if sys.platform != "linux":
        raise Missing(
            f"the CUDA extension is built on Linux only, not on {sys.platform}", "use Linux"
        )
    if shutil.which(_host_compiler()) is None:
        raise Missing(
            f"there is no C++ compiler {_host_compiler()!r} on PATH", "install g++, or set CXX"
        )
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise Missing(
            "Python.h is missing",
            f"install the headers of Python {version} (Debian, Ubuntu: python{version}-dev)",
        )


def _host_compiler() -> str:
    return os.environ.get("CXX", "g++")


def _system_compilers() -> Iterator[Path]:
    if os.environ.get("CONVMIXER_KERNELS_NO_SYSTEM_CUDA") == "1":
        return
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [Path(home, "bin", "nvcc") for home in homes if home]
    if on_path := shutil.which("nvcc"):
        candidates.append(Path(on_path))
    candidates.append(SYSTEM_NVCC)
    yield from dict.fromkeys(nvcc for nvcc in candidates if nvcc.is_file())


def _packaged_compilers() -> Iterator[Path]:
    for folder in sys.path:
        yield from sorted(Path(folder, "nvidia").glob("cu*/bin/nvcc"), reverse=True)


@functools.cache
def _inspect(nvcc: Path) -> Toolkit | str:
    """The toolkit of an nvcc, or the reason why that nvcc is of no use."""
    release = re.search(r"release (\d+)\.(\d+), V([\d.]+)", _run(str(nvcc), "--version").stdout)
    if release is None:
        return f"{nvcc} does not tell its version"
    if (int(release[1]), int(release[2])) < OLDEST_NVCC:
        return f"{nvcc} is version {release[3]}, older than {OLDEST_NVCC[0]}.{OLDEST_NVCC[1]}"
    # nvcc may be a wrapper anywhere; where its files lie, only nvcc itself knows.
    folders = _run(str(nvcc), "--dryrun", "-x", "cu", "-c", "/dev/null", "-o", "/dev/null").stderr
    libraries = [Path(folder) for folder in re.findall(r'"-L([^"]+)"', folders)]
    # The packages from PyPI hold lib, while their nvcc looks in lib64.
    libraries += [folder.with_name("lib") for folder in libraries if folder.name == "lib64"]
    runtimes = [folder / "libcudart_static.a" for folder in libraries]
    runtime = next((path for path in runtimes if path.is_file()), None)
    if runtime is None:
        return f"{nvcc} comes without libcudart_static.a"
    headers = next((Path(found) for found in re.findall(r'"-I([^"]+)"', folders)), None)
    if headers is None:
        return f"{nvcc} comes without headers"
    if problem := _compile_problem(nvcc, release[3]):
        return f"{nvcc} cannot compile C++20 with {_host_compiler()}: {problem}"
    return Toolkit(nvcc, release[3], _host_compiler(), runtime.resolve(), headers.resolve())


def _compile_problem(nvcc: Path, version: str) -> str | None:
    """The reason why an nvcc cannot compile C++20 with the host compiler; None if it can.

    Compilers that can are remembered in `PROBED`: the probe takes two seconds, and every process
    that uses the emulated GPU asks.
    """
    host = Path(shutil.which(_host_compiler()) or _host_compiler()).resolve()
    parts = (nvcc.resolve(), nvcc.stat().st_mtime_ns, version, host, host.stat().st_mtime_ns)
    compilers = " ".join(map(str, parts))
    with contextlib.suppress(OSError):
        if compilers in PROBED.read_text().splitlines():
            return None
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cu")
        source.write_text(_PROBE)
        result = _run(
            *(str(nvcc), "-std=c++20", "-ccbin", _host_compiler()),
            *("-c", str(source), "-o", str(source.with_suffix(".o"))),
        )
    if result.returncode == 0:
        with contextlib.suppress(OSError):
            PROBED.parent.mkdir(exist_ok=True)
            with PROBED.open("a") as file:
                file.write(f"{compilers}\n")
        return None
    lines = [line.strip() for line in (result.stderr + result.stdout).splitlines() if line.strip()]
    return next((line for line in lines if "error" in line or "fatal" in line), lines[0])


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)
