"""Builds the CUDA extension where this machine can, and records what was built or why it was not.

CONVMIXER_KERNELS_BUILD_CUDA      0 skips the extension, 1 demands it; unset: where nvcc is found
CONVMIXER_KERNELS_ARCHITECTURES   such as "90", "80;90;120+PTX", "80-virtual" (PTX alone) or "all";
                                  unset: the GPUs in this machine, or "80-virtual", which every
                                  supported GPU takes, if there is none
CONVMIXER_KERNELS_NO_SYSTEM_CUDA  1 ignores a system-wide nvcc in favour of the one from PyPI
CUDA_HOME, CUDA_PATH, CXX         where to look for nvcc first, and the host compiler (g++)
MAX_JOBS                          how many files to compile at a time
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).resolve().parent / "csrc" / "build_tools"))

import cuda_build
import toolchain

EXTENSION = "convmixer_kernels._cuda"


class BuildCuda(build_ext):
    """Leaves the extension, if there is one, and the record beside the Python files."""

    def run(self) -> None:
        for stale in self._written():
            stale.unlink()
        try:
            record = self._build()
        except toolchain.Missing as missing:
            if toolchain.build_wanted():
                sys.exit(f"CONVMIXER_KERNELS_BUILD_CUDA=1, but {missing}")
            record = {"reason": missing.reason, "remedy": missing.remedy}
            print(
                f"convmixer_kernels: without CUDA, on Triton and PyTorch alone: {missing}",
                file=sys.stderr,
            )
        except ValueError as error:
            sys.exit(f"convmixer_kernels: {error}")
        except subprocess.CalledProcessError:
            sys.exit("convmixer_kernels: the CUDA extension does not compile, see above")
        path = self._record_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n")

    def _build(self) -> dict[str, object]:
        if toolchain.build_wanted() is False:
            raise toolchain.Missing(
                "the CUDA extension was skipped (CONVMIXER_KERNELS_BUILD_CUDA=0)",
                "install again without that variable",
            )
        toolkit = toolchain.find_toolkit()
        architectures = toolchain.architectures(toolkit)
        extension = self._extension_path()
        extension.parent.mkdir(parents=True, exist_ok=True)
        cuda_build.build_extension(toolkit, architectures, extension)
        return {
            "extension": extension.name,
            "nvcc": toolkit.version,
            "architectures": architectures,
        }

    def _extension_path(self) -> Path:
        return Path(self.get_ext_fullpath(EXTENSION)).resolve()

    def _record_path(self) -> Path:
        return self._extension_path().with_name("_build.json")

    def _written(self) -> list[Path]:
        return [path for path in (self._extension_path(), self._record_path()) if path.exists()]

    def get_outputs(self) -> list[str]:
        return list(self.get_output_mapping()) or [str(path) for path in self._written()]

    def get_output_mapping(self) -> dict[str, str]:
        """Map the place of each file in a wheel to its place in an editable install."""
        if not self.inplace:
            return {}
        package = Path(self.build_lib, *EXTENSION.split(".")[:-1])
        return {str(package / path.name): str(path) for path in self._written()}


setup(
    license="MIT",
    ext_modules=[Extension(EXTENSION, sources=[])],
    cmdclass={"build_ext": BuildCuda},
)
