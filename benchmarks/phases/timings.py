"""Times: PyTorch's ways, our kernels, blocks, networks and training steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product

import torch

from benchmarks.lib import blocks as blocks_
from benchmarks.lib import convolutions, inference, machine, measure
from benchmarks.lib import networks as networks_
from benchmarks.lib import peers as peers_
from benchmarks.lib import training as training_
from benchmarks.lib.measurement import Measurement
from benchmarks.lib.networks import Network
from benchmarks.lib.peers import Peer
from benchmarks.lib.shapes import Case
from benchmarks.lib.ways import Way
from benchmarks.phases import processes
from benchmarks.phases.context import Visit

# A name, in which --match is looked for, and what measures.
Task = tuple[str, Callable[[], Measurement]]
_COMPILE_SECONDS = 60


def peers(visit: Visit) -> None:
    """The ceilings and PyTorch, which need nothing of ours."""
    _tune_cudnn()
    with visit.attempt("ceilings"):
        _ceilings(visit)
    _record(
        visit,
        (
            _convolution(visit, case, peer)
            for case in visit.selection.cases
            for peer in (peers_.EAGER, *(peers_.switched() if case.is_reference else ()))
        ),
    )


def ours(visit: Visit) -> None:
    _record(visit, (_convolution(visit, case, visit.kernels) for case in visit.selection.cases))


def triton(visit: Visit) -> None:
    """The reference shape first, and of it the layout for which the kernels are made."""
    cases = [
        case
        for case in visit.selection.cases
        if case.is_reference or case.kernel_size >= 9 or visit.dry_run
    ]
    cases.sort(key=lambda case: (not case.is_reference, case.layout != "contiguous"))
    peer, network, way = peers_.KERNELS[1], _networks(visit)[0], Way("triton", "contiguous")
    last = _inference(visit, network, way)
    tasks = [*(_convolution(visit, case, peer) for case in cases), last]
    if not visit.dry_run:
        runs = [partial(convolutions.run_once, case, peer, visit.device) for case in cases]
        runs.append(partial(inference.run_once, network, way, visit.device, visit.selection))
        wanted = [run for (what, _), run in zip(tasks, runs, strict=True) if visit.wants(what)]
        _compile_triton(visit, wanted)
    _record(visit, tasks)


def blocks(visit: Visit) -> None:
    """Ours first: until PyTorch has tried out its algorithms, all of ours are timed."""
    _tune_cudnn()
    pairs = product((visit.kernels, peers_.EAGER), visit.selection.blocks)
    _record(visit, (_block(visit, block, peer) for peer, block in pairs))


def networks(visit: Visit) -> None:
    _tune_cudnn()
    pairs = product(_networks(visit), (*_ways(), *_graphed(visit)))
    _record(visit, (_inference(visit, network, way) for network, way in pairs))


def training(visit: Visit) -> None:
    _tune_cudnn()
    pairs = product(_networks(visit)[:2], (*_ways(), *_graphed(visit)))
    _record(visit, (_training(visit, network, way) for network, way in pairs))


def compiled(visit: Visit) -> None:
    """torch.compile: the largest network, with our kernels too, and the convolution at k = 9."""
    visit.needs_gpu("torch.compile of half precision")
    _tune_cudnn()
    ways = (
        Way("torch", "contiguous", compiled=True),
        Way("cuda", "contiguous", compiled=True),
        Way("torch", "contiguous", compiled=True, keep_layout=True),
    )
    network = _networks(visit)[0]
    _record(visit, (_inference(visit, network, way) for way in ways))
    case = next(
        case for case in visit.selection.cases if case.is_reference and case.kernel_size == 9
    )
    _record(visit, (_convolution(visit, case, peer) for peer in peers_.COMPILED))


def _tune_cudnn() -> None:
    """Let cuDNN try out its algorithms for each shape."""
    torch.backends.cudnn.benchmark = True


def _ceilings(visit: Visit) -> None:
    samples = measure.ceiling_samples(visit.device)
    for copy in samples.copies:
        rate = copy.bytes_per_second
        visit.facts.add("copy", way=copy.way, bytes=copy.bytes, bytes_per_second=rate)
    visit.facts.add("ceilings", **vars(measure.ceilings(samples, visit.device)))
    if visit.device.type == "cuda":
        visit.facts.add("clocks", warm=machine.clocks())


def _compile_triton(visit: Visit, runs: Sequence[Callable[[], object]]) -> None:
    """Compile on all cores what the calls of one process would compile one after another."""
    outcomes = processes.in_parallel(runs, processes.at_a_time(), _COMPILE_SECONDS, visit.log)
    visit.facts.add("compiled", kernels="triton", **Counter(outcomes))


def _record(visit: Visit, tasks: Iterable[Task]) -> None:
    for what, measured in tasks:
        if not visit.wants(what):
            continue
        with visit.attempt(what):
            visit.record(measured())
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _convolution(visit: Visit, case: Case, peer: Peer) -> Task:
    return (
        f"depthwise {case} {peer.name}",
        partial(convolutions.measured, case, peer, visit.device, visit.budget),
    )


def _block(visit: Visit, block: Case, peer: Peer) -> Task:
    return (
        f"block {block} {peer.name}",
        partial(blocks_.measured, block, peer, visit.device, visit.budget),
    )


def _inference(visit: Visit, network: Network, way: Way) -> Task:
    return _of_network(visit, "inference", inference.measured, network, way)


def _training(visit: Visit, network: Network, way: Way) -> Task:
    return _of_network(visit, "training", training_.measured, network, way)


def _of_network(
    visit: Visit, kind: str, measured: Callable[..., Measurement], network: Network, way: Way
) -> Task:
    run = partial(measured, network, way, visit.device, visit.selection)
    return f"{kind} {network.name} {way}", run


def _networks(visit: Visit) -> list[Network]:
    return networks_.dry_run_networks() if visit.dry_run else networks_.visit_networks()


def _ways() -> list[Way]:
    """Ours and both of PyTorch's layouts first, which make the ratio."""
    return [
        Way("cuda", "contiguous"),
        Way("torch", "contiguous"),
        Way("torch", "channels_last"),
        Way("cuda", "channels_last"),
    ]


def _graphed(visit: Visit) -> list[Way]:
    return [] if visit.dry_run else [Way("cuda", "contiguous", graphed=True)]
