"""Clocks, ceilings and checks, the same for a GPU and, where there is none, for the CPU."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from benchmarks.lib.arithmetic import Ceilings

Call = Callable[[], object]

# A kernel is timed for about this long; a replay below the least length measures its own launch. A
# budget of 0 only shows that everything runs.
BUDGET_SECONDS = 0.06
_LEAST_REPLAY_SECONDS = 1e-3
_ROUNDS = (5, 100)
# Buffers rotate so that together they are this many times the last-level cache.
_CACHES = 1.5
_CPU_CACHE_BYTES = 32 << 20
_MOST_SETS_ON_CPU = 64


class RecordedClock:
    """A clock that shows the time that samples say has passed.

    pytest-benchmark times a Python call with the clock it is given. Times of a GPU come from events
    on the device instead, so the samples are taken first and played to it.
    """

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        return self._now

    def play(self, benchmark: Any, samples: Sequence[float]) -> None:
        remaining = iter(samples)

        def advance() -> None:
            self._now += next(remaining)

        benchmark.pedantic(advance, rounds=len(samples))


clock = RecordedClock()


def buffer_sets(bytes_per_call: int, device: torch.device, budget: float = BUDGET_SECONDS) -> int:
    """Return the number of copies of the inputs to rotate, so that no call finds its own cached."""
    if budget == 0:
        return 2
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        return max(2, math.ceil(_CACHES * cache / bytes_per_call))
    return min(_MOST_SETS_ON_CPU, max(2, math.ceil(_CACHES * _CPU_CACHE_BYTES / bytes_per_call)))


def kernel_samples(
    calls: Sequence[Call], device: torch.device, budget: float = BUDGET_SECONDS
) -> list[float]:
    """Seconds a call takes, without what it costs to launch it, in about `budget` seconds.

    On a GPU the calls, each on buffers of its own, become one CUDA graph, and samples are the times
    of its replays by events, divided by the number of calls. The outputs of a graph stay allocated
    together, so they rotate as well.
    """
    for call in calls[:2]:
        call()
    if device.type != "cuda":
        return _host_samples(calls, budget)
    torch.cuda.synchronize(device)
    graph = _capture(calls)
    once = _replay(graph, 1)[0]
    if once < _LEAST_REPLAY_SECONDS:
        repeats = math.ceil(_LEAST_REPLAY_SECONDS / once)
        calls = list(calls) * repeats
        graph = _capture(calls)
        once *= repeats
    return [seconds / len(calls) for seconds in _replay(graph, _rounds(once, budget))]


def _capture(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = [call() for call in calls]
    del outputs
    return graph


def _replay(graph: torch.cuda.CUDAGraph, rounds: int) -> list[float]:
    graph.replay()  # The GPU is busy with this replay while the measured ones are queued.
    return _event_samples([graph.replay] * rounds)


def _rounds(seconds: float, budget: float) -> int:
    least, most = _ROUNDS if budget else (2, 2)
    return min(most, max(least, math.ceil(budget / seconds)))


def _event_samples(calls: Sequence[Call]) -> list[float]:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(len(calls) + 1)]
    events[0].record()
    for call, event in zip(calls, events[1:], strict=True):
        call()
        event.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(stop) / 1e3 for start, stop in pairwise(events)]


def _host_samples(calls: Sequence[Call], budget: float) -> list[float]:
    once = _host_time(calls)
    return [_host_time(calls) / len(calls) for _ in range(_rounds(once, budget))]


def _host_time(calls: Sequence[Call]) -> float:
    start = time.perf_counter()
    for call in calls:
        call()
    return time.perf_counter() - start


def batch_samples(
    step: Call, batches: int, device: torch.device, warm_up: int = 3
) -> tuple[list[float], float | None]:
    """Seconds of each of `batches` steps, launched one by one as a program does.

    Returns:
        The samples, and the share of their time that the host took to queue the steps: near 1, the
        host is what was measured. None on a CPU, where it always is.
    """
    for _ in range(warm_up):
        step()
    if device.type != "cuda":
        return [_host_time([step]) for _ in range(batches)], None
    torch.cuda.synchronize(device)
    queued: list[float] = []

    def timed() -> None:
        step()
        queued.append(time.perf_counter())

    start = time.perf_counter()
    samples = _event_samples([timed] * batches)
    return samples, (queued[-1] - start) / sum(samples)


def peak_memory(call: Call, device: torch.device) -> int | None:
    """Most bytes that a call holds at once beside its inputs; None on a CPU, which does not count.

    What it returns is among them, and so is the workspace of libraries.
    """
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    return torch.cuda.max_memory_allocated(device) - before


def ceiling_samples(device: torch.device) -> dict[str, list[float]]:
    """Seconds of the two ceilings, see `ceilings`."""
    copied, size, dtype = _ceiling_sizes(device)
    source = torch.randn(copied // 4, device=device)
    target = torch.empty_like(source)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    return {
        "copy": kernel_samples([lambda: target.copy_(source)], device),
        "matmul": kernel_samples([lambda: torch.mm(left, right, out=product)], device),
    }


def ceilings(samples: dict[str, list[float]], device: torch.device) -> Ceilings:
    """Bandwidth of a large copy and rate of a large dense matrix product, the best of each."""
    copied, size, dtype = _ceiling_sizes(device)
    return Ceilings(
        bytes_per_second=2 * copied / min(samples["copy"]),
        operations_per_second=2 * size**3 / min(samples["matmul"]),
        dtype=str(dtype).removeprefix("torch."),
    )


def _ceiling_sizes(device: torch.device) -> tuple[int, int, torch.dtype]:
    """Bytes of the copy, rows of the matrices and their dtype."""
    if device.type == "cuda":
        return 1 << 30, 8192, torch.float16
    return 64 << 20, 512, torch.float32


def poison(like: Tensor, dtype: torch.dtype) -> None:
    """Leave NaN in freed memory, which the next output of that shape is likely to get."""
    torch.full_like(like, math.nan, dtype=dtype)


def error_of(
    actual: Tensor, exact: Tensor, terms: int, dtype: torch.dtype, units: float = 2
) -> str | None:
    """Say why `actual` is not a rounding of the float64 result `exact`; None if it is.

    Allowed are `units` units of `dtype`, in which inputs and outputs are, and the square root of
    the number of terms in units of float32, in which they are summed, both at the largest value.
    """
    if actual.shape != exact.shape:
        return f"shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    relative = units * torch.finfo(dtype).eps + math.sqrt(terms) * torch.finfo(torch.float32).eps
    allowed = relative * exact.abs().max().item()
    error = (actual - exact).abs().max().item()
    if error <= allowed:  # NaN is not below
        return None
    return f"off by {error:.2e}, allowed {allowed:.2e}"


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over norm of `expected`, both as float64.

    Some networks of timm begin with a head of zeros: equal tensors have no error, even of norm 0.
    """
    actual, expected = actual.double(), expected.double()
    difference = (actual - expected).norm().item()
    return 0.0 if difference == 0 else difference / max(expected.norm().item(), 1e-30)


def kernels_that_ran(call: Call, device: torch.device, most: int = 3) -> list[str]:
    """Names of the kernels of one call that took longest; operators of PyTorch on a CPU."""
    on_gpu = device.type == "cuda"
    activity = torch.profiler.ProfilerActivity
    activities = [activity.CUDA if on_gpu else activity.CPU]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        call()
        if on_gpu:
            torch.cuda.synchronize(device)
    attribute = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    timed = [(getattr(event, attribute), event.key) for event in profile.key_averages()]
    ran = sorted((entry for entry in timed if entry[0] > 0), reverse=True)
    return [name for _, name in ran[:most]]
