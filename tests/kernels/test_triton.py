"""The Triton kernels against float64; without a GPU, interpreted on CPU tensors."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from convmixer_kernels import layout
from convmixer_kernels.backends import triton as backend
from convmixer_kernels.backends.triton import configurations
from convmixer_kernels.backends.triton.configurations import Configuration
from convmixer_kernels.backends.triton.launch_context import LaunchContext
from convmixer_kernels.backends.triton.shape_key import ShapeKey
from convmixer_kernels.filters import Filter
from convmixer_kernels.operands import Epilogue
from tests.helpers import oracle, strided
from tests.helpers.depthwise_cases import DEVICE, FP16, FP32, label

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]

HOPPER = LaunchContext(capability=(9, 0), multiprocessors=132)

_REASON = backend.unavailable(torch.device(DEVICE))
needs_kernels = pytest.mark.skipif(_REASON is not None, reason=str(_REASON))

# (N, C, H, W, k): every kernel size; sizes of 1, primes, images smaller than the kernel, widths on
# each side of a tile's eight columns, heights on each side of an iteration of the main loops.
SHAPES = [
    (1, 1, 1, 1, 3), (2, 2, 1, 1, 8), (1, 2, 1, 1, 15), (3, 1, 1, 2, 5), (1, 1, 2, 1, 7),
    (2, 1, 2, 2, 9), (1, 2, 3, 3, 11), (1, 1, 1, 19, 9), (1, 1, 23, 1, 9), (1, 1, 1, 17, 13),
    (2, 2, 5, 3, 3), (2, 1, 3, 5, 8), (4, 1, 5, 5, 13), (33, 1, 2, 3, 5), (17, 1, 4, 8, 7),
    (2, 3, 7, 7, 3), (3, 2, 7, 7, 7), (3, 2, 7, 7, 9), (2, 1, 7, 7, 15), (2, 2, 8, 8, 3),
    (2, 2, 8, 8, 5), (2, 1, 8, 8, 7), (3, 2, 8, 8, 8), (1, 2, 8, 8, 9), (1, 1, 8, 8, 11),
    (1, 1, 8, 8, 13), (1, 1, 8, 8, 15), (2, 2, 9, 9, 8), (1, 2, 9, 9, 9), (1, 1, 9, 9, 11),
    (1, 1, 11, 7, 13), (2, 1, 10, 12, 5), (1, 2, 12, 10, 8), (1, 1, 12, 12, 9), (1, 1, 13, 11, 7),
    (1, 1, 13, 13, 15), (2, 1, 14, 14, 7), (1, 1, 14, 14, 9), (1, 1, 15, 16, 5),
    (1, 1, 16, 15, 11), (2, 2, 16, 16, 3), (1, 2, 16, 16, 9), (1, 1, 16, 16, 8),
    (1, 1, 16, 16, 13), (1, 1, 17, 17, 8), (1, 2, 17, 9, 7), (1, 1, 18, 18, 9), (1, 1, 19, 23, 3),
    (1, 1, 20, 20, 7), (1, 1, 20, 4, 11), (1, 1, 5, 40, 15), (1, 1, 24, 24, 5), (1, 1, 24, 25, 8),
    (1, 1, 28, 28, 9), (1, 1, 31, 6, 13), (1, 1, 6, 67, 9), (1, 1, 32, 32, 7), (1, 2, 32, 32, 9),
    (1, 1, 32, 32, 8), (1, 1, 32, 32, 11), (1, 1, 33, 31, 5), (1, 1, 40, 8, 15), (2, 1, 3, 130, 7),
    (1, 1, 70, 3, 9),
]  # fmt: skip
# Smaller shapes, and of the large kernel sizes half as many, since multiply-adds take the
# interpreter longer than matrix products.
FP32_SHAPES = [
    (n, c, h if h <= 8 else 5 + h % 5, w + 1 if w < 9 else 9 + w % 8, k)
    for number, (n, c, h, w, k) in enumerate(SHAPES)
    if k < 11 or number % 2
]
CHANNELS_LAST_SHAPES = [
    (1, 8, 1, 2, 3), (3, 8, 5, 1, 8), (1, 40, 4, 4, 5), (2, 16, 7, 7, 9), (1, 3, 17, 10, 13),
]  # fmt: skip


@dataclasses.dataclass
class Case:
    input: Tensor
    weight: Tensor
    bias: Tensor
    grad_output: Tensor

    @property
    def kernel_size(self) -> int:
        return self.weight.shape[-1]

    @property
    def terms(self) -> int:
        """Products in an element of the weight gradient."""
        return self.input.numel() // self.input.shape[1]


def random_case(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    images, channels, height, width, k = shape
    generator = torch.Generator().manual_seed(hash(shape) % 1000)
    size = (images, channels, height, width)
    return Case(
        input=torch.randn(size, generator=generator).to(DEVICE, dtype),
        weight=(torch.randn((channels, 1, k, k), generator=generator) / k).to(DEVICE, dtype),
        bias=torch.randn(channels, generator=generator).to(DEVICE),
        grad_output=torch.randn(size, generator=generator).to(DEVICE, dtype),
    )


def check(case: Case) -> None:
    """All passes against float64; PyTorch's own error at the same precision is the yardstick."""
    dtype = case.input.dtype
    output = backend.forward(case.input, case.weight, case.bias)
    grad_input = backend.input_gradient(case.grad_output, case.weight)
    grad_weight, grad_bias = backend.weight_gradient(
        case.input, case.grad_output, Filter.of(case.weight), with_bias=True
    )
    assert grad_bias is not None
    assert grad_weight.dtype == grad_bias.dtype == torch.float32
    check_results(case, output, grad_input, grad_weight.to(dtype), grad_bias.to(dtype))


def check_results(
    case: Case, output: Tensor, grad_input: Tensor, grad_weight: Tensor, grad_bias: Tensor
) -> None:
    tensors = (case.input, case.weight, case.bias, case.grad_output)
    exact = oracle.convolve(*tensors, torch.float64)
    pytorch = oracle.convolve(*tensors, case.input.dtype)
    assert exact.grad_bias is not None and pytorch.grad_bias is not None
    taps = case.kernel_size**2
    oracle.assert_close("output", output, exact.output, pytorch.output, taps)
    oracle.assert_close("input gradient", grad_input, exact.grad_input, pytorch.grad_input, taps)
    oracle.assert_close(
        "weight gradient", grad_weight, exact.grad_weight, pytorch.grad_weight, case.terms
    )
    oracle.assert_close("bias gradient", grad_bias, exact.grad_bias, pytorch.grad_bias, case.terms)


@needs_kernels
@pytest.mark.parametrize("shape", SHAPES, ids=label)
def test_float16(shape: tuple[int, ...]) -> None:
    check(random_case(shape, FP16))


def float32_shapes() -> Iterator[object]:
    """Yield every other shape of each kernel size for `make test`, and all for `make test-all`."""
    for index, shape in enumerate(sorted(FP32_SHAPES, key=lambda shape: shape[-1])):
        repeats = DEVICE == "cpu" and index % 2 == 1
        yield pytest.param(shape, id=label(shape), marks=[pytest.mark.repeats] if repeats else [])


@needs_kernels
@pytest.mark.parametrize("shape", list(float32_shapes()))
def test_float32(shape: tuple[int, ...]) -> None:
    check(random_case(shape, FP32))


@needs_kernels
@pytest.mark.parametrize("shape", CHANNELS_LAST_SHAPES, ids=label)
def test_channels_last(shape: tuple[int, ...]) -> None:
    case = random_case(shape, FP16)
    case.input = strided.channels_last(case.input)
    case.grad_output = strided.channels_last(case.grad_output)
    check(case)


@needs_kernels
@pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter is wrong in bfloat16")
@pytest.mark.parametrize("shape", SHAPES[::8], ids=label)
def test_bfloat16(shape: tuple[int, ...]) -> None:
    check(random_case(shape, torch.bfloat16))


LAYOUTS = (*strided.LAYOUTS, strided.expanded_everywhere)


@needs_kernels
@pytest.mark.parametrize("arrange", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 9, 8, 9), (2, 2, 4, 10, 11)], ids=label)
def test_layouts(arrange: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    case = random_case(shape, FP16)
    case.input = arrange(case.input)
    case.grad_output = arrange(case.grad_output)
    check(case)


@needs_kernels
def test_layouts_of_input_and_grad_output_may_differ() -> None:
    case = random_case((2, 3, 6, 9, 7), FP16)
    case.grad_output = strided.channels_last(case.grad_output)
    check(case)
    case = random_case((2, 3, 6, 9, 7), FP16)
    case.input = strided.transposed_planes(case.input)
    check(case)


@needs_kernels
@pytest.mark.parametrize(
    "arrange", [Tensor.contiguous, strided.channels_last, strided.channels_outermost]
)
def test_outputs_keep_the_layout(arrange: Callable[[Tensor], Tensor]) -> None:
    case = random_case((2, 3, 4, 5, 3), FP16)
    arranged = arrange(case.input)
    assert backend.forward(arranged, case.weight, None).stride() == arranged.stride()
    assert backend.input_gradient(arranged, case.weight).stride() == arranged.stride()


@needs_kernels
@pytest.mark.parametrize("dtype", [FP16, FP32])
def test_float32_in_other_layouts(dtype: torch.dtype) -> None:
    for arrange in (strided.channels_last, strided.slice_of_rows_and_columns):
        case = random_case((2, 2, 4, 9, 5), dtype)
        case.input = arrange(case.input)
        check(case)


@needs_kernels
@pytest.mark.parametrize("dtype", [FP16, FP32])
def test_without_bias(dtype: torch.dtype) -> None:
    case = random_case((2, 2, 5, 9, 7), dtype)
    with_bias = backend.forward(case.input, case.weight, torch.zeros_like(case.bias))
    assert torch.equal(backend.forward(case.input, case.weight, None), with_bias)
    expected, _ = backend.weight_gradient(
        case.input, case.grad_output, Filter(7, 7), with_bias=True
    )
    grad_weight, grad_bias = backend.weight_gradient(
        case.input, case.grad_output, Filter(7, 7), with_bias=False
    )
    assert grad_bias is None
    assert torch.equal(grad_weight, expected)


@needs_kernels
@pytest.mark.parametrize("dtype", [FP16, FP32])
def test_empty_batch_launches_nothing(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from convmixer_kernels.backends.triton import depthwise_forward, depthwise_weight_gradient

    monkeypatch.delattr(depthwise_forward, "launch")
    monkeypatch.delattr(depthwise_weight_gradient, "launch")
    case = random_case((0, 3, 5, 6, 7), dtype)
    assert backend.forward(case.input, case.weight, case.bias).shape == (0, 3, 5, 6)
    assert backend.input_gradient(case.grad_output, case.weight).shape == (0, 3, 5, 6)
    grad_weight, grad_bias = backend.weight_gradient(
        case.input, case.grad_output, Filter(7, 7), with_bias=True
    )
    assert grad_bias is not None
    assert torch.equal(grad_weight, torch.zeros((3, 1, 7, 7), device=DEVICE))
    assert torch.equal(grad_bias, torch.zeros(3, device=DEVICE))


def messages(error: BaseException | None) -> str:
    return "" if error is None else f"{error}\n{messages(error.__cause__)}"


@needs_kernels
@pytest.mark.parametrize("arrange", [Tensor.contiguous, strided.channels_last])
def test_a_filter_that_a_square_kernel_would_cut_short_is_refused(
    arrange: Callable[[Tensor], Tensor],
) -> None:
    """The weight gradient sums 16 diagonals, and the window of a planar tile holds 17 taps."""
    from convmixer_kernels.backends.triton import depthwise_weight_gradient

    tensor = arrange(torch.ones((1, 8, 1, 1), dtype=FP16, device=DEVICE))
    with pytest.raises(Exception) as caught:
        depthwise_weight_gradient.square_weight_gradient(tensor, tensor, 17, with_bias=False)
    assert "the gradients of further taps would be lost" in messages(caught.value)
    epilogue = Epilogue(torch.ones((5, 8), device=DEVICE), "gelu", False)
    weight = torch.ones((8, 1, 19, 19), dtype=FP16, device=DEVICE)
    with pytest.raises(Exception) as caught:
        backend.forward_normalised(tensor.contiguous(), weight, None, epilogue)
    assert "the input window ends left of the last tap" in messages(caught.value)


@needs_kernels
def test_infinities_and_nan_stay_in_their_plane() -> None:
    case = random_case((3, 3, 6, 7, 9), FP16)
    clean = backend.forward(case.input, case.weight, case.bias)
    case.input[1] = torch.nan
    case.input[:, 2] = torch.inf
    spoiled = backend.forward(case.input, case.weight, case.bias)
    untouched = torch.isfinite(case.input).all(dim=(2, 3))
    assert untouched.sum() == 4
    assert torch.equal(spoiled[untouched], clean[untouched])


@pytest.mark.memory
@needs_kernels
def test_more_elements_than_32_bits_count() -> None:
    """Images and channels more than 2**31 elements apart, with strides of fewer."""
    torch.use_deterministic_algorithms(False)  # filling the gaps with NaN would need the memory
    far = 2**30
    for strides, size in itertools.product([(far, 9, 3, 1), (9, far, 3, 1)], (5, 17)):
        case = random_case((3, 3, 3, 3, size), FP16)
        extent = 1 + sum(
            (size - 1) * stride for size, stride in zip(case.input.shape, strides, strict=True)
        )
        try:
            storage = torch.empty(extent, dtype=FP16, device=DEVICE)
        except RuntimeError:
            pytest.skip(f"no address space for {2 * extent} bytes")
        case.input = torch.as_strided(storage, case.input.shape, strides).copy_(case.input)
        tensors = (case.input, case.weight, case.bias, case.grad_output)
        exact = oracle.convolve(*tensors, torch.float64)
        output = backend.forward(case.input, case.weight, case.bias)
        grad_weight, _ = backend.weight_gradient(
            case.input, case.grad_output, Filter(size, size), with_bias=False
        )
        assert (output.double() - exact.output).abs().max() < 2e-3
        assert (grad_weight.double() - exact.grad_weight).abs().max() < 1e-4
        del storage, case


# Configurations other than those that the small shapes above are given.


def every_candidate() -> Iterator[object]:
    """Yield every candidate for a few shapes, in turn with one split a channel and with several."""
    for shape, dtype in [
        ((3, 1, 19, 12, 5), FP16),
        ((1, 2, 20, 8, 8), FP16),
        ((2, 1, 18, 9, 11), FP16),
        ((2, 1, 9, 9, 3), FP32),
    ]:
        tensor = torch.empty(shape[:4], dtype=dtype, device="meta")
        key = ShapeKey.of((tensor, tensor), shape[4])
        for operation, find in {
            "forward": configurations.forward_candidates,
            "input_gradient": configurations.forward_candidates,
            "weight_gradient": configurations.weight_gradient_candidates,
        }.items():
            for number, candidate in enumerate(find(key, HOPPER)):
                configuration = dataclasses.replace(candidate, splits=(1, 3)[number % 2])
                identifier = (
                    f"{operation}-{label(shape)}-tiles{configuration.tiles}"
                    f"-rows{configuration.unrolled_rows}-blocks{configuration.row_blocks}"
                    f"-splits{configuration.splits}"
                )
                yield pytest.param(shape, dtype, operation, configuration, id=identifier)


@needs_kernels
@pytest.mark.parametrize(("shape", "dtype", "operation", "configuration"), list(every_candidate()))
def test_every_configuration_gives_the_same(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    operation: str,
    configuration: Configuration,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    buffers: list[Tensor] = []

    def guarded(tensor: Tensor) -> Tensor:
        buffer = torch.full((tensor.numel() + 800,), 7.0, dtype=tensor.dtype, device=DEVICE)
        buffers.append(buffer)
        buffer[400:-400] = torch.nan
        return buffer[400:-400].as_strided(tensor.shape, tensor.stride(), 400)

    monkeypatch.setattr(layout, "empty_like_input", guarded)
    for find in ("forward_candidates", "weight_gradient_candidates"):
        monkeypatch.setattr(configurations, find, lambda key, context: (configuration,))
    case = random_case(shape, dtype)
    tensors = (case.input, case.weight, case.bias, case.grad_output)
    exact = oracle.convolve(*tensors, torch.float64)
    pytorch = oracle.convolve(*tensors, dtype)
    taps = case.kernel_size**2
    if operation == "forward":
        output = backend.forward(case.input, case.weight, case.bias)
        oracle.assert_close("output", output, exact.output, pytorch.output, taps)
    elif operation == "input_gradient":
        grad_input = backend.input_gradient(case.grad_output, case.weight)
        oracle.assert_close(
            "input gradient", grad_input, exact.grad_input, pytorch.grad_input, taps
        )
    else:
        grad_weight, grad_bias = backend.weight_gradient(
            case.input, case.grad_output, Filter.of(case.weight), with_bias=True
        )
        assert grad_bias is not None and exact.grad_bias is not None
        assert pytorch.grad_bias is not None
        oracle.assert_close(
            "weight gradient", grad_weight, exact.grad_weight, pytorch.grad_weight, case.terms
        )
        oracle.assert_close(
            "bias gradient", grad_bias, exact.grad_bias, pytorch.grad_bias, case.terms
        )
    for buffer in buffers:
        assert (buffer[:400] == 7).all() and (buffer[-400:] == 7).all(), "wrote outside the output"
