"""Compile the CUDA sources, with one set of flags for the extension and for `make budget`."""

from __future__ import annotations

import re
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import ninja_file
import toolchain
from ninja_file import Edge

CSRC = Path(__file__).resolve().parents[1]
FILTER_SIZES = "core/tiles.h"
# PTX of the oldest architecture, which the interpreter reads and newer GPUs run.
EMULATED = [f"{toolchain.OLDEST_ARCHITECTURE}-virtual"]
# Kernels are always optimized; the host compiler, which gets tables of them, is not asked to.
NVCC_FLAGS = ("-std=c++20", "-lineinfo", "--expt-relaxed-constexpr")
# One rounding where PTX has one: the host compiler must not contract.
_INTERPRETER_FLAGS = ("-ffp-contract=off", "-Wall", "-Wextra")
# Of host code in tests. Those left out cost a third of the time to compile; the address sanitizer
# sees the accesses.
_SANITIZERS = (
    *("-fsanitize=address", "-fsanitize=undefined", "-fno-sanitize-recover=undefined"),
    *("-fno-sanitize=null", "-fno-sanitize=object-size", "-fno-sanitize=pointer-overflow"),
)

# Line information makes machine code large, 150 MB for one architecture. Compressed, forward_9 is
# 262 KB instead of 1,734 KB with nvcc 13.0; the driver unpacks it when the module is loaded.
COMPRESSED = ("-Xfatbin", "-compress-all")


@dataclass(frozen=True)
class Unit:
    """A file of kernels and the macros it is compiled with; `name` is that of its object."""

    name: str
    source: Path
    macros: tuple[str, ...] = ()


def cuda_units() -> list[Unit]:
    """Every compilation of a file with kernels.

    A file with COMPILE_FOR_SIZES is compiled once for each pair of odd filter sizes.
    """
    units = []
    for source in sorted(CSRC.glob("kernels/*.cu")):
        if "COMPILE_FOR_SIZES" not in source.read_text():
            units.append(Unit(source.stem, source))
            continue
        for first, *second in _pairs([size for size in filter_sizes() if size % 2]):
            macros = (f"FIRST_SIZE={first}", *(f"SECOND_SIZE={size}" for size in second))
            name = "_".join([source.stem, *map(str, (first, *second))])
            units.append(Unit(name, source, macros))
    return units


def filter_sizes() -> list[int]:
    """The filter sizes that kernels take, as csrc/core/tiles.h lists them."""
    table = re.search(r"filter_sizes\[\] = \{([\d, ]+)\};", (CSRC / FILTER_SIZES).read_text())
    assert table is not None, f"{FILTER_SIZES} lists no filter sizes"
    return [int(size) for size in table[1].split(",")]


def host_sources() -> list[Path]:
    """Every file of the extension without kernels."""
    return sorted([*CSRC.glob("*.cpp"), *CSRC.glob("host/*.cpp")])


def build_extension(toolkit: toolchain.Toolkit, architectures: list[str], output: Path) -> None:
    """Compiles and links the extension module `output`.

    Raises:
        subprocess.CalledProcessError: a source does not compile; the compiler has said why.
    """
    folder = _folder(architectures)
    edges = _object_edges(folder)
    rules = {
        **_object_rules(toolkit, architectures),
        "link": f"{ninja_file.quoted(toolkit.host_compiler)} -shared -o $out $in "
        f"{ninja_file.quoted(toolkit.static_runtime)} -lrt -ldl -lpthread",
    }
    link = Edge(output, "link", [edge.target for edge in edges])
    with ninja_file.locked(folder):
        ninja_file.run(folder, rules, [*edges, link])


def build_emulated(toolkit: toolchain.Toolkit) -> Path:
    """Links the extension with the interpreter in place of the CUDA runtime; gives its file.

    The texts of PTX that the interpreter reads lie beside it, ``*.ptx``. Errors as
    `build_extension`; also `toolchain.Missing` without cuobjdump.
    """
    folder = _folder(EMULATED)
    output = folder / "emulated.so"
    objects = _object_edges(folder)
    texts = [
        Edge(edge.target.with_suffix(".ptx"), "ptx", [edge.target])
        for edge in objects
        if edge.rule == "kernels"
    ]
    interpreter = _interpreter_edges(folder)
    linked = [edge.target for edge in (*objects, *interpreter)]
    compiler = ninja_file.quoted(toolkit.host_compiler)
    rules = {
        **_object_rules(toolkit, EMULATED),
        "interpreter": _host_rule(toolkit, "-O2", *_INTERPRETER_FLAGS),
        # The text follows some lines about the object.
        "ptx": f"{ninja_file.quoted(toolchain.find_cuobjdump())} -ptx $in "
        "| sed -n '/^\\.version/,$$p' > $out",
        # Other libraries in the process bring a CUDA runtime too.
        "link": f"{compiler} -shared -Wl,-Bsymbolic -o $out $in -lpthread",
    }
    edges = [*objects, *texts, *interpreter, Edge(output, "link", linked)]
    with ninja_file.locked(folder):
        ninja_file.run(folder, rules, edges, quiet=True)
        # Every text in the folder is one of this build, also where a unit had another name before.
        for stale in set(folder.glob("*.ptx")) - {edge.target for edge in texts}:
            stale.unlink()
    return output


def build_sanitized(toolkit: toolchain.Toolkit) -> Path:
    """Links the extension of `build_emulated` with sanitizers in its host code; gives its file.

    Kernels and interpreter are the objects of `build_emulated`, which it builds first, and the file
    lies beside its texts of PTX. A process that loads it must have loaded the address sanitizer
    before anything else. Errors as `build_emulated`.
    """
    emulated = build_emulated(toolkit).parent
    folder = CSRC.parent / "build" / "sanitized"
    output = emulated / "sanitized.so"
    host = [Edge(folder / f"{source.stem}.o", "host", [source]) for source in host_sources()]
    others = [
        edge.target
        for edge in (*_object_edges(emulated), *_interpreter_edges(emulated))
        if edge.rule != "host"
    ]
    rules = {
        "host": _host_rule(toolkit, "-O0", *_SANITIZERS),
        "link": ninja_file.quoted(toolkit.host_compiler, *_SANITIZERS)
        + " -shared -Wl,-Bsymbolic -o $out $in -lpthread",
    }
    edges = [*host, Edge(output, "link", [*(edge.target for edge in host), *others])]
    with ninja_file.locked(folder):
        ninja_file.run(folder, rules, edges, quiet=True)
    return output


def build_program(toolkit: toolchain.Toolkit, source: Path) -> Path:
    """Compiles a file of C++ that includes CUDA to a program with sanitizers; gives its file.

    Errors as `build_extension`.
    """
    folder = CSRC.parent / "build" / "programs"
    output = folder / source.stem
    compile = ninja_file.quoted(
        *(toolkit.nvcc, "-ccbin", toolkit.host_compiler, *NVCC_FLAGS, f"-I{CSRC}"),
        *(*toolchain.gencode_flags(EMULATED), "-Xcompiler", ",".join(("-O0", *_SANITIZERS))),
    )
    rules = {
        "compile": f"{compile} -MD -MF $out.d -x cu -c $in -o $out",
        "link": ninja_file.quoted(toolkit.host_compiler, *_SANITIZERS)
        + f" -o $out $in {ninja_file.quoted(toolkit.static_runtime)} -lrt -ldl -lpthread",
    }
    target = folder / f"{source.stem}.o"
    edges = [Edge(target, "compile", [source]), Edge(output, "link", [target])]
    with ninja_file.locked(folder):
        ninja_file.run(folder, rules, edges, quiet=True)
    return output


def compile_to_ptx(toolkit: toolchain.Toolkit, unit: Unit, csrc: Path, output: Path) -> None:
    """Compiles a unit to what the interpreter reads, from a copy of csrc/.

    Errors as `build_extension`.
    """
    command = (toolkit.nvcc, "-ccbin", toolkit.host_compiler, *NVCC_FLAGS, f"-I{csrc}")
    architecture = f"-arch=compute_{toolchain.OLDEST_ARCHITECTURE}"
    macros = [f"-D{macro}" for macro in unit.macros]
    source = csrc / unit.source.relative_to(CSRC)
    # The sources have planted faults, of which the compiler would warn.
    subprocess.run(
        [*command, *macros, "-w", architecture, "-ptx", source, "-o", output], check=True
    )


def build_cubins(
    toolkit: toolchain.Toolkit, architectures: list[str], folder: Path
) -> list[tuple[str, Path]]:
    """Compiles the kernels to machine code; gives the architecture and file of each cubin."""
    rules = {
        f"sm_{architecture}": _compile(toolkit, f"-arch=sm_{architecture}", output="-cubin")
        for architecture in architectures
    }
    edges = [
        Edge(
            *(folder / f"{unit.name}.sm_{architecture}.cubin", f"sm_{architecture}"),
            *([unit.source], unit.macros),
        )
        for unit in cuda_units()
        for architecture in architectures
    ]
    ninja_file.run(folder, rules, edges)
    return [(edge.rule.removeprefix("sm_"), edge.target) for edge in edges]


def _folder(architectures: list[str]) -> Path:
    """The folder of the objects for these architectures."""
    return CSRC.parent / "build" / "cuda" / ",".join(architectures)


def _object_edges(folder: Path) -> list[Edge]:
    # The linker takes the first copy of an inline function; those beside kernels are not optimized.
    host = [Edge(folder / f"{source.name}.o", "host", [source]) for source in host_sources()]
    return host + [
        Edge(folder / f"{unit.name}.cu.o", "kernels", [unit.source], unit.macros)
        for unit in cuda_units()
    ]


def _object_rules(toolkit: toolchain.Toolkit, architectures: list[str]) -> dict[str, str]:
    kernels = [*toolchain.gencode_flags(architectures), *COMPRESSED]
    # PTX may run on a GPU with any amount of shared memory, machine code on those of its
    # generation: kernels for the others are left out.
    if all(architecture.isdigit() for architecture in architectures):
        kernels.append("-DMACHINE_CODE_ONLY")
    return {
        "kernels": _compile(toolkit, *kernels, "-Xcompiler", "-fPIC,-fvisibility=hidden"),
        "host": _host_rule(toolkit, "-O2"),
    }


def _interpreter_edges(folder: Path) -> list[Edge]:
    return [
        Edge(folder / "interpreter" / f"{source.stem}.o", "interpreter", [source])
        for source in sorted(CSRC.glob("interpreter/*.cpp"))
    ]


def _host_rule(toolkit: toolchain.Toolkit, *flags: str) -> str:
    """Compile with the host compiler by itself, which takes a third of the time that nvcc takes."""
    headers = (f"-I{CSRC}", "-isystem", str(toolkit.headers), *_python_headers())
    command = ninja_file.quoted(
        *(toolkit.host_compiler, "-std=c++20", "-fPIC", "-fvisibility=hidden"),
        *(*flags, *headers),
    )
    return f"{command} -MD -MF $out.d -c $in -o $out"


def _python_headers() -> tuple[str, ...]:
    python = sysconfig.get_path("include")
    return ("-isystem", str(toolchain.find_pybind11()), "-isystem", python)


def _compile(toolkit: toolchain.Toolkit, *flags: object, output: str = "-c") -> str:
    command = ninja_file.quoted(
        *(toolkit.nvcc, "-ccbin", toolkit.host_compiler, *NVCC_FLAGS, f"-I{CSRC}", *flags)
    )
    return f"{command} $macros -MD -MF $out.d -x cu {output} $in -o $out"


def _pairs(sizes: list[int]) -> list[list[int]]:
    return [sizes[i : i + 2] for i in range(0, len(sizes), 2)]
