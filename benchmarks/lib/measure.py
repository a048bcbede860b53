"""Clocks, ceilings and checks, the same for a GPU and, where there is none, for the CPU."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from benchmarks.lib.arithmetic import Ceilings
from benchmarks.lib.shapes import REFERENCE

Call = Callable[[], object]
Result = TypeVar("Result")

# A kernel is timed for about this long; a turn below the least length measures its own launch. A
# budget of 0 only shows that everything runs.
BUDGET_SECONDS = 0.06
_LEAST_TURN_SECONDS = 1e-3
_ROUNDS = (5, 100)
# A call that takes so long is repeated alone and seldom: neither its launch nor what is left in the
# cache counts in it.
_SLOW_SECONDS = 5e-3
_SLOW_ROUNDS = 3
# A GPU that was idle reaches its clocks within this time of work.
_WARM_UP_SECONDS = 0.5
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


def warm_up(device: torch.device) -> None:
    """Keep a GPU busy with matrix products until its clocks are up."""
    if device.type != "cuda":
        return
    left, right, product = torch.randn(3, 4096, 4096, device=device).half().unbind()
    end = time.monotonic() + _WARM_UP_SECONDS
    while time.monotonic() < end:
        for _ in range(20):
            torch.mm(left, right, out=product)
        torch.cuda.synchronize(device)


def kernel_samples(
    calls: Sequence[Call],
    device: torch.device,
    budget: float = BUDGET_SECONDS,
    *,
    in_graph: bool = True,
) -> list[float]:
    """Seconds a call takes, without what it costs to launch it, in about `budget` seconds.

    On a GPU the calls, each on buffers of its own, become one CUDA graph, and samples are the times
    of its replays by events, divided by the number of calls. The outputs of a graph stay allocated
    together, so they rotate as well. Without `in_graph` the calls are launched one by one, which
    measures their launch where that takes longer.
    """
    calls[0]()
    if device.type != "cuda":
        return _host_samples(calls, budget)
    torch.cuda.synchronize(device)
    (alone,) = _event_samples([calls[-1]])
    if alone >= _SLOW_SECONDS:
        return _repeated(_turn(calls[:1], in_graph), _SLOW_ROUNDS)
    turn = _turn(calls, in_graph)
    (once,) = _repeated(turn, 1)
    if once < _LEAST_TURN_SECONDS:
        repeats = math.ceil(_LEAST_TURN_SECONDS / once)
        calls = list(calls) * repeats
        turn = _turn(calls, in_graph)
        once *= repeats
    return [seconds / len(calls) for seconds in _repeated(turn, _rounds(once, budget))]


def _turn(calls: Sequence[Call], in_graph: bool) -> Call:
    """Return what runs every call once."""
    return _capture(calls).replay if in_graph else partial(_call_all, calls)


def _capture(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = [call() for call in calls]
    del outputs
    return graph


def _repeated(turn: Call, rounds: int) -> list[float]:
    turn()  # The GPU is busy with this one while the measured ones are queued.
    return _event_samples([turn] * rounds)


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
    _call_all(calls)
    return time.perf_counter() - start


def _call_all(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


def captured(step: Callable[[], Result]) -> Callable[[], Result]:
    """Capture a step of a program as a CUDA graph, after it has run a few times on a side stream.

    Returns:
        A call that replays it and returns what the step returned, with new contents.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = step()

    def replay() -> Result:
        graph.replay()
        return output

    return replay


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


@dataclass(frozen=True)
class Copy:
    """One way to copy a tensor to another.

    Attributes:
        way: the operation of PyTorch, and how it was launched.
        bytes: read plus written.
        samples: seconds.
    """

    way: str
    bytes: int
    samples: list[float]

    @property
    def bytes_per_second(self) -> float:
        """The best of the samples."""
        return self.bytes / min(self.samples)


@dataclass(frozen=True)
class CeilingSamples:
    """The copies and the large dense matrix product of which `ceilings` takes the best."""

    copies: list[Copy]
    product: list[float]

    @property
    def fastest_copy(self) -> Copy:
        return max(self.copies, key=lambda each: each.bytes_per_second)


def ceiling_samples(device: torch.device) -> CeilingSamples:
    """Time copies and a matrix product with the GPU's clocks up."""
    warm_up(device)
    size, dtype = _product_size(device)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    samples = kernel_samples([lambda: torch.mm(left, right, out=product)], device)
    return CeilingSamples(_copies(device, dtype), samples)


def ceilings(samples: CeilingSamples, device: torch.device) -> Ceilings:
    """Bandwidth of the fastest copy and rate of the matrix product, the best sample of each."""
    size, dtype = _product_size(device)
    return Ceilings(
        bytes_per_second=samples.fastest_copy.bytes_per_second,
        operations_per_second=2 * size**3 / min(samples.product),
        dtype=str(dtype).removeprefix("torch."),
    )


def _product_size(device: torch.device) -> tuple[int, torch.dtype]:
    """Rows of the matrices and their dtype."""
    return (8192, torch.float16) if device.type == "cuda" else (512, torch.float32)


def _copies(device: torch.device, dtype: torch.dtype) -> list[Copy]:
    """Time each way to copy tensors of each size.

    A graph turns `copy_` into a node that copies memory, which takes another path than the kernel
    of an elementwise operation.
    """
    on_gpu = device.type == "cuda"
    sizes = (1 << 30, math.prod(REFERENCE) * dtype.itemsize) if on_gpu else (32 << 20,)
    ways: dict[str, Callable[[Tensor, Tensor], object]] = {
        "copy_": lambda source, target: target.copy_(source),
        "neg": lambda source, target: torch.neg(source, out=target),
    }
    found = []
    for size in sizes:
        values = torch.randn(size // dtype.itemsize, dtype=dtype, device=device)
        count = buffer_sets(2 * size, device)
        pairs = [(values.clone(), torch.empty_like(values)) for _ in range(count)]
        for name, copy in ways.items():
            calls = [partial(copy, *pair) for pair in pairs]
            for in_graph in (True, False) if on_gpu else (False,):
                samples = kernel_samples(calls, device, in_graph=in_graph)
                launched = "in a graph" if in_graph else "launched alone"
                found.append(Copy(f"{name}, {launched}", 2 * size, samples))
    return found


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


class KernelTime(NamedTuple):
    """The launches of a kernel in one call, or on a CPU the calls of an operator of PyTorch."""

    name: str
    calls: int
    microseconds: float


def kernels_that_ran(call: Call, device: torch.device, most: int = 3) -> list[str]:
    """Names of the kernels of one call that took longest; operators of PyTorch on a CPU."""
    return [each.name for each in kernel_times(call, device)[:most]]


def kernel_times(call: Call, device: torch.device) -> list[KernelTime]:
    """Time each kernel of one call by the profiler, the longest first."""
    on_gpu = device.type == "cuda"
    activity = torch.profiler.ProfilerActivity
    activities = [activity.CUDA if on_gpu else activity.CPU]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        call()
        if on_gpu:
            torch.cuda.synchronize(device)
    attribute = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    times = [
        KernelTime(event.key, event.count, getattr(event, attribute))
        for event in profile.key_averages()
    ]
    ran = (each for each in times if each.microseconds > 0)
    return sorted(ran, key=lambda each: each.microseconds, reverse=True)
