"""Builds the CUDA sources with a host compiler and `csrc/emulation`, to run them without a GPU.

The module takes about two minutes of processor time, once; afterwards ninja rebuilds what has
changed. It goes to `build/` beside `csrc/`, or to CONVMIXER_KERNELS_EMULATION_DIR.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

CSRC = Path(__file__).resolve().parents[1] / "csrc"
MODULE = "convmixer_kernels._emulated"

_HEADERS = ("cuda_runtime_api.h", "cuda_fp16.h", "cuda_bf16.h", "crt/host_defines.h")
_OLDEST_GCC = 11  # std::source_location
_WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Wno-unknown-pragmas")
# Compiling takes longer than running: -Og takes half the time of -O1 to compile and the result is
# two thirds as fast.
_SANITIZERS = {
    None: ("-Og",),
    "address": (
        *("-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
        # These cost a third of the compile time; the address sanitizer sees the accesses.
        "-fno-sanitize=null,object-size,pointer-overflow",
    ),
    "thread": ("-O0", "-g1", "-fsanitize=thread"),
}


def import_emulated() -> ModuleType:
    """The Python module with the emulated kernels, built if need be.

    Raises:
        FileNotFoundError: the sources, a compiler, headers or a build tool are missing; says which.
        RuntimeError: the sources do not compile.
    """
    if MODULE in sys.modules:
        return sys.modules[MODULE]
    spec = importlib.util.spec_from_file_location(MODULE, build_module())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[MODULE] = module
    return module


def kernel_sources(csrc: Path = CSRC) -> list[Path]:
    """Every file with kernels, and what chooses among them."""
    return [
        *sorted(csrc.glob("*.cu")),
        *sorted(csrc.glob("instantiations/*.cu")),
        *sorted(csrc.glob("dispatch*.cpp")),
    ]


def build_module(csrc: Path = CSRC) -> Path:
    """Builds the Python module from `csrc` and gives its path; errors as `import_emulated`."""
    python = Path(sysconfig.get_path("include"))
    if not (python / "Python.h").exists():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise FileNotFoundError(
            f"{python}/Python.h is missing; install the headers of Python {version} "
            f"(Debian, Ubuntu: python{version}-dev)"
        )
    if importlib.util.find_spec("pybind11") is None:
        raise FileNotFoundError("pybind11 is not installed; pip install pybind11")
    import pybind11

    flags = (
        *("-fPIC", "-fvisibility=hidden", "-DCONVMIXER_KERNELS_EMULATED"),
        *("-isystem", pybind11.get_include(), "-isystem", str(python)),
    )
    file = MODULE.rpartition(".")[2] + str(sysconfig.get_config_var("EXT_SUFFIX"))
    sources = [*kernel_sources(csrc), csrc / "bindings.cpp"]
    return _build(file, sources, (*_SANITIZERS[None], *flags), ("-shared",), csrc)


def build_executable(
    name: str,
    sources: Sequence[Path],
    *,
    sanitizer: str | None = None,
    flags: Sequence[str] = (),
    csrc: Path = CSRC,
) -> Path:
    """Builds a program from `sources` and the headers of `csrc`, and gives its path.

    `sanitizer` is None, "address" (with that for undefined behaviour) or "thread". Errors as
    `import_emulated`.
    """
    flags = (*_SANITIZERS[sanitizer], *flags)
    link = [flag for flag in flags if flag.startswith(("-fsanitize", "-Wl,", "-no-pie"))]
    return _build(name, sources, flags, link, csrc)


def find_cuda_headers() -> Path:
    """The folder of CUDA's headers: CUDA_HOME, CUDA_PATH, /usr/local/cuda, a Python package."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [Path(home, "include") for home in homes if home]
    for entry in sys.path:
        folders += sorted(Path(entry, "nvidia").glob("cu[0-9]*/include"), reverse=True)
    for folder in folders:
        if all((folder / header).is_file() for header in _HEADERS):
            return folder
    raise FileNotFoundError(
        "the headers of CUDA are missing; install a CUDA toolkit and set CUDA_HOME, or "
        "pip install 'cuda-toolkit[crt,cudart]==13.0.*'"
    )


def _build(
    file: str, sources: Sequence[Path], flags: Sequence[str], link: Sequence[str], csrc: Path
) -> Path:
    sources = [*sources, csrc / "emulation" / "runtime.cpp"]
    for source in sources:
        if not source.is_file():
            raise FileNotFoundError(
                f"the emulation is compiled from the sources of the project, but {source} does not "
                "exist; work in a checkout, installed with pip install -e ."
            )
    compiler, version = _compiler()
    compile_command = (
        *(compiler, "-std=c++20", "-fno-strict-aliasing", *_architecture()),
        *(*_WARNINGS, *flags, f"-I{csrc}", "-isystem", str(find_cuda_headers())),
    )
    # Python's ABI is in the name of the module.
    key = hashlib.sha256(repr((file, compile_command, version)).encode()).hexdigest()[:12]
    folder = _root(csrc) / f"emulation-{key}"
    output = folder / file
    with _locked(folder):
        if not output.exists():
            print(f"building {output}", file=sys.stderr)
        _run_ninja(folder, output, sources, compile_command, (compiler, *link))
    return output


def _run_ninja(
    folder: Path,
    output: Path,
    sources: Sequence[Path],
    compile_command: Sequence[str],
    link_command: Sequence[str],
) -> None:
    lines = [
        "rule compile",
        f"  command = {_quoted(compile_command)} -MD -MF $out.d -x c++ -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {_quoted(link_command)} -o $out $in -pthread",
    ]
    objects = []
    for source in sources:
        objects.append(f"{source.stem}{source.suffix}.o")
        lines.append(f"build {objects[-1]}: compile {_path(source.resolve())}")
    lines.append(f"build {_path(output.name)}: link {' '.join(objects)}")
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    jobs = os.environ.get("MAX_JOBS")
    command = [_ninja(), "-C", str(folder), *([f"-j{int(jobs)}"] if jobs else [])]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{output.name} does not compile:\n{result.stdout}{result.stderr}")
    if "warning:" in result.stdout:
        print(result.stdout, file=sys.stderr)


def _root(csrc: Path) -> Path:
    chosen = os.environ.get("CONVMIXER_KERNELS_EMULATION_DIR")
    return Path(chosen).resolve() if chosen else csrc.parent / "build"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from building in the folder."""
    import fcntl  # not on every system where the package can be imported

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise RuntimeError(
            f"cannot write to {folder} ({error.strerror}); set CONVMIXER_KERNELS_EMULATION_DIR "
            "to a folder for the build"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@functools.cache
def _compiler() -> tuple[str, str]:
    """The host compiler and its version."""
    name = os.environ.get("CXX", "g++")
    path = shutil.which(name)
    if path is None:
        raise FileNotFoundError(
            f"there is no C++ compiler {name!r} on PATH; install g++, or set CXX"
        )
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    line = version.partition("\n")[0]
    release = re.search(r"(\d+)\.\d+\.\d+", line)
    if "clang" not in line and release and int(release[1]) < _OLDEST_GCC:
        raise FileNotFoundError(
            f"{path} is {line}; the emulation needs g++ {_OLDEST_GCC}; install it or set CXX"
        )
    return path, version


@functools.cache
def _architecture() -> tuple[str, ...]:
    """Vector instructions where the processor has them: a matrix product in half the time."""
    with contextlib.suppress(OSError):
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if flags and {"abm", "avx2", "bmi2", "f16c", "fma", "movbe"} <= set(flags[1].split()):
            return ("-march=x86-64-v3",)
    return ()


def _ninja() -> str:
    if importlib.util.find_spec("ninja"):
        import ninja

        return str(Path(ninja.BIN_DIR) / "ninja")
    if found := shutil.which("ninja"):
        return found
    raise FileNotFoundError("ninja is not installed; pip install ninja")


def _quoted(words: Sequence[str]) -> str:
    """Words of a shell command within a ninja file."""
    return shlex.join(words).replace("$", "$$")


def _path(path: Path | str) -> str:
    """A path where a ninja file lists targets and sources."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
