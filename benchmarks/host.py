"""Measure the cost of a call on the host: ``python benchmarks/host.py [--profile CALL]``.

The CUDA kernels are launched on an emulated GPU that runs none of them, so that checks, dispatch,
outputs, the extension and the choice of tiles are all that is timed; a GPU adds the driver's part
of a launch. Times are those of the thread on the CPU, as ratios to `F.conv2d` of 1x1x1x1 tensors
that is timed in turn with them: what PyTorch itself needs for a convolution without work.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

os.environ.setdefault("CONVMIXER_KERNELS_EMULATE", "1")

import torch
import torch.nn.functional as F
from torch import Tensor

from convmixer import ConvMixer
from convmixer_kernels import (
    depthwise_conv2d,
    depthwise_conv2d_gelu_batch_norm,
    emulated_gpu,
    gelu_batch_norm,
)

CALLS = (
    "forward",
    "forward and backward",
    "fused inference",
    "gelu_batch_norm inference",
    "fused training step",
    "block of a model in inference",
)
_BLOCKS = 20


class Call(NamedTuple):
    """A call that is timed.

    Args:
        run: makes the call.
        trains: whether it is compared with a convolution that is differentiated as well.
        times: how many of what is timed are in one call.
    """

    run: Callable[[], object]
    trains: bool = False
    times: int = 1


def calls() -> dict[str, Call]:
    """Make every one of `CALLS`, on tensors of 1x8x8x8 and filters of 9x9."""
    torch.manual_seed(0)
    image, filters = torch.randn(1, 8, 8, 8).half(), torch.randn(8, 1, 9, 9).half()
    bias, gamma, beta, mean, var = (torch.rand(8) for _ in range(5))
    leaves = [each.clone().requires_grad_() for each in (image, filters, bias, gamma, beta)]

    def forward() -> Tensor:
        return depthwise_conv2d(image, filters, bias, impl="cuda")

    def backward() -> object:
        x, w, b, *_ = leaves
        output = depthwise_conv2d(x, w, b, impl="cuda")
        return torch.autograd.grad(output, leaves[:3], output.detach())

    def fused_inference() -> Tensor:
        return depthwise_conv2d_gelu_batch_norm(
            *(image, filters, bias, gamma, beta, mean, var),
            residual=True,
            training=False,
            impl="cuda",
        )

    def norm_inference() -> Tensor:
        parameters = (gamma, beta, mean, var)
        return gelu_batch_norm(image, *parameters, bias=bias, training=False, impl="cuda")

    def fused_training() -> object:
        x, w, b, g, s = leaves
        output = depthwise_conv2d_gelu_batch_norm(
            *(x, w, b, g, s, mean, var), residual=True, training=True, impl="cuda"
        )
        return torch.autograd.grad(output, leaves, output.detach())

    model = ConvMixer(8, _BLOCKS, kernel_size=9, patch_size=4, n_classes=10, dw_impl="cuda")
    model = model.half().eval()
    with torch.no_grad():
        features = model.stem(torch.randn(1, 3, 32, 32).half())
    made = (
        Call(_without_gradients(forward)),
        Call(backward, trains=True),
        Call(_without_gradients(fused_inference)),
        Call(_without_gradients(norm_inference)),
        Call(fused_training, trains=True),
        Call(_without_gradients(lambda: model.blocks(features)), times=_BLOCKS),
    )
    return dict(zip(CALLS, made, strict=True))


def _without_gradients(function: Callable[[], object]) -> Callable[[], object]:
    return torch.no_grad()(function)


def _baselines() -> dict[bool, Callable[[], object]]:
    """`F.conv2d` without work: without gradients, and with a backward pass."""
    image, filters = torch.randn(1, 1, 1, 1), torch.randn(1, 1, 1, 1)
    leaves = (image.clone().requires_grad_(), filters.clone().requires_grad_())

    def trained() -> object:
        output = F.conv2d(*leaves)
        return torch.autograd.grad(output, leaves, output.detach())

    return {False: _without_gradients(lambda: F.conv2d(image, filters)), True: trained}


def _seconds(function: Callable[[], object], number: int) -> float:
    """Time of the thread that a call takes, of `number` in a row."""
    start = time.thread_time()
    for _ in range(number):
        function()
    return (time.thread_time() - start) / number


class Measured(NamedTuple):
    """Seconds of a call, and how many times those of `F.conv2d`, once a round."""

    seconds: tuple[float, ...]
    ratios: tuple[float, ...]


def measure(name: str, rounds: int, number: int = 50) -> Measured:
    """Time a call of `calls` and `F.conv2d` in turn, `number` of each in a round."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with emulated_gpu.kernels_skipped():
            return _measure(calls()[name], rounds, number)
    finally:
        torch.set_num_threads(threads)


def _measure(call: Call, rounds: int, number: int) -> Measured:
    baseline = _baselines()[call.trains]
    for function in (call.run, baseline):
        _seconds(function, 3)
    found = []
    for _ in range(rounds):
        seconds = _seconds(call.run, max(1, number // call.times)) / call.times
        found.append((seconds, seconds / _seconds(baseline, number)))
    return Measured(*zip(*found, strict=True))


def changing_batches(rounds: int, number: int = 1000) -> float:
    """Return the time of random batches relative to that of equal ones, the median of rounds."""
    filters = torch.randn(8, 1, 9, 9).half()
    choose = random.Random(0)
    # Small ones: the memory of large tensors of the CPU comes from the operating system.
    largest = torch.empty(1000, 8, 2, 2, dtype=torch.float16)
    changing = [largest[: choose.randint(1, 1000)] for _ in range(number)]
    equal = [largest[:500] for _ in range(number)]

    def seconds(batches: list[Tensor]) -> float:
        start = time.thread_time()
        for batch in batches:
            depthwise_conv2d(batch, filters, impl="cuda")
        return time.thread_time() - start

    with emulated_gpu.kernels_skipped(), torch.no_grad():
        seconds(equal)
        return statistics.median(seconds(changing) / seconds(equal) for _ in range(rounds))


def profile(name: str, number: int = 2000) -> pstats.Stats:
    """Profile a call of `calls`."""
    call = calls()[name].run
    profiler = cProfile.Profile()
    with emulated_gpu.kernels_skipped():
        call()
        profiler.enable()
        for _ in range(number):
            call()
        profiler.disable()
    return pstats.Stats(profiler).sort_stats("tottime")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--profile", metavar="CALL", choices=CALLS, help="where its time goes")
    options = parser.parse_args(arguments)
    if options.profile:
        profile(options.profile).print_stats(25)
        return
    for name in CALLS:
        seconds, ratios = map(statistics.median, measure(name, options.rounds))
        sys.stdout.write(f"{name:30} {1e6 * seconds:7.1f} us {ratios:6.2f} times F.conv2d\n")
    ratio = changing_batches(options.rounds)
    sys.stdout.write(f"{'random batch sizes':30} {ratio:17.2f} times equal ones\n")


if __name__ == "__main__":
    main()
