"""The kernels of whole networks on our kernels: how their time divides, by PyTorch's profiler."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import product

import torch

from benchmarks.lib import inference, measure
from benchmarks.lib import networks as networks_
from benchmarks.lib import training as training_
from benchmarks.lib.measure import KernelTime
from benchmarks.lib.networks import Network
from benchmarks.lib.shapes import LAYOUTS
from benchmarks.lib.ways import MEMORY_FORMATS, Way
from benchmarks.phases.context import Visit

# The first calls compile, tune and allocate; the first training steps find the gradients' scale.
_CALLS_BEFORE = 3
_MOST_KERNELS = 15
_LONGEST_NAME = 100
# Kinds of kernels by what their names contain; the first that fits counts.
_KINDS = (
    ("depthwise", ("depthwise_",)),
    ("our other kernels", ("depthwise::",)),
    ("copies", ("memcpy", "memset", "copy")),
    ("matrix products", ("gemm", "nvjet", "cutlass", "xmma", "cublas", "splitk")),
    ("optimizer", ("multi_tensor",)),
)
_OTHERS = "other operations"


def profile(visit: Visit) -> None:
    torch.backends.cudnn.benchmark = True
    listed = networks_.dry_run_networks() if visit.dry_run else networks_.visit_networks()[:2]
    ways = [Way(visit.implementation, layout) for layout in LAYOUTS]
    for network, way, training in product(listed, ways, (False, True)):
        what = f"profile of {'training' if training else 'inference'} {network.name} {way}"
        if not visit.wants(what):
            continue
        with visit.attempt(what):
            call = (_step if training else _batch)(network, way, visit)
            for _ in range(_CALLS_BEFORE):
                call()
            times = measure.kernel_times(call, visit.device)
            _add(visit, times, {"network": network.name, "way": str(way), "training": training})
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _batch(network: Network, way: Way, visit: Visit) -> Callable[[], object]:
    model, images = inference.built(network, visit.device, visit.selection.batch)
    run = way.prepare(model)
    images = images.to(memory_format=MEMORY_FORMATS[way.layout])

    def call() -> None:
        with torch.inference_mode():
            run(images)

    return call


def _step(network: Network, way: Way, visit: Visit) -> Callable[[], object]:
    return training_.training_step(
        way, *training_.built(network, visit.device, visit.selection.batch)
    )


def _add(visit: Visit, times: Sequence[KernelTime], subject: dict[str, object]) -> None:
    kinds: dict[str, float] = defaultdict(float)
    for each in times:
        kinds[kind(each.name)] += each.microseconds
    visit.facts.add(
        "profile of a call",
        **subject,
        calls=sum(each.calls for each in times),
        microseconds=round(sum(kinds.values()), 1),
        kinds={name: round(microseconds, 1) for name, microseconds in kinds.items()},
    )
    for each in times[:_MOST_KERNELS]:
        visit.facts.add(
            "profile",
            **subject,
            kernel=short_name(each.name),
            calls=each.calls,
            microseconds=round(each.microseconds, 1),
        )


def kind(name: str) -> str:
    """The kind of a kernel by its full name."""
    lowered = name.lower()
    return next((kind for kind, parts in _KINDS if any(part in lowered for part in parts)), _OTHERS)


def short_name(name: str) -> str:
    """A kernel's name without result, namespaces and the end of what is long."""
    name = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    return re.sub(r"\b\w+::", "", name)[:_LONGEST_NAME]
