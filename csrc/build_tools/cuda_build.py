"""How the CUDA sources are compiled: one set of flags for the extension and for `make budget`."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import ninja_file
import toolchain

CSRC = Path(__file__).resolve().parents[1]
NVCC_FLAGS = ("-std=c++20", "-O3", "-lineinfo", "--expt-relaxed-constexpr", f"-I{CSRC}")

# Line information makes machine code large, 150 MB for one architecture; forward_9 is 262 KB instead
# of 1,734 KB with nvcc 13.0. The driver unpacks it when the module is loaded.
COMPRESSED = ("-Xfatbin", "-compress-all")


def cuda_sources() -> list[Path]:
    """Every file with kernels."""
    return sorted([*CSRC.glob("*.cu"), *CSRC.glob("instantiations/*.cu")])


def host_sources() -> list[Path]:
    """Every file of the extension without kernels."""
    return sorted(CSRC.glob("*.cpp"))


def build_extension(
    toolkit: toolchain.Toolkit, architectures: list[str], output: Path, folder: Path
) -> None:
    """Compiles and links the extension module `output`, with intermediate files in `folder`.

    Raises:
        subprocess.CalledProcessError: a source does not compile; the compiler has said why.
    """
    rules = {
        "compile": _compile(
            toolkit,
            *toolchain.gencode_flags(architectures),
            *COMPRESSED,
            *("-Xcompiler", "-fPIC,-fvisibility=hidden"),
            *("-isystem", toolchain.find_pybind11(), "-isystem", sysconfig.get_path("include")),
        ),
        "link": f"{ninja_file.quoted(toolkit.host_compiler)} -shared -o $out $in "
        f"{ninja_file.quoted(toolkit.static_runtime)} -lrt -ldl -lpthread",
    }
    edges = [
        (folder / f"{source.stem}{source.suffix}.o", "compile", [source])
        for source in (*cuda_sources(), *host_sources())
    ]
    objects = [target for target, _, _ in edges]
    ninja_file.run(folder, rules, [*edges, (output, "link", objects)])


def build_cubins(
    toolkit: toolchain.Toolkit, architectures: list[str], folder: Path
) -> list[tuple[str, Path]]:
    """Compiles the kernels to machine code; gives the architecture and file of each cubin."""
    rules = {
        f"sm_{architecture}": _compile(toolkit, f"-arch=sm_{architecture}", output="-cubin")
        for architecture in architectures
    }
    edges = [
        (folder / f"{source.stem}.sm_{architecture}.cubin", f"sm_{architecture}", [source])
        for source in cuda_sources()
        for architecture in architectures
    ]
    ninja_file.run(folder, rules, edges)
    return [(rule.removeprefix("sm_"), cubin) for cubin, rule, _ in edges]


def _compile(toolkit: toolchain.Toolkit, *flags: object, output: str = "-c") -> str:
    # The host sources go through nvcc too: the headers they share with the kernels take any other
    # compiler for the emulation's.
    command = ninja_file.quoted(toolkit.nvcc, "-ccbin", toolkit.host_compiler, *NVCC_FLAGS, *flags)
    return f"{command} -MD -MF $out.d -x cu {output} $in -o $out"
