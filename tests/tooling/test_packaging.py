"""The build: which toolchain it takes, what it records, and what the package says of itself."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import cuda_build
import toolchain
from convmixer_kernels import __main__ as report
from convmixer_kernels import build_information

ROOT = Path(__file__).resolve().parents[2]
VARIABLES = ("BUILD_CUDA", "ARCHITECTURES", "NO_SYSTEM_CUDA")

NVCC = """#!/bin/sh
case "$*" in
  --version) echo "Cuda compilation tools, release {release}, V{release}.77" ;;
  --list-gpu-code) printf 'sm_75 sm_80 {architectures}\\n' ;;
  *--dryrun*) echo '#$ INCLUDES="-I{home}/include"' >&2
    echo '#$ LIBRARIES=  "-L{home}/lib64/stubs" "-L{home}/lib64"' >&2 ;;
  *-std=c++20*) {compile} ;;
esac
"""


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a host compiler and nothing of CUDA; gives the one folder on its PATH."""
    monkeypatch.setattr(toolchain, "PROBED", tmp_path / "probed.txt")
    for name in (*(f"CONVMIXER_KERNELS_{each}" for each in VARIABLES), "CXX", "MAX_JOBS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    folder = tmp_path / "path"
    folder.mkdir()
    executable(folder / "g++", "#!/bin/sh\n")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(toolchain, "SYSTEM_NVCC", tmp_path / "absent")
    monkeypatch.setattr(toolchain, "_packaged_compilers", lambda: iter(()))
    return folder


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def nvcc(
    home: Path,
    release: str = "13.0",
    architectures: str = "sm_90 sm_100 sm_120",
    compile: str = ":",
    library: str = "lib64",
) -> Path:
    """A CUDA toolkit whose nvcc only answers questions."""
    (home / library).mkdir(parents=True)
    (home / library / "libcudart_static.a").touch()
    text = NVCC.format(home=home, release=release, architectures=architectures, compile=compile)
    return executable(home / "bin" / "nvcc", text)


def nvidia_smi(folder: Path, *capabilities: str) -> None:
    lines = "\n".join(capabilities)
    executable(folder / "nvidia-smi", f"#!/bin/sh\ncat <<END\n{lines}\nEND\n")


def test_cuda_home_comes_before_path(
    bare_machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = nvcc(tmp_path / "first"), nvcc(tmp_path / "second")
    monkeypatch.setenv("PATH", f"{second.parent}:{os.environ['PATH']}")
    assert toolchain.find_toolkit().nvcc == second
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "first"))
    assert toolchain.find_toolkit().nvcc == first


def test_a_wrapper_on_path_knows_where_its_toolkit_lies(bare_machine: Path, tmp_path: Path) -> None:
    real = nvcc(tmp_path / "far away")
    wrapper = executable(bare_machine / "nvcc", f'#!/bin/sh\nexec "{real}" "$@"\n')
    found = toolchain.find_toolkit()
    assert found.nvcc == wrapper
    assert found.version == "13.0.77"
    assert found.static_runtime == tmp_path / "far away" / "lib64" / "libcudart_static.a"


def test_the_runtime_may_lie_in_lib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc(tmp_path / "cuda", library="lib")
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "cuda"))
    assert toolchain.find_toolkit().static_runtime.parent == tmp_path / "cuda" / "lib"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"release": "12.3"}, "is version 12.3.77, older than 12.4"),
        ({"library": "elsewhere"}, "comes without libcudart_static.a"),
        (
            {"compile": "echo 'warning: old'; echo 'error: no such standard'; exit 1"},
            "cannot compile C++20 with g++: error: no such standard",
        ),
    ],
)
def test_an_unusable_nvcc_counts_as_missing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, str],
    reason: str,
) -> None:
    bad = nvcc(tmp_path / "bad", **arguments)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "bad"))
    with pytest.raises(toolchain.Missing) as missing:
        toolchain.find_toolkit()
    assert missing.value.reason == f"{bad} {reason}"
    assert "install a CUDA toolkit" in missing.value.remedy
    assert toolchain.TOOLKIT_REQUIREMENT in toolchain.build_requirements()

    good = nvcc(tmp_path / "good")
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "good"))
    assert toolchain.find_toolkit().nvcc == good


def test_a_compiler_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later processes rely on the first, until the compiler is another."""
    tried = tmp_path / "tried"
    found = nvcc(tmp_path / "cuda", compile=f"echo x >> '{tried}'")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    for _ in range(2):
        toolchain._inspect.cache_clear()
        assert toolchain.find_toolkit().nvcc == found
    assert tried.read_text() == "x\n"
    os.utime(found, ns=(0, 0))
    toolchain._inspect.cache_clear()
    toolchain.find_toolkit()
    assert tried.read_text() == "x\nx\n"


def test_no_nvcc_anywhere() -> None:
    with pytest.raises(toolchain.Missing, match="there is no nvcc; install a CUDA toolkit"):
        toolchain.find_toolkit()


def test_a_system_nvcc_can_be_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc(tmp_path / "cuda")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setenv("CONVMIXER_KERNELS_NO_SYSTEM_CUDA", "1")
    with pytest.raises(toolchain.Missing, match="there is no nvcc"):
        toolchain.find_toolkit()


def test_the_nvcc_of_a_python_package_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("CONVMIXER_KERNELS_NO_SYSTEM_CUDA", "1")
    packaged = nvcc(tmp_path / "nvidia" / "cu13", library="lib")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert toolchain.find_toolkit().nvcc == packaged


def test_no_host_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(toolchain.Missing, match="no C\\+\\+ compiler 'no-such-compiler' on PATH"):
        toolchain.find_toolkit()
    assert toolchain.build_requirements() == []


def test_no_python_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(toolchain.Missing, match=r"Python.h is missing; .*python3\.\d+-dev"):
        toolchain.find_toolkit()


def test_nvcc_is_fetched_only_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = list(toolchain.BUILD_REQUIREMENTS)
    assert toolchain.build_requirements() == [*tools, toolchain.TOOLKIT_REQUIREMENT]
    nvcc(tmp_path / "cuda")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    assert toolchain.build_requirements() == tools
    monkeypatch.setenv("CONVMIXER_KERNELS_BUILD_CUDA", "0")
    assert toolchain.build_requirements() == []


def test_the_switch_takes_0_and_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVMIXER_KERNELS_BUILD_CUDA", "yes")
    with pytest.raises(ValueError, match="got 'yes', expected 0 or 1"):
        toolchain.build_wanted()


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> toolchain.Toolkit:
    nvcc(tmp_path / "toolkit")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    return toolchain.find_toolkit()


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("90", ["90"]),
        ("9.0", ["90"]),
        ("80;90 100,12.0+PTX;", ["80", "90", "100", "120+PTX"]),
        ("8.0-virtual 90", ["80-virtual", "90"]),
        ("all", ["80+PTX", "90", "100", "120"]),
    ],
)
def test_architectures_as_asked_for(
    toolkit: toolchain.Toolkit, monkeypatch: pytest.MonkeyPatch, asked: str, expected: list[str]
) -> None:
    monkeypatch.setenv("CONVMIXER_KERNELS_ARCHITECTURES", asked)
    assert toolchain.architectures(toolkit) == expected


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("native", "got 'native', expected all or a list such as 80;90;120\\+PTX"),
        ("80;75", "got '75', nvcc 13.0.77 and these kernels accept 80, 90, 100, 120"),
        ("130", "got '130'"),
        ("80-real", "got '80-real', expected all or a list"),
    ],
)
def test_architectures_that_cannot_be(
    toolkit: toolchain.Toolkit, monkeypatch: pytest.MonkeyPatch, asked: str, message: str
) -> None:
    monkeypatch.setenv("CONVMIXER_KERNELS_ARCHITECTURES", asked)
    with pytest.raises(ValueError, match=message):
        toolchain.architectures(toolkit)


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        (["9.0"], ["90"]),
        (["9.0", "8.0", "9.0"], ["80", "90"]),
        (["12.0", "7.5"], ["120"]),
        (["9.0", "13.0"], ["80-virtual"]),
        (["No devices were found"], ["80-virtual"]),
    ],
)
def test_architectures_of_the_gpus_here(
    toolkit: toolchain.Toolkit, bare_machine: Path, present: list[str], expected: list[str]
) -> None:
    nvidia_smi(bare_machine, *present)
    assert toolchain.architectures(toolkit) == expected


def test_a_gpu_that_is_too_old(toolkit: toolchain.Toolkit, bare_machine: Path) -> None:
    nvidia_smi(bare_machine, "7.5")
    with pytest.raises(toolchain.Missing, match=r"compute capability 7\.5, the kernels need 8\.0"):
        toolchain.architectures(toolkit)


def test_an_older_nvcc_leaves_ptx_for_what_it_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc(tmp_path / "old", release="12.4", architectures="sm_90")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "old"))
    monkeypatch.setenv("CONVMIXER_KERNELS_ARCHITECTURES", "all")
    assert toolchain.architectures(toolchain.find_toolkit()) == ["80+PTX", "90"]


def test_gencode_flags() -> None:
    assert toolchain.gencode_flags(["80", "90-virtual", "120+PTX"]) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=compute_90",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]


def test_the_cuda_toolkit_is_the_same_everywhere() -> None:
    assert f'"{toolchain.TOOLKIT_REQUIREMENT};' in (ROOT / "pyproject.toml").read_text()
    name, version = re.sub(r"\[.*\]", "", toolchain.TOOLKIT_REQUIREMENT).split("==")
    assert f"{name}=={version}\n" in (ROOT / "constraints.txt").read_text()


BINDINGS = """
#include <Python.h>
int doubled(int);
static PyObject* call(PyObject*, PyObject* value) {
  return PyLong_FromLong(doubled(int(PyLong_AsLong(value))));
}
static PyMethodDef methods[] = {{"doubled", call, METH_O, nullptr}, {}};
static PyModuleDef definition{PyModuleDef_HEAD_INIT, "_cuda", nullptr, -1, methods};
PyMODINIT_FUNC PyInit__cuda() { return PyModule_Create(&definition); }
"""
KERNEL = """
#include "core/scale.h"
#define COMPILE_FOR_SIZES static_assert(FIRST_SIZE == 3);
COMPILE_FOR_SIZES
__global__ void twice(int* x) { *x *= 2; }
int doubled(int x) {
  cudaStream_t stream = nullptr;
  if (x < 0) twice<<<1, 1, 0, stream>>>(&x);
  return scale * x;
}
"""

Build = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def source_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project with an extension of two small files; the real machine again."""
    monkeypatch.undo()
    tree = tmp_path / "source tree"
    tree.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE"):
        shutil.copyfile(ROOT / name, tree / name)
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "_build.json")
    for name in ("convmixer", "convmixer_kernels", "csrc/build_tools"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    (tree / "README.md").write_text("# Sample\n")
    (tree / "csrc" / "core").mkdir()
    (tree / "csrc" / "bindings.cpp").write_text(BINDINGS)
    (tree / "csrc" / "core" / "scale.h").write_text("constexpr int scale = 2;\n")
    (tree / "csrc" / "core" / "tiles.h").write_text("int filter_sizes[] = {2, 3};\n")
    (tree / "csrc" / "kernels").mkdir()
    (tree / "csrc" / "kernels" / "twice.cu").write_text(KERNEL)
    return tree


@pytest.fixture
def build(source_tree: Path) -> Build:
    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("CONVMIXER_KERNELS_")
        }
        for name, value in variables.items():
            environment[name if name == "CXX" else f"CONVMIXER_KERNELS_{name}"] = value
        command = [sys.executable, *(arguments or ("setup.py", "build_ext", "--inplace"))]
        return subprocess.run(
            command, cwd=source_tree, env=environment, capture_output=True, text=True, check=False
        )

    return run


def built_files(tree: Path) -> list[str]:
    package = tree / "convmixer_kernels"
    return sorted(path.name for path in [*package.glob("*.so"), *package.glob("_build.json")])


def test_a_skipped_build_is_recorded_and_leaves_no_old_extension(
    source_tree: Path, build: Build
) -> None:
    stale = source_tree / "convmixer_kernels" / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    stale.touch()
    assert build(BUILD_CUDA="0").returncode == 0
    assert built_files(source_tree) == ["_build.json"]
    record = json.loads((source_tree / "convmixer_kernels" / "_build.json").read_text())
    assert "CONVMIXER_KERNELS_BUILD_CUDA=0" in record["reason"]


def test_a_missing_toolchain_is_recorded_unless_the_build_is_demanded(
    source_tree: Path, build: Build
) -> None:
    result = build(CXX="no-such-compiler")
    assert result.returncode == 0
    assert "without CUDA, on Triton and PyTorch alone: there is no C++ compiler" in result.stderr
    record = json.loads((source_tree / "convmixer_kernels" / "_build.json").read_text())
    assert record["reason"].startswith("there is no C++ compiler")
    assert record["remedy"] == "install g++, or set CXX"

    demanded = build(CXX="no-such-compiler", BUILD_CUDA="1")
    assert demanded.returncode != 0
    assert "BUILD_CUDA=1, but there is no C++ compiler" in demanded.stderr
    assert built_files(source_tree) == []


def test_a_wrong_setting_is_one_clear_line(source_tree: Path, build: Build) -> None:
    result = build(BUILD_CUDA="maybe")
    assert result.returncode != 0
    assert "CONVMIXER_KERNELS_BUILD_CUDA: got 'maybe', expected 0 or 1" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture
def real_toolkit(source_tree: Path) -> None:
    try:
        toolchain.find_toolkit()
        toolchain.find_ninja()
        toolchain.find_pybind11()
    except toolchain.Missing as missing:
        pytest.skip(str(missing))


@pytest.mark.usefixtures("real_toolkit")
def test_compile_errors_are_fatal_and_changed_headers_are_built_anew(
    source_tree: Path, build: Build
) -> None:
    header = source_tree / "csrc" / "core" / "scale.h"
    text = header.read_text()
    header.write_text("constexpr int scale = nothing;\n")
    failed = build(ARCHITECTURES="90")
    assert failed.returncode != 0
    assert 'identifier "nothing" is undefined' in failed.stdout
    assert "the CUDA extension does not compile" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert built_files(source_tree) == []

    header.write_text(text)
    result = build(ARCHITECTURES="90")
    assert result.returncode == 0, result.stdout + result.stderr
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    assert built_files(source_tree) == ["_build.json", f"_cuda{suffix}"]
    record = json.loads((source_tree / "convmixer_kernels" / "_build.json").read_text())
    assert record["extension"] == f"_cuda{suffix}"
    assert record["architectures"] == ["90"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", record["nvcc"])

    extension = source_tree / "convmixer_kernels" / record["extension"]
    loader = importlib.machinery.ExtensionFileLoader("_cuda", str(extension))
    spec = importlib.util.spec_from_file_location("_cuda", extension, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert module.doubled(21) == 42

    # PyTorch loads another libcudart: neither may take the place of the other.
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", str(extension)], capture_output=True, text=True, check=True
    )
    assert [line.split()[-1] for line in listing.stdout.splitlines()] == ["PyInit__cuda"]

    contents = extension.read_bytes()
    header.write_text(text.replace("2", "3"))
    assert build(ARCHITECTURES="90").returncode == 0
    assert extension.read_bytes() != contents


def test_what_the_distributions_contain(source_tree: Path, build: Build) -> None:
    (source_tree / "convmixer_kernels" / "_cuda.stale.so").touch()
    result = build(
        *("setup.py", "build", "--build-lib", "built", "sdist", "--dist-dir", "dist"),
        BUILD_CUDA="0",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    recipes = {f"convmixer/recipes/{path.name}" for path in ROOT.glob("convmixer/recipes/*.yaml")}
    assert recipes

    folder = source_tree / "built"
    installed = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert {"convmixer", "convmixer_kernels"} == {name.split("/")[0] for name in installed}
    assert recipes <= installed
    expected = {"_build.json", "py.typed", "backends/__init__.py"}
    assert {f"convmixer_kernels/{name}" for name in expected} <= installed
    assert not [name for name in installed if name.endswith(".so")]

    (archive,) = (source_tree / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as file:
        contents = {member.name.partition("/")[2]: member for member in file.getmembers()}
        information = file.extractfile(contents["PKG-INFO"])
        assert information is not None
        metadata = information.read().decode()
    expected = {"csrc/build_tools/toolchain.py", "csrc/kernels/twice.cu", "csrc/core/scale.h"}
    assert expected | {"LICENSE", "setup.py", "csrc/bindings.cpp"} | recipes <= contents.keys()
    assert not [name for name in contents if name.endswith((".so", "_build.json"))]
    assert "\nName: convmixer-kernels\n" in metadata
    assert "\nLicense: MIT\n" in metadata


@pytest.mark.usefixtures("real_toolkit")
def test_a_source_distribution_builds_with_compilers(source_tree: Path, build: Build) -> None:
    """For the GPUs here, or as PTX."""
    result = build("setup.py", "sdist", "--dist-dir", "dist")
    assert result.returncode == 0, result.stdout + result.stderr
    (archive,) = (source_tree / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(source_tree / "unpacked", filter="data")
    (tree,) = (source_tree / "unpacked").iterdir()
    wheel = ("wheel", "--no-index", "--no-build-isolation", "--no-deps", "--wheel-dir", "dist")
    result = build("-m", "pip", *wheel, str(tree), BUILD_CUDA="1")
    assert result.returncode == 0, result.stdout + result.stderr
    (built,) = (source_tree / "dist").glob("*.whl")
    with zipfile.ZipFile(built) as file:
        record = json.loads(file.read("convmixer_kernels/_build.json"))
        assert f"convmixer_kernels/{record['extension']}" in file.namelist()
    present = [str(gpu) for gpu in sorted(toolchain.gpus())]
    assert record["architectures"] == (present or ["80-virtual"])


def test_make_wheel_compiles_for_every_architecture() -> None:
    plan = subprocess.run(
        ["make", "--dry-run", "wheel"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert 'CONVMIXER_KERNELS_BUILD_CUDA=1 CONVMIXER_KERNELS_ARCHITECTURES="all"' in plan
    assert "-m pip wheel --no-build-isolation --no-deps --wheel-dir dist ." in plan


def test_the_backend_asks_for_what_the_build_needs(source_tree: Path, build: Build) -> None:
    code = (
        "import sys; sys.path.insert(0, 'csrc/build_tools'); import build_backend as b; "
        "print(b.get_requires_for_build_wheel(), b.get_requires_for_build_editable())"
    )
    assert build("-c", code).stdout.count("'pybind11>=2.12'") == 2
    assert "pybind11" not in build("-c", code, BUILD_CUDA="0").stdout


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    """Put a record where the package looks for it."""
    monkeypatch.setattr(build_information, "_FOLDER", tmp_path)

    def write(record: object) -> None:
        (tmp_path / "_build.json").write_text(json.dumps(record))

    return write


EXTENSION = f"_cuda{importlib.machinery.EXTENSION_SUFFIXES[0]}"
BUILT = {"extension": EXTENSION, "nvcc": "13.0.88", "architectures": ["80", "120+PTX"]}


def test_a_package_that_was_never_built(package: Callable[[object], None]) -> None:
    assert build_information.record() is None
    reason = build_information.cuda_missing_reason()
    assert reason is not None and "was not built; build it with: pip install" in reason


def test_a_build_without_cuda(package: Callable[[object], None]) -> None:
    package({"reason": "there is no nvcc", "remedy": "install one"})
    assert build_information.cuda_missing_reason() == "there is no nvcc; install one"
    assert build_information.summary() == "not built: there is no nvcc; install one"


def test_an_extension_for_another_python(package: Callable[[object], None]) -> None:
    package({**BUILT, "extension": "_cuda.cpython-27-x86_64-linux-gnu.so"})
    reason = build_information.cuda_missing_reason()
    assert reason is not None and "for another Python (_cuda.cpython-27" in reason


def test_an_extension_that_is_there(package: Callable[[object], None], tmp_path: Path) -> None:
    package(BUILT)
    reason = build_information.cuda_missing_reason()
    assert reason is not None and "has been removed" in reason
    (tmp_path / EXTENSION).touch()
    assert build_information.cuda_missing_reason() is None
    assert build_information.summary() == "built by nvcc 13.0.88 for sm_80, sm_120+PTX"
    package({**BUILT, "architectures": ["90", "100-virtual"]})
    assert build_information.summary() == "built by nvcc 13.0.88 for sm_90, compute_100"


def test_machine_code_that_a_driver_has_yet_to_compile_is_explained(
    package: Callable[[object], None], tmp_path: Path
) -> None:
    (tmp_path / EXTENSION).touch()
    package({**BUILT, "architectures": ["80-virtual"]})
    assert build_information.summary() == (
        "built by nvcc 13.0.88 for compute_80 (PTX alone, which a driver compiles for its GPU at "
        "first use)"
    )


def test_the_report_names_every_implementation_and_why_not(
    package: Callable[[object], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    package({"reason": "there is no nvcc", "remedy": "install one"})
    answers = {"cuda": "there is no nvcc", "triton": None}
    monkeypatch.setattr(report.convmixer_kernels, "available_impls", lambda: answers)
    monkeypatch.setattr(report, "_gpus", lambda: [])
    report.main([])
    lines = capsys.readouterr().out.splitlines()
    assert "impl='cuda'        no: there is no nvcc" in lines
    assert "impl='triton'      yes, on cpu" in lines
    assert "CUDA extension     not built: there is no nvcc; install one" in lines
    assert any(re.match(r"PyTorch +\d", line) for line in lines)

    report.main(["--json"])
    content = json.loads(capsys.readouterr().out)
    assert content["implementations"] == answers
    assert content["cuda_extension"]["reason"] == "there is no nvcc"
    assert content["gpus"] == []


def test_the_report_describes_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = {
        "name": "Sample GPU",
        "compute_capability": "9.0",
        "memory_bytes": 80 * 2**30,
        "multiprocessors": 132,
    }
    monkeypatch.setattr(report, "_gpus", lambda: [gpu])
    monkeypatch.setattr(report.convmixer_kernels, "available_impls", lambda: {"cuda": None})
    text = report.render(report.collect())
    assert "Sample GPU, compute capability 9.0, 132 multiprocessors, 80 GiB" in text
    assert re.search(r"^impl='cuda' +yes, on cuda$", text, re.M)


def test_every_source_is_compiled() -> None:
    compiled = {*(unit.source for unit in cuda_build.cuda_units()), *cuda_build.host_sources()}
    interpreter = ROOT / "csrc" / "interpreter"
    sources = {*ROOT.glob("csrc/**/*.cu"), *ROOT.glob("csrc/**/*.cpp")}
    assert compiled == {path for path in sources if interpreter not in path.parents}


def test_the_extension_is_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cubins of `make budget` are read as they are."""
    rules: list[dict[str, str]] = []
    monkeypatch.setattr(cuda_build.ninja_file, "run", lambda _, given, *rest: rules.append(given))
    toolkit = toolchain.Toolkit(
        Path("nvcc"), "13.0", "g++", Path("libcudart_static.a"), Path("include")
    )
    cuda_build.build_extension(toolkit, ["90"], tmp_path / "_cuda.so")
    cuda_build.build_cubins(toolkit, ["90"], tmp_path)
    extension, cubins = rules
    assert "-Xfatbin -compress-all" in extension["kernels"]
    assert not any("-compress" in command for command in cubins.values())
