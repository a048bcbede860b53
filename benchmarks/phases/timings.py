"""Times: PyTorch's ways, our kernels, blocks, networks and training steps."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from benchmarks.lib import blocks as blocks_
from benchmarks.lib import convolutions, inference, measure
from benchmarks.lib import networks as networks_
from benchmarks.lib import peers as peers_
from benchmarks.lib import training as training_
from benchmarks.lib.networks import Network
from benchmarks.lib.peers import Peer
from benchmarks.lib.shapes import Case
from benchmarks.lib.ways import Way
from benchmarks.phases.context import Visit


def peers(visit: Visit) -> None:
    """The ceilings and PyTorch, which need nothing of ours."""
    _tune_cudnn()
    with visit.attempt("ceilings"):
        samples = measure.ceiling_samples(visit.device)
        visit.facts.add("ceilings", **vars(measure.ceilings(samples, visit.device)))
    pairs = [
        (case, peer)
        for case in visit.selection.cases
        for peer in (peers_.EAGER, *(peers_.switched() if case.is_reference else ()))
    ]
    _convolutions(visit, pairs)


def ours(visit: Visit) -> None:
    _convolutions(visit, ((case, visit.kernels) for case in visit.selection.cases))


def triton(visit: Visit) -> None:
    wanted = [case for case in visit.selection.cases if case.kernel_size >= 9 or visit.dry_run]
    _convolutions(visit, ((case, peers_.KERNELS[1]) for case in wanted))
    _inference(visit, [(_networks(visit)[0], Way("triton", "contiguous"))])


def blocks(visit: Visit) -> None:
    _tune_cudnn()
    for block in visit.selection.blocks:
        for peer in (peers_.EAGER, visit.kernels):
            with visit.attempt(f"block {block} {peer.name}"):
                visit.record(blocks_.measured(block, peer, visit.device, visit.budget))


def networks(visit: Visit) -> None:
    _tune_cudnn()
    _inference(visit, ((network, way) for network in _networks(visit) for way in _ways()))


def training(visit: Visit) -> None:
    _tune_cudnn()
    for network in _networks(visit)[:2]:
        for way in _ways():
            with visit.attempt(f"training {network.name} {way}"):
                visit.record(training_.measured(network, way, visit.device, visit.selection))
            _free()


def compiled(visit: Visit) -> None:
    """torch.compile: the convolution at k = 9, and the largest network."""
    visit.needs_gpu("torch.compile of half precision")
    _tune_cudnn()
    case = visit.selection.cases[0]
    _convolutions(visit, ((case, peer) for peer in peers_.COMPILED))
    network = _networks(visit)[0]
    ways = [Way("torch", "contiguous", True), Way("torch", "contiguous", True, True)]
    _inference(visit, ((network, way) for way in ways))


def _tune_cudnn() -> None:
    """Let cuDNN try out its algorithms for each shape."""
    torch.backends.cudnn.benchmark = True


def _convolutions(visit: Visit, pairs: Iterable[tuple[Case, Peer]]) -> None:
    for case, peer in pairs:
        with visit.attempt(f"depthwise {case} {peer.name}"):
            visit.record(convolutions.measured(case, peer, visit.device, visit.budget))


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


def _inference(visit: Visit, pairs: Iterable[tuple[Network, Way]]) -> None:
    for network, way in pairs:
        with visit.attempt(f"inference {network.name} {way}"):
            visit.record(inference.measured(network, way, visit.device, visit.selection))
        _free()


def _free() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
