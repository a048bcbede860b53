"""Runs of cases under several settings of the emulated GPU, and their findings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType

import torch

from convmixer_kernels import architectures, emulated_gpu
from convmixer_kernels.backends import cuda
from convmixer_kernels.backends.cuda import device as cuda_device

from .steps import Case, Results, largest_error, prepare

# A GPU leaves these open. The first two give the same bits: when copies land and who runs first
# must not show, while sums and approximations differ from one GPU to the next.
SETTINGS: tuple[dict[str, object], ...] = (
    {},
    {"copies": "early", "warp_order": "reverse", "lane_order": "reverse"},
    {
        **{"copies": "random", "warp_order": "random", "lane_order": "random", "seed": 2},
        **{"matrix_sum": "rounded", "approximation_error": 2, "random_approximation": True},
    },
)
# Bounds are those of sums in any order; this much more is for what they leave out.
LIMIT = 1.05


@dataclass
class Verdict:
    """The problems and errors that the runs of a case have shown."""

    problems: list[str] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)


@contextlib.contextmanager
def gpu_of(case: Case) -> Iterator[ModuleType]:
    """The backend of a case, on an emulated GPU as the case wants it."""
    if case.backend == "triton":
        from . import triton_driver

        with triton_driver.running(case.capability, case.multiprocessors) as backend:
            yield backend
        return
    shared_bytes = architectures.find(case.capability).shared_bytes
    before = cuda_device.EMULATED_CHIP
    major, minor = case.capability
    cuda_device.EMULATED_CHIP = architectures.Chip(
        case.multiprocessors, shared_bytes, 10 * major + minor
    )
    try:
        yield cuda
    finally:
        cuda_device.EMULATED_CHIP = before


def run(case: Case, settings: tuple[dict[str, object], ...] = SETTINGS) -> Verdict:
    """Run a case under each of the settings; stop at the first that shows a problem."""
    torch.use_deterministic_algorithms(True)  # memory that is not initialised is NaN
    step, bounds = prepare(case)
    verdict = Verdict()
    first = None
    shared_bytes = architectures.find(case.capability).shared_bytes
    with gpu_of(case) as backend:
        for number, chosen in enumerate(settings):
            emulated_gpu.settings = {"shared_bytes_per_block": shared_bytes, **chosen}
            try:
                results = step(backend)
            except RuntimeError as error:
                verdict.problems.append(str(error))
                break
            finally:
                emulated_gpu.settings = {}
            for name, bound in bounds(results).items():
                result = results[name]
                assert result is not None, name
                largest = largest_error(result, bound)
                verdict.errors[name] = max(verdict.errors.get(name, 0.0), largest)
                if not largest <= LIMIT:
                    verdict.problems.append(f"{name}: {largest:.2f} times the allowed error")
            if number == 1 and first is not None:
                verdict.problems += _differences(first, results)
            first = first or results
            if verdict.problems:
                break
    return verdict


def _differences(first: Results, second: Results) -> list[str]:
    return [
        f"{name}: other bits when copies land early"
        for name, result in first.items()
        if result is not None and not torch.equal(result, second[name])  # type: ignore[arg-type]
    ]
