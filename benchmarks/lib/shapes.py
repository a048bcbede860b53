"""The lists of measurements: full, quick, a visit's, and small for machines without a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from benchmarks.lib.arithmetic import BLOCK_PASSES, Shape, Work, block_work, depthwise_work

OPERATIONS = ("forward", "input_gradient", "weight_gradient")
BLOCK_OPERATIONS = tuple(BLOCK_PASSES)
LAYOUTS = ("contiguous", "channels_last")
KERNEL_SIZES = (3, 5, 7, 9, 11, 13, 15)
# Of RepLKNet and others, beyond what the fused operations take.
LARGE_KERNEL_SIZES = (17, 21, 27, 31)
LARGE_KERNEL_SHAPES = ((64, 384, 64), (64, 384, 32), (64, 1536, 16))
PLANES = (7, 14, 16, 18, 24, 28, 32, 44, 56)
CHANNELS = (384, 768, 1536)
IMAGES = (1, 64)
DTYPES = ("float16", "bfloat16")
ELEMENT_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Case:
    """An operation on (images, channels, plane, plane).

    Of `OPERATIONS`: a depthwise convolution or one of its gradients. Of `BLOCK_OPERATIONS`: the
    first half of a ConvMixer block.
    """

    operation: str
    images: int
    channels: int
    plane: int
    kernel_size: int
    dtype: str = "float16"
    layout: str = "contiguous"

    @property
    def shape(self) -> Shape:
        return self.images, self.channels, self.plane, self.plane

    @property
    def work(self) -> Work:
        return work_of(self.operation, self.shape, self.kernel_size, self.dtype)

    @property
    def subject(self) -> dict[str, Any]:
        """The fields that identify it among records."""
        return asdict(self)

    @property
    def terms(self) -> int:
        """Products in the sum behind one element of the result."""
        if self.operation == "weight_gradient":
            return self.images * self.plane**2
        return self.kernel_size**2

    @property
    def is_reference(self) -> bool:
        """True where every configuration of PyTorch is measured, not only the two usual ones."""
        return self.shape in (REFERENCE, CPU_REFERENCE) and self.dtype != "bfloat16"

    def __str__(self) -> str:
        shape = f"{self.images}x{self.channels}x{self.plane}x{self.plane}"
        return f"{self.operation}-{shape}-k{self.kernel_size}-{self.dtype}-{self.layout}"


def work_of(operation: str, shape: Shape, kernel_size: int, dtype: str) -> Work:
    """Count the work of one of `OPERATIONS` or of `BLOCK_OPERATIONS`."""
    if operation in BLOCK_OPERATIONS:
        return block_work(operation, shape, kernel_size, ELEMENT_BYTES[dtype])
    return depthwise_work(shape, kernel_size, ELEMENT_BYTES[dtype])


# The tensors between the blocks of ConvMixer-1536/20 with patches of 7 pixels at batch size 64.
REFERENCE = (64, 1536, 32, 32)
CPU_REFERENCE = (2, 32, 16, 16)


def _cases(
    shapes: Iterable[tuple[int, int, int]],
    kernel_sizes: Iterable[int],
    dtypes: Iterable[str] = ("float16",),
    operations: Iterable[str] = OPERATIONS,
) -> list[Case]:
    """All operations and layouts; layouts last, so that they share inputs and exact results."""
    return [
        Case(operation, *shape, kernel_size, dtype, layout)
        for shape, kernel_size, dtype, operation, layout in product(
            shapes, kernel_sizes, dtypes, operations, LAYOUTS
        )
    ]


def _block_cases(kernel_sizes: Iterable[int], planes: Iterable[int]) -> list[Case]:
    """List kernel sizes at the reference shape, other planes at k = 9, and bfloat16."""
    images, channels, plane, _ = REFERENCE
    reference = (images, channels, plane)
    return [
        *_cases([reference], kernel_sizes, ("float16",), BLOCK_OPERATIONS),
        *_cases([(64, 768, other) for other in planes], (9,), ("float16",), BLOCK_OPERATIONS),
        *_cases([reference], (9,), ("bfloat16",), BLOCK_OPERATIONS),
    ]


def full_cases() -> list[Case]:
    """Every combination."""
    return [
        *_cases(product(IMAGES, CHANNELS, PLANES), KERNEL_SIZES, DTYPES),
        *_cases(LARGE_KERNEL_SHAPES, LARGE_KERNEL_SIZES, DTYPES),
    ]


def quick_cases() -> list[Case]:
    """The reference shape in full, and one step away from it in every direction.

    What matters most comes first: a run that is out of time leaves out the end.
    """
    images, channels, plane, _ = REFERENCE
    reference = (images, channels, plane)
    return [
        *_cases([reference], (9, 7, 15, 3, 5, 11, 13)),
        *_cases([(64, 768, other) for other in PLANES if other != plane], (9,)),
        *_cases([(1, 768, plane), (64, 768, plane), (64, 384, plane)], (7, 9)),
        *_cases([reference], (9,), ("bfloat16",)),
        *_cases(LARGE_KERNEL_SHAPES, LARGE_KERNEL_SIZES),
    ]


def visit_cases() -> list[Case]:
    """The cases for which a few minutes have time, those that PyTorch takes longest for last.

    A single image and the planes, for `auto`; the four stages of ConvNeXt-T; kernel sizes at the
    reference shape, of which PyTorch has good kernels for the small ones.
    """
    images, channels, plane, _ = REFERENCE
    return [
        *_cases([(1, 768, plane), *((64, 768, other) for other in (7, 14, 16))], (9,)),
        *_cases([(64, 768, 7), (64, 384, 14), (64, 192, 28), (64, 96, 56)], (7,)),
        *_cases([(images, channels, plane)], (3, 5, 7, 9, 15)),
        *_cases([(64, 768, 56)], (9,)),
        *_cases([LARGE_KERNEL_SHAPES[1]], (LARGE_KERNEL_SIZES[0], LARGE_KERNEL_SIZES[-1])),
    ]


def visit_blocks() -> list[Case]:
    """List the blocks of a visit, those that PyTorch takes longest for last."""
    images, channels, plane, _ = REFERENCE
    return _cases([(images, channels, plane)], (7, 9, 15), ("float16",), BLOCK_OPERATIONS)


def full_blocks() -> list[Case]:
    return _block_cases(KERNEL_SIZES, PLANES)


def quick_blocks() -> list[Case]:
    return _block_cases((9, 7, 15), (7, 14, 16, 28))


def cpu_cases() -> list[Case]:
    images, channels, plane, _ = CPU_REFERENCE
    planes = [(images, channels, other) for other in (8, 24)]
    return [
        *_cases([(images, channels, plane)], (3, 9, 15), ("float32",)),
        *_cases(planes, (9,), ("float32",)),
    ]


def cpu_blocks() -> list[Case]:
    images, channels, plane, _ = CPU_REFERENCE
    shapes = [(images, channels, plane)]
    return _cases(shapes, (3, 9, 15), ("float32",), BLOCK_OPERATIONS)


@dataclass(frozen=True)
class InputSizes:
    """Figure 4: inference time of one model against the size of its images."""

    dim: int
    depth: int
    batch: int
    kernel_sizes: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Selection:
    """All that a run measures.

    Attributes:
        name: of the list, for the records.
        cases: for the convolutions.
        blocks: for the fused operations.
        tables: of the paper whose networks are run; none for the small networks of the CPU list.
        batch, batches: images in a batch, and batches timed for a network.
        training_tables, training_steps: the same for training.
        input_sizes: of figure 4.
        compiled: where torch.compile is tried: "all", "k9" (for the kernels with k = 9; networks
            compile for longer than all else takes) or "none".
    """

    name: str
    cases: list[Case]
    blocks: list[Case]
    tables: tuple[int, ...]
    batch: int
    batches: int
    training_tables: tuple[int, ...]
    training_steps: int
    input_sizes: InputSizes
    compiled: str


FULL = Selection(
    name="full",
    cases=full_cases(),
    blocks=full_blocks(),
    tables=(1, 2, 3, 5),
    batch=64,
    batches=20,
    training_tables=(1, 2, 3, 5),
    training_steps=10,
    input_sizes=InputSizes(768, 32, 32, KERNEL_SIZES, (56, 112, 168, 224, 280, 336, 392, 448)),
    compiled="all",
)
QUICK = replace(
    FULL,
    name="quick",
    cases=quick_cases(),
    blocks=quick_blocks(),
    tables=(1,),
    training_tables=(1,),
    training_steps=5,
    input_sizes=InputSizes(768, 32, 32, (3, 5, 7, 9, 15), (112, 224, 336)),
    compiled="k9",
)
CPU = Selection(
    name="cpu",
    cases=cpu_cases(),
    blocks=cpu_blocks(),
    tables=(),
    batch=2,
    batches=5,
    training_tables=(),
    training_steps=3,
    input_sizes=InputSizes(32, 2, 2, (3, 9, 15), (28, 56, 112)),
    compiled="none",
)

VISIT = replace(
    QUICK,
    name="visit",
    cases=visit_cases(),
    blocks=visit_blocks(),
    batches=10,
    training_steps=5,
    compiled="k9",
)
# This list is as small as can be: it shows that every phase of a visit runs, and nothing else.
DRY_RUN = replace(
    CPU,
    name="dry run",
    cases=_cases([(2, 8, 8)], (3,), ("float32",)),
    blocks=_cases([(2, 8, 8)], (3,), ("float32",), BLOCK_OPERATIONS),
    batches=2,
    training_steps=2,
)


def selection(has_gpu: bool, quick: bool) -> Selection:
    if not has_gpu:
        return CPU
    return QUICK if quick else FULL
