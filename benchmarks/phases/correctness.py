"""Every family of kernels against float64: at most twice PyTorch's own error, as the tests ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch import Tensor

from benchmarks.lib.measurement import WrongResult
from benchmarks.lib.shapes import REFERENCE
from benchmarks.phases import processes
from benchmarks.phases.context import Visit

# Kernel size, height and width.
_PLANES = ((32, 32), (16, 16), (8, 8), (14, 14), (7, 7))
_MORE_PLANES = ((56, 56), (24, 24), (44, 44), (9, 13), (1, 17), (65, 64))
_CONVOLUTIONS = (
    *product((9, 7, 15, 3, 5, 11, 13, 8), _PLANES),
    *product((9, 15), _MORE_PLANES),
)
# Images, channels, height, width; without a kernel size only the normalisation.
_FUSED = tuple(
    product(
        (9, 15, 7, None),
        ((3, 5, 32, 32), (6, 4, 16, 16), (19, 2, 8, 8), (3, 16, 14, 14), (2, 8, 37, 41)),
    )
)
_TRITON = ((9, 32), (15, 32), (7, 32), (9, 14), (7, 7), (3, 16), (11, 28), (13, 24), (8, 8))
_TRITON_SECONDS = 80

Layout = Callable[[Tensor], Tensor]
Check = Callable[[], object]


def smoke(visit: Visit) -> None:
    # New tensors are filled with NaN; that PyTorch warns of some operations is of no interest.
    torch.use_deterministic_algorithms(True, warn_only=True)
    checks = list(_checks(visit.implementation, visit.device, visit.dry_run))
    right = sum(_passes(visit, what, check) for what, check in checks)
    visit.facts.add("checked", kernels=visit.implementation, right=right, wrong=len(checks) - right)


def triton_smoke(visit: Visit) -> None:
    """Check kernels, each in a process on a core of its own, which compiles them."""
    cases = ((3, 4),) if visit.dry_run else _TRITON
    checks = [
        partial(_triton_case, visit, kernel_size, plane, layout)
        for kernel_size, plane in cases
        for layout in _layouts()
    ]
    outcomes = processes.in_parallel(checks, processes.at_a_time(), _TRITON_SECONDS, visit.log)
    right, unfinished = outcomes.count("done"), outcomes.count("out of time")
    visit.facts.add(
        "checked",
        kernels="triton",
        right=right,
        wrong=len(outcomes) - right - unfinished,
        unfinished=unfinished,
    )


def _passes(visit: Visit, what: str, check: Check) -> bool:
    with visit.attempt(what):
        try:
            check()
        except AssertionError as error:
            raise WrongResult(str(error)) from None
        return True
    return False


def _checks(impl: str, device: torch.device, few: bool) -> Iterator[tuple[str, Check]]:
    """Names and checks; they share PyTorch's results with nothing, so each can fail alone."""
    from tests.helpers.depthwise_cases import check, random_case

    convolutions = [(3, (5, 6))] if few else _CONVOLUTIONS
    for (kernel_size, plane), (name, layout) in product(convolutions, _layouts().items()):
        dtype = torch.bfloat16 if (kernel_size + plane[0]) % 3 == 0 else torch.float16

        def convolution(
            k: int = kernel_size,
            plane: tuple[int, int] = plane,
            layout: Layout = layout,
            dtype: torch.dtype = dtype,
        ) -> None:
            shape = (2, 3, *plane, k) if few else (5, 24, *plane, k)
            input, weight, bias, grad = random_case(shape, dtype, seed=k)
            check(impl, layout(input), weight, bias, layout(grad))

        yield f"convolution {kernel_size} {plane} {name} {dtype} {impl}", convolution

    fused = [(3, (2, 3, 5, 6))] if few else _FUSED
    for (size, shape), (name, layout) in product(fused, _layouts().items()):
        run = partial(_check_fused, impl, size, shape, layout)
        yield f"fused {size} {shape} {name} {impl}", run
    if not few:
        yield f"full grid {impl}", partial(_check_full_grid, impl, device)


def _check_fused(
    impl: str,
    kernel_size: int | None,
    shape: tuple[int, int, int, int],
    layout: Layout,
) -> None:
    from tests.helpers.fused_cases import arranged, check, check_without_gradients, random_arguments

    arguments = arranged(random_arguments(shape, kernel_size, torch.float16), layout)
    check(arguments, impl)
    check_without_gradients(replace(arguments, training=False), impl)


def _check_full_grid(impl: str, device: torch.device) -> None:
    """Two images come out the same whether alone or among those that fill a whole GPU."""
    from convmixer_kernels import ops

    input = torch.randn(REFERENCE, device=device).half()
    weight = torch.randn(REFERENCE[1], 1, 9, 9, device=device).half()
    whole = ops.depthwise_conv2d(input, weight, None, impl)
    part = ops.depthwise_conv2d(input[5:7].contiguous(), weight, None, impl)
    assert torch.equal(whole[5:7], part), "two images differ from the same two among many"


def _triton_case(visit: Visit, kernel_size: int, plane: int, name: str) -> None:
    from tests.helpers.depthwise_cases import check, random_case

    layout = _layouts()[name]
    images, channels = (1, 1) if visit.dry_run else (5, 24)
    shape = (images, channels, plane, plane, kernel_size)

    def compiled() -> None:
        input, weight, bias, grad = random_case(shape, torch.float16)
        check("triton", layout(input), weight, bias, layout(grad))
        if plane == REFERENCE[-1]:
            _run_reference(kernel_size, layout, visit.device)

    if not _passes(visit, f"convolution {kernel_size} {plane} {name} triton", compiled):
        raise SystemExit(1)


def _run_reference(kernel_size: int, layout: Layout, device: torch.device) -> None:
    from convmixer_kernels import ops

    input, grad = (layout(torch.randn(REFERENCE, device=device).half()) for _ in range(2))
    weight = torch.randn(REFERENCE[1], 1, kernel_size, kernel_size, device=device).half()
    ops.depthwise_conv2d(input, weight, None, "triton")
    ops.depthwise_conv2d_input_gradient(grad, weight, "triton")
    ops.depthwise_conv2d_weight_gradient(input, grad, kernel_size, False, "triton")
    torch.cuda.synchronize()


def _layouts() -> dict[str, Layout]:
    from tests.helpers.strided import channels_last

    return {"contiguous": torch.Tensor.contiguous, "channels_last": channels_last}
