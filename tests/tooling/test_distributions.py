"""Distributions as others get them: in an environment without compilers and this checkout."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

import cuda_build

pytest.importorskip("pip", reason="it builds and installs the distributions")

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import runpy, sys, torch
import convmixer, convmixer_kernels
for package in (convmixer, convmixer_kernels):
    assert package.__file__.startswith(sys.prefix), package.__file__
model = convmixer.ConvMixer(4, 1, 3, 2, 5).eval()
on_triton = convmixer.ConvMixer(4, 1, 3, 2, 5, dw_impl="triton").eval()
on_triton.load_state_dict(model.state_dict())
image = torch.randn(2, 3, 8, 8)
with torch.no_grad():
    torch.testing.assert_close(on_triton(image), model(image), atol=1e-3, rtol=1e-3)
runpy.run_module("convmixer_kernels", run_name="__main__")
"""


class Bare:
    """An environment of Python with the packages of this one, but neither programs nor checkout."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False)
        (self.packages,) = folder.glob("lib/python*/site-packages")
        (self.packages / "others.pth").write_text(sysconfig.get_path("purelib"))
        self.folder, self.python = folder, folder / "bin" / "python"

    def run(self, *arguments: object, **variables: str) -> str:
        """Return the output of Python, started in an empty folder, with no compiler on PATH."""
        environment = {"PATH": str(self.python.parent), "HOME": str(self.folder), **variables}
        return run(self.python, *arguments, cwd=self.folder, **environment)

    def install(self, wheel: Path) -> None:
        self.run("-m", "pip", "install", "--no-index", "--no-deps", "--ignore-installed", wheel)


def run(*command: object, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment or None,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def contents(wheel: Path) -> tuple[set[str], dict[str, Any]]:
    """The names of the files in a wheel, and the record of its build."""
    with zipfile.ZipFile(wheel) as archive:
        record = json.loads(archive.read("convmixer_kernels/_build.json"))
        return {name for name in archive.namelist() if ".dist-info/" not in name}, record


@pytest.fixture
def bare(tmp_path: Path) -> Bare:
    return Bare(tmp_path / "bare")


def test_a_wheel_runs_where_there_is_no_compiler(
    bare: Bare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (architecture,) = cuda_build.EMULATED
    if not (ROOT / "build" / "cuda" / architecture / "build.ninja").exists():
        pytest.skip(f"the kernels have not been compiled for {architecture}, as make test does")
    monkeypatch.setenv("CONVMIXER_KERNELS_ARCHITECTURES", architecture)
    monkeypatch.setenv("CONVMIXER_KERNELS_BUILD_CUDA", "1")
    elsewhere = ("egg_info", "--egg-base", tmp_path, "build", "--build-base", tmp_path / "build")
    command = ("setup.py", "--quiet", *elsewhere, "bdist_wheel", "--dist-dir", tmp_path / "dist")
    run(sys.executable, *command, cwd=ROOT)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert f"-cp{sys.version_info.major}{sys.version_info.minor}-" in wheel.name

    names, record = contents(wheel)
    assert {name.split("/")[0] for name in names} == {"convmixer", "convmixer_kernels"}
    extension = f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    assert [name for name in names if name.endswith(".so")] == [f"convmixer_kernels/{extension}"]
    assert record["extension"] == extension
    assert record["architectures"] == [architecture]

    bare.install(wheel)
    report = bare.run(
        *("-c", "import convmixer_kernels._cuda" + PROGRAM),
        TRITON_INTERPRET="1",
        CONVMIXER_KERNELS_EMULATE="1",
    )
    assert "for compute_80 (PTX alone" in report
    assert "impl='triton'      yes" in report
    # The emulated GPU is made of sources that a wheel does not hold.
    assert "work in a checkout" in report


def test_a_source_distribution_runs_where_there_is_no_compiler(bare: Bare, tmp_path: Path) -> None:
    command = ("setup.py", "--quiet", "egg_info", "--egg-base", tmp_path, "sdist", "--dist-dir")
    run(sys.executable, *command, tmp_path, cwd=ROOT)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "unpacked", filter="data")
    (tree,) = (tmp_path / "unpacked").iterdir()
    sources = {path.relative_to(ROOT) for path in ROOT.glob("csrc/**/*.*") if path.is_file()}
    missing = {path for path in sources if not (tree / path).exists()}
    assert {path for path in missing if path.suffix != ".pyc"} == set()

    built = bare.run(
        *("-m", "pip", "wheel", "--verbose", "--no-index", "--no-build-isolation", "--no-deps"),
        *("--wheel-dir", tmp_path, tree),
    )
    (reason,) = [line for line in built.splitlines() if "without CUDA" in line]
    assert reason.strip() == (
        "convmixer_kernels: without CUDA, on Triton and PyTorch alone: there is no C++ compiler "
        "'g++' on PATH; install g++, or set CXX"
    )
    (wheel,) = tmp_path.glob("*.whl")
    names, record = contents(wheel)
    assert not [name for name in names if name.endswith(".so")]
    assert record["reason"] == "there is no C++ compiler 'g++' on PATH"

    bare.install(wheel)
    report = bare.run("-c", PROGRAM, TRITON_INTERPRET="1")
    assert f"not built: {record['reason']}; install g++, or set CXX" in report
    assert "impl='triton'      yes" in report
