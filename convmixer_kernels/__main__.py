"""``python -m convmixer_kernels``: report what can run here, and why the rest cannot."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import shutil
import subprocess
from typing import Any

import torch

import convmixer_kernels
from convmixer_kernels import build_information


def _triton_version() -> str | None:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver_version() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.stdout.split("\n")[0] if answer.returncode == 0 else None


def _gpus() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpus.append(
            {
                "name": properties.name,
                "compute_capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": properties.total_memory,
                "multiprocessors": properties.multi_processor_count,
            }
        )
    return gpus


def collect() -> dict[str, Any]:
    """Collect what the report says, as JSON can hold it; None stands for what is not there."""
    gpus = _gpus()
    return {
        "versions": {
            "convmixer_kernels": convmixer_kernels.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda_of_torch": torch.version.cuda,
            "triton": _triton_version(),
            "nvidia_driver": _driver_version(),
        },
        "gpus": gpus,
        "device": "cuda" if gpus else "cpu",
        "implementations": convmixer_kernels.available_impls(),
        "cuda_extension": build_information.record(),
    }


def render(report: dict[str, Any]) -> str:
    """Render the report as aligned text."""
    labels = {
        "convmixer_kernels": "convmixer_kernels",
        "python": "Python",
        "torch": "PyTorch",
        "cuda_of_torch": "CUDA of PyTorch",
        "triton": "Triton",
        "nvidia_driver": "NVIDIA driver",
    }
    rows = [(labels[name], value or "none") for name, value in report["versions"].items()]
    for index, gpu in enumerate(report["gpus"]):
        description = (
            f"{gpu['name']}, compute capability {gpu['compute_capability']}, "
            f"{gpu['multiprocessors']} multiprocessors, {gpu['memory_bytes'] / 2**30:.0f} GiB"
        )
        rows.append((f"GPU {index}", description))
    if not report["gpus"]:
        rows.append(("GPU", "none"))
    rows.append(("CUDA extension", build_information.summary()))
    for name, reason in report["implementations"].items():
        rows.append(
            (f"impl={name!r}", f"no: {reason}" if reason else f"yes, on {report['device']}")
        )
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m convmixer_kernels", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    report = collect()
    if parser.parse_args(arguments).json:
        print(json.dumps(report, indent=2))
    else:
        print(render(report))


if __name__ == "__main__":
    main()
