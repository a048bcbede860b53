"""The kernels of this project, and every way to ask PyTorch for the same.

Filters have no bias here: some of PyTorch's paths add one in a pass of its own, which would make
them look slower than their convolution is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.lib import measure
from benchmarks.lib.measurement import NotMeasured
from benchmarks.lib.shapes import Case, Selection
from convmixer_kernels import available_impls, dispatch, ops
from convmixer_kernels.filters import Filter

# Maps (input, gradient of the output, filters) to the result of the operation.
Run = Callable[[Tensor, Tensor, Tensor], Tensor]
Info = dict[str, Any]
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Peer:
    """One way to run a depthwise convolution.

    Attributes:
        name: as it appears in tables.
        kernels: "cuda" or "triton" for those of this project, None for PyTorch.
        compiled: whether torch.compile tunes it; `keep_layout` then is its option
            `layout_optimization`, negated. By default it turns convolutions to channels_last.
        explicit_padding: whether `F.pad` writes a padded copy for a convolution without padding.
        depthwise_kernel: value of `torch.backends.cudnn.depthwise_kernel`, where PyTorch has it;
            None leaves it alone.
    """

    name: str
    kernels: str | None = None
    compiled: bool = False
    keep_layout: bool = False
    explicit_padding: bool = False
    depthwise_kernel: str | None = None

    def unavailable(self, device: torch.device) -> str | None:
        """Say why it is not measured on this device; None if it is."""
        if self.kernels is None:
            return None
        if device.type == "cpu":
            return needs_gpu(self.kernels)
        return available_impls(device)[self.kernels]

    def described(self, call: measure.Call, device: torch.device, wrong: str | None) -> Info:
        """The fields of a record beside the times of `call`; `wrong` is the error of its result."""
        found: Info = {"is_pytorch": self.kernels is None, "kernels": []}
        if self.kernels is None:
            found["kernels"] = measure.kernels_that_ran(call, device)
        return found if wrong is None else {**found, "wrong": wrong}

    @property
    def units(self) -> float:
        """Roundings it may be off by: the kernels' promise, and for PyTorch what is no nonsense."""
        return 2 if self.kernels else 16

    def run(self, operation: str) -> Run:
        if self.kernels is not None:
            return _kernel(operation, self.kernels)
        if self.explicit_padding:
            return _explicitly_padded
        return self.tuned(_pytorch(operation))

    def tuned(self, run: Function) -> Function:
        """Return `run` itself, or compiled if this peer is."""
        if not self.compiled:
            return run
        torch.compiler.reset()
        compiled: Any = torch.compile(run, dynamic=False, options=compile_options(self.keep_layout))
        return cast(Function, compiled)

    @contextmanager
    def ready(self, device: torch.device) -> Iterator[None]:
        """Set PyTorch's global switches while it runs on this device.

        Raises:
            NotMeasured: it is not available there, or this PyTorch cannot do what was tried.
        """
        if reason := self.unavailable(device):
            raise NotMeasured(reason)
        with self.settings():
            yield

    @contextmanager
    def settings(self) -> Iterator[None]:
        """Set PyTorch's global switches while it runs.

        Raises:
            NotMeasured: this PyTorch cannot do with them what was tried.
        """
        before = getattr(torch.backends.cudnn, "depthwise_kernel", None)
        if self.depthwise_kernel is not None:
            torch.backends.cudnn.depthwise_kernel = self.depthwise_kernel  # type: ignore[attr-defined]
        optional = self.compiled or self.depthwise_kernel is not None
        try:
            with excused(self.name, optional):
                yield
        finally:
            if self.depthwise_kernel is not None:
                torch.backends.cudnn.depthwise_kernel = before  # type: ignore[attr-defined]


@contextmanager
def excused(name: str, optional: bool) -> Iterator[None]:
    """Raise NotMeasured, with the reason, if an optional way through PyTorch fails."""
    try:
        yield
    except Exception as error:
        if not optional:
            raise
        reason = str(error).strip().split("\n")[0][:200]
        raise NotMeasured(f"{name} fails: {type(error).__name__}: {reason}") from error


def needs_gpu(implementation: str) -> str:
    return f"impl={implementation!r} needs a GPU; emulated or interpreted, its times mean nothing"


def compile_options(keep_layout: bool) -> dict[str, Any]:
    """mode="max-autotune" without its CUDA graphs: the benchmark captures graphs itself.

    And without its own convolution template, whose grid holds a copy of the work for each group:
    to try it out on 1,536 groups is 1,536 times the work.
    """
    return {
        "max_autotune": True,
        "max_autotune_conv_backends": "ATEN",
        "coordinate_descent_tuning": True,
        "layout_optimization": not keep_layout,
    }


KERNELS = (Peer("cuda", kernels="cuda"), Peer("triton", kernels="triton"))
EAGER = Peer("PyTorch")
PADDED = Peer("PyTorch, F.pad", explicit_padding=True)
COMPILED = (
    Peer("torch.compile", compiled=True),
    Peer("torch.compile, layout kept", compiled=True, keep_layout=True),
)


def switched() -> tuple[Peer, ...]:
    """Eager PyTorch under each value of its switch between kernels, where this version has one."""
    if not hasattr(torch.backends.cudnn, "depthwise_kernel"):
        return ()
    return tuple(
        Peer(f"PyTorch, depthwise_kernel={value}", depthwise_kernel=value)
        for value in ("native", "cudnn")
    )


def peers(case: Case, selection: Selection) -> list[Peer]:
    """PyTorch first: a kernel that is worth its name beats a time that is already known."""
    found = [EAGER]
    if case.is_reference:
        found += switched()
        if case.operation == "forward":
            found.append(PADDED)
        found += _compiled(case, selection)
    filter = Filter(case.kernel_size, case.kernel_size)
    return [*found, *(peer for peer in KERNELS if _takes(peer, filter))]


def _takes(peer: Peer, filter: Filter) -> bool:
    return peer.kernels is None or dispatch.unsupported_filter(filter, peer.kernels) is None


def block_peers(case: Case, selection: Selection) -> list[Peer]:
    """List the peers of a block, without those that vary the convolution alone."""
    return [EAGER, *_compiled(case, selection), *KERNELS]


def _compiled(case: Case, selection: Selection) -> tuple[Peer, ...]:
    wanted = selection.compiled == "all" or (selection.compiled == "k9" and case.kernel_size == 9)
    return COMPILED if case.is_reference and wanted and case.layout == "contiguous" else ()


def _kernel(operation: str, name: str) -> Run:
    def forward(input: Tensor, grad_output: Tensor, weight: Tensor) -> Tensor:
        output: Tensor = ops.depthwise_conv2d(input, weight, None, name)
        return output

    def input_gradient(input: Tensor, grad_output: Tensor, weight: Tensor) -> Tensor:
        gradient: Tensor = ops.depthwise_conv2d_input_gradient(grad_output, weight, name)
        return gradient

    def weight_gradient(input: Tensor, grad_output: Tensor, weight: Tensor) -> Tensor:
        gradient: Tensor = ops.depthwise_conv2d_weight_gradient(
            input, grad_output, weight.shape[2:], False, name
        )[0]
        return gradient

    runs = {
        "forward": forward,
        "input_gradient": input_gradient,
        "weight_gradient": weight_gradient,
    }
    return runs[operation]


def _pytorch(operation: str) -> Run:
    if operation == "forward":
        return _pytorch_forward
    index = ("input_gradient", "weight_gradient").index(operation)

    def gradient(input: Tensor, grad_output: Tensor, weight: Tensor) -> Tensor:
        return pytorch_gradients(input, grad_output, weight, (index == 0, index == 1))[index]

    return gradient


def _pytorch_forward(input: Tensor, grad_output: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(input, weight, padding=weight.shape[-1] // 2, groups=input.shape[1])


def _explicitly_padded(input: Tensor, grad_output: Tensor, weight: Tensor) -> Tensor:
    border = weight.shape[-1] // 2
    return F.conv2d(F.pad(input, (border,) * 4), weight, groups=input.shape[1])


def pytorch_gradients(
    input: Tensor, grad_output: Tensor, weight: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """Call the function that autograd calls for the gradients of input and filters."""
    border = weight.shape[-1] // 2
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad_output,
        input,
        weight,
        None,
        [1, 1],
        [border, border],
        [1, 1],
        False,
        [0, 0],
        input.shape[1],
        [*wanted, False],
    )
    return gradients[0], gradients[1]
