"""Statistics of a batch that is spread over processes, against one process with all of it.

Two processes with gloo run every case once; the tests look at what they saved.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn

from convmixer import ConvMixer
from convmixer.model import layers
from tests.helpers import fused_cases, triton_interpreter
from tests.helpers.depthwise_cases import KERNELS
from tests.helpers.fused_cases import Arguments, dtypes_of, random_arguments

PROCESSES = 2
# Images of each process.
SPLITS = {"unequal": (3, 2), "an empty process": (5, 0), "one value each": (1, 1)}
PER_IMAGE = ("input", "residual", "grad")
# Equal in all processes rather than of one process's images.
SHARED = ("running_mean", "running_var")
NAMES = ["steps", *KERNELS]


def whole_case(name: str, k: int | None, split: str, training: bool = True) -> Arguments:
    dtype = torch.float64 if name == "steps" else dtypes_of(name)[0]
    size = (1, 1) if split == "one value each" else (7, 6)
    return random_arguments((sum(SPLITS[split]), 3, *size), k, dtype, training=training)


def share_of(rank: int, split: tuple[int, ...]) -> slice:
    start = sum(split[:rank])
    return slice(start, start + split[rank])


def part_of(arguments: Arguments, share: slice) -> Arguments:
    parts = {
        field: tensor[share]
        for field in PER_IMAGE
        if isinstance(tensor := getattr(arguments, field), Tensor)
    }
    return replace(arguments, **parts)


def synchronised_model() -> tuple[nn.Module, Tensor, Tensor]:
    """A model in float64, images, and gradients of its outputs."""
    torch.manual_seed(0)
    model = ConvMixer(6, 2, 5, patch_size=2, n_classes=4).double()
    model.blocks[1][3].eval()  # frozen: shares nothing
    images, gradient = torch.randn(5, 3, 10, 12), torch.randn(5, 4)
    return nn.SyncBatchNorm.convert_sync_batchnorm(model), images.double(), gradient.double()


def step(model: nn.Module, images: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    images = images.clone().requires_grad_()
    output = model(images)
    output.backward(gradient)
    assert images.grad is not None
    return {
        "output": output.detach(),
        "input": images.grad,
        **{name: p.grad for name, p in model.named_parameters() if p.grad is not None},
        **{name: buffer.clone() for name, buffer in model.named_buffers()},
    }


def work(rank: int, folder: str) -> None:
    triton_interpreter.patch_language_once_a_launch()
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=PROCESSES
    )
    results: dict[Any, dict[str, Tensor]] = {}
    for split_name, split in SPLITS.items():
        share = share_of(rank, split)
        for name in NAMES:
            impl = "torch" if name == "steps" else name
            for k in (5, None):
                part = part_of(whole_case(name, k, split_name), share)
                results[split_name, name, k] = fused_cases.run(part, impl, dist.group.WORLD)
    share = share_of(rank, SPLITS["unequal"])
    part = part_of(whole_case("steps", 5, "unequal", training=False), share)
    results["frozen"] = fused_cases.run(part, "torch", dist.group.WORLD)

    layers.runs_kernels = lambda *_: True  # type: ignore[assignment]
    for checkpointing in (False, True):
        model, images, gradient = synchronised_model()
        model.set_grad_checkpointing(checkpointing)  # type: ignore[operator]
        results["model", checkpointing] = step(model, images[share], gradient[share])
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, dict[str, Tensor]]]:
    """The results of every process."""
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(work, args=(str(folder),), nprocs=PROCESSES)
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


def merged(parts: list[dict[str, Tensor]], per_image: tuple[str, ...]) -> dict[str, Tensor]:
    """Images of all processes in a row; sums over the processes of gradients of parameters."""
    whole = {}
    for name in parts[0]:
        tensors = [part[name] for part in parts]
        if name in per_image:
            whole[name] = torch.cat(tensors)
        elif name in SHARED or name.endswith((*SHARED, "num_batches_tracked")):
            assert all(torch.equal(tensor, tensors[0]) for tensor in tensors), name
            whole[name] = tensors[0]
        else:
            whole[name] = torch.stack(tensors).sum(0)
    return whole


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("k", [5, None], ids=["depthwise", "alone"])
@pytest.mark.parametrize("name", NAMES)
def test_processes_share_statistics(
    name: str, k: int | None, split: str, processes: list[dict[Any, dict[str, Tensor]]]
) -> None:
    whole = whole_case(name, k, split)
    results = merged([part[split, name, k] for part in processes], ("output", "input", "residual"))
    fused_cases.check_results(whole, results)


def test_running_statistics_are_not_shared(
    processes: list[dict[Any, dict[str, Tensor]]],
) -> None:
    results = merged([part["frozen"] for part in processes], ("output", "input"))
    fused_cases.check_results(whole_case("steps", 5, "unequal", training=False), results)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_synchronised_model(
    checkpointing: bool,
    processes: list[dict[Any, dict[str, Tensor]]],
) -> None:
    parts = [part["model", checkpointing] for part in processes]
    results = merged(parts, ("output", "input"))
    model, images, gradient = synchronised_model()
    for name, wanted in step(model, images, gradient).items():
        torch.testing.assert_close(results[name], wanted, msg=lambda text, n=name: f"{n}: {text}")
