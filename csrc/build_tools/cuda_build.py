"""How the CUDA sources are compiled: one set of flags for the extension and for `make budget`."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

import ninja_file
import toolchain

CSRC = Path(__file__).resolve().parents[1]
# PTX of the oldest architecture, which the interpreter reads and newer GPUs run.
EMULATED = [f"{toolchain.OLDEST_ARCHITECTURE}-virtual"]
NVCC_FLAGS = ("-std=c++20", "-O3", "-lineinfo", "--expt-relaxed-constexpr", f"-I{CSRC}")
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


def cuda_sources() -> list[Path]:
    """Every file with kernels."""
    return sorted([*CSRC.glob("*.cu"), *CSRC.glob("instantiations/*.cu")])


def host_sources() -> list[Path]:
    """Every file of the extension without kernels."""
    return sorted(CSRC.glob("*.cpp"))


def build_extension(toolkit: toolchain.Toolkit, architectures: list[str], output: Path) -> None:
    """Compiles and links the extension module `output`.

    Raises:
        subprocess.CalledProcessError: a source does not compile; the compiler has said why.
    """
    folder = _folder(architectures)
    edges = _object_edges(folder)
    rules = {
        "compile": _compile_objects(toolkit, architectures),
        "link": f"{ninja_file.quoted(toolkit.host_compiler)} -shared -o $out $in "
        f"{ninja_file.quoted(toolkit.static_runtime)} -lrt -ldl -lpthread",
    }
    ninja_file.run(folder, rules, [*edges, (output, "link", [target for target, _, _ in edges])])


def build_emulated(toolkit: toolchain.Toolkit) -> Path:
    """Links the extension with the interpreter in place of the CUDA runtime; gives its file.

    The texts of PTX that the interpreter reads lie beside it, ``*.ptx``. Errors as
    `build_extension`; also `toolchain.Missing` without cuobjdump.
    """
    folder = _folder(EMULATED)
    output = folder / "emulated.so"
    objects = _object_edges(folder)
    texts = [
        (target.with_suffix(".ptx"), "ptx", [target])
        for target, _, [source] in objects
        if source.suffix == ".cu"
    ]
    interpreter = _interpreter_edges(folder)
    linked = [target for target, _, _ in (*objects, *interpreter)]
    compiler = ninja_file.quoted(toolkit.host_compiler)
    rules = {
        "compile": _compile_objects(toolkit, EMULATED),
        "interpreter": _host_rule(toolkit, "-O2", *_INTERPRETER_FLAGS),
        # The text follows some lines about the object.
        "ptx": f"{ninja_file.quoted(toolchain.find_cuobjdump())} -ptx $in "
        "| sed -n '/^\\.version/,$$p' > $out",
        # Other libraries in the process bring a CUDA runtime too.
        "link": f"{compiler} -shared -Wl,-Bsymbolic -o $out $in -lpthread",
    }
    edges = [*objects, *texts, *interpreter, (output, "link", linked)]
    with ninja_file.locked(folder):
        ninja_file.run(folder, rules, edges, quiet=True)
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
    host = [(folder / f"{source.stem}.o", "host", [source]) for source in host_sources()]
    others = [
        target
        for target, _, [source] in (*_object_edges(emulated), *_interpreter_edges(emulated))
        if source not in host_sources()
    ]
    rules = {
        "host": _host_rule(toolkit, "-O0", f"-I{CSRC}", *_SANITIZERS),
        "link": ninja_file.quoted(toolkit.host_compiler, *_SANITIZERS)
        + " -shared -Wl,-Bsymbolic -o $out $in -lpthread",
    }
    edges = [*host, (output, "link", [*(target for target, _, _ in host), *others])]
    with ninja_file.locked(folder):
        ninja_file.run(folder, rules, edges, quiet=True)
    return output


def build_program(toolkit: toolchain.Toolkit, source: Path) -> Path:
    """Compiles a file of C++ that includes CUDA to a program with sanitizers; gives its file.

    Errors as `build_extension`.
    """
    folder = CSRC.parent / "build" / "programs"
    output = folder / source.stem
    # nvcc would hand its -O3 to the host compiler, after what -Xcompiler says.
    unoptimised = [flag for flag in NVCC_FLAGS if flag != "-O3"]
    compile = ninja_file.quoted(
        *(toolkit.nvcc, "-ccbin", toolkit.host_compiler, *unoptimised),
        *(*toolchain.gencode_flags(EMULATED), "-Xcompiler", ",".join(("-O0", *_SANITIZERS))),
    )
    rules = {
        "compile": f"{compile} -MD -MF $out.d -x cu -c $in -o $out",
        "link": ninja_file.quoted(toolkit.host_compiler, *_SANITIZERS)
        + f" -o $out $in {ninja_file.quoted(toolkit.static_runtime)} -lrt -ldl -lpthread",
    }
    target = folder / f"{source.stem}.o"
    edges = [(target, "compile", [source]), (output, "link", [target])]
    with ninja_file.locked(folder):
        ninja_file.run(folder, rules, edges, quiet=True)
    return output


def compile_to_ptx(toolkit: toolchain.Toolkit, source: Path, output: Path) -> None:
    """Compiles one file of kernels to what the interpreter reads; errors as `build_extension`."""
    command = (toolkit.nvcc, "-ccbin", toolkit.host_compiler, *NVCC_FLAGS)
    architecture = f"-arch=compute_{toolchain.OLDEST_ARCHITECTURE}"
    # The sources have planted faults, of which the compiler would warn.
    subprocess.run([*command, "-w", architecture, "-ptx", source, "-o", output], check=True)


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


def _folder(architectures: list[str]) -> Path:
    """The folder of the objects for these architectures."""
    return CSRC.parent / "build" / "cuda" / ",".join(architectures)


def _object_edges(folder: Path) -> list[tuple[Path, str, list[Path]]]:
    return [
        (folder / f"{source.stem}{source.suffix}.o", "compile", [source])
        for source in (*cuda_sources(), *host_sources())
    ]


def _interpreter_edges(folder: Path) -> list[tuple[Path, str, list[Path]]]:
    return [
        (folder / "interpreter" / f"{source.stem}.o", "interpreter", [source])
        for source in sorted(CSRC.glob("interpreter/*.cpp"))
    ]


def _host_rule(toolkit: toolchain.Toolkit, optimisation: str, *flags: str) -> str:
    """Compiles plain C++, for which nvcc only finds the headers of CUDA."""
    command = ninja_file.quoted(
        *(toolkit.nvcc, "-ccbin", toolkit.host_compiler, "-std=c++20", optimisation),
        *("-Xcompiler", ",".join(("-fPIC", "-fvisibility=hidden", *flags)), *_python_headers()),
    )
    return f"{command} -MD -MF $out.d -c $in -o $out"


def _compile_objects(toolkit: toolchain.Toolkit, architectures: list[str]) -> str:
    return _compile(
        toolkit,
        *toolchain.gencode_flags(architectures),
        *COMPRESSED,
        *("-Xcompiler", "-fPIC,-fvisibility=hidden"),
        *_python_headers(),
    )


def _python_headers() -> tuple[str, ...]:
    python = sysconfig.get_path("include")
    return ("-isystem", str(toolchain.find_pybind11()), "-isystem", python)


def _compile(toolkit: toolchain.Toolkit, *flags: object, output: str = "-c") -> str:
    # The host sources too are read as CUDA: one rule and one set of flags for all.
    command = ninja_file.quoted(toolkit.nvcc, "-ccbin", toolkit.host_compiler, *NVCC_FLAGS, *flags)
    return f"{command} -MD -MF $out.d -x cu {output} $in -o $out"
