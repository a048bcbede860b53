"""Streams, graphs, threads and devices: uses of the CUDA kernels apart from their arithmetic.

Tests that need a GPU skip without one; the others run on the emulated one too.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from convmixer_kernels import build_information, devices, dispatch, emulated_gpu
from convmixer_kernels.backends import cuda
from convmixer_kernels.backends.cuda import device as cuda_device
from convmixer_kernels.filters import Filter
from convmixer_kernels.operands import PreActivation
from tests.helpers import emulated, strided
from tests.helpers.depthwise_cases import DEVICE, FP16, check, random_case

pytestmark = pytest.mark.gpu

needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": torch.Tensor.contiguous,
    "channels_last": strided.channels_last,
}
in_both_layouts = pytest.mark.parametrize("layout", LAYOUTS)
Case = tuple[Tensor, Tensor, Tensor, Tensor]


def arranged_case(
    layout: str, shape: tuple[int, int, int, int, int], device: str = DEVICE, seed: int = 0
) -> Case:
    """Input, weight, bias and output gradient."""
    input, weight, bias, grad_output = (each.to(device) for each in random_case(shape, FP16, seed))
    return LAYOUTS[layout](input), weight, bias, LAYOUTS[layout](grad_output)


def all_passes(input: Tensor, weight: Tensor, bias: Tensor, grad_output: Tensor) -> list[Tensor]:
    """Output, input gradient, weight gradient, bias gradient; these gradients in one call."""
    output = cuda.forward(input, weight, bias)
    grad_input = cuda.input_gradient(grad_output, weight)
    grad_weight, grad_bias = cuda.weight_gradient(input, grad_output, Filter.of(weight), True)
    assert grad_bias is not None
    at_once = cuda.gradients(grad_output, input, weight, (1, 1), True, True)
    results = [output, grad_input, grad_weight, grad_bias, *at_once]
    return [each for each in results if each is not None]


def assert_same_bits(actual: list[Tensor], expected: list[Tensor]) -> None:
    for name, one, other in zip(
        ("output", *("input gradient", "weight gradient", "bias gradient") * 2),
        actual,
        expected,
        strict=True,
    ):
        assert torch.equal(one, other), name


# ---- refused launches ----------------------------------------------------------------------------


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU does not refuse what is planned for it")
@in_both_layouts
@pytest.mark.parametrize("which", ["forward pass", "input gradient", "weight gradient"])
def test_a_refused_launch_names_the_shape(
    layout: str, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    input, weight, bias, grad_output = arranged_case(layout, (2, 3, 9, 13, 7))
    launch = {
        "forward pass": functools.partial(cuda.forward, input, weight, bias),
        "input gradient": functools.partial(cuda.input_gradient, grad_output, weight),
        "weight gradient": functools.partial(
            cuda.weight_gradient, input, grad_output, Filter(7, 7), True
        ),
    }[which]
    emulated.use(monkeypatch, shared_bytes_per_block=1024)
    with pytest.raises(
        RuntimeError,
        match=rf"{which} of 2x3x9x13 with kernel size 7 could not be launched: invalid argument",
    ) as raised:
        launch()
    assert "\n" not in str(raised.value)
    monkeypatch.undo()
    launch()


@in_both_layouts
def test_too_many_tiles_name_the_shape(layout: str) -> None:
    # One image for all of them: nothing is read before the launch is planned.
    image = LAYOUTS[layout](torch.zeros((1, 2, 64, 64), dtype=FP16, device=DEVICE))
    huge = image.expand(2**31 - 1, -1, -1, -1)
    with pytest.raises(ValueError, match=r"2147483647x2x64x64 .* more tiles .* than fit 32 bits"):
        cuda.weight_gradient(huge, huge, Filter(9, 9), False)


@pytest.mark.parametrize("strides", [(0, 0, 64, 1), (0, 1, 0, 0)], ids=LAYOUTS)
def test_too_many_pixels_name_the_shape(strides: tuple[int, int, int, int]) -> None:
    image = torch.zeros(64 * 64, dtype=FP16, device=DEVICE)
    huge = image.as_strided((2**31 - 1, 2, 64, 64), strides)
    message = "input of shape 2147483647x2x64x64 has more than 2147483519 pixels; split the batch"
    with pytest.raises(ValueError, match=f"^{message}$"):
        cuda.moments(PreActivation(huge, None, "gelu"))


# ---- tensors that the extension reads ------------------------------------------------------------


@in_both_layouts
def test_tensors_are_read_without_dlpack(layout: str) -> None:
    """PyTorch 2.8 has no table of functions; the attributes of a tensor say the same."""
    case = arranged_case(layout, (2, 3, 9, 13, 7))
    expected = all_passes(*case)
    extension = cuda_device.extension_for(case[0])
    extension.use_attributes(True)
    try:
        assert_same_bits(all_passes(*case), expected)
        with pytest.raises(ValueError, match="an image has four dimensions"):
            extension.moments(torch.zeros(1, 1, 1, 1, 1, dtype=FP16, device=DEVICE), None, "gelu")
    finally:
        extension.use_attributes(False)


@pytest.mark.skipif(DEVICE != "cpu", reason="kernels are skipped on the emulated GPU alone")
def test_memory_is_filled_where_pytorch_fills_it() -> None:
    case = arranged_case("contiguous", (2, 3, 9, 13, 7))
    torch.use_deterministic_algorithms(True)
    try:
        with emulated_gpu.kernels_skipped():
            assert all(each.isnan().all() for each in all_passes(*case))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda input, weight, bias: (input[0], weight, bias), "an image has four dimensions"),
        (lambda input, weight, bias: (input.float(), weight.float(), bias), "float16 and bfloat16"),
        (lambda input, weight, bias: (input, weight.float(), bias), "one dtype and device"),
        (lambda input, weight, bias: (input, weight[1:], bias), "filters are"),
        (lambda input, weight, bias: (input, weight.expand(-1, 2, -1, -1), bias), "filters are"),
        (lambda input, weight, bias: (input, weight, bias[1:]), "a value for each channel"),
    ],
)
def test_operands_that_do_not_fit_each_other_are_refused(
    change: Callable[..., tuple[Tensor, ...]], message: str
) -> None:
    input, weight, bias, _ = arranged_case("contiguous", (2, 3, 8, 8, 7))
    given = change(input, weight, bias)
    for run in (cuda.forward, functools.partial(cuda.forward_moments, activation="gelu")):
        with pytest.raises(ValueError, match=message):
            run(*given)


def test_a_fused_weight_gradient_of_any_filter_is_refused() -> None:
    """Only filters that have kernels of their own are fused, and no filter is given here."""
    image = torch.randn(2, 3, 9, 7, dtype=FP16, device=DEVICE)
    tables = (torch.ones(5, 3, device=DEVICE), torch.ones(2, 3, device=DEVICE))
    extension = cuda_device.extension_for(image)
    for size in (9, 17):
        with pytest.raises(ValueError, match="no kernel") if size == 17 else nullcontext():
            extension.fused_backward(
                *(image, None, image, image, *tables, "gelu", False, size, False, False)
            )


# ---- GPUs that there are not ---------------------------------------------------------------------


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., torch.device]]:
    """Make the first GPU one of some compute capability, with the extension's answer about it."""

    def gpu(capability: tuple[int, int], refusal: str = "") -> torch.device:
        extension = types.ModuleType("convmixer_kernels._cuda")
        monkeypatch.setattr(extension, "refusal", lambda index: refusal, raising=False)
        monkeypatch.setitem(sys.modules, extension.__name__, extension)
        monkeypatch.setattr(cuda_device, "_extension", lambda: extension)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(devices, "capability", lambda index: capability)
        return torch.device("cuda", 0)

    cuda_device._refusal.cache_clear()
    yield gpu
    cuda_device._refusal.cache_clear()


@pytest.mark.parametrize(("capability", "name"), [((8, 0), "sm_80"), ((9, 0), "sm_90")])
def test_a_gpu_that_is_new_enough(
    capability: tuple[int, int], name: str, pretend: Callable[..., torch.device]
) -> None:
    device = pretend(capability)
    assert cuda.unavailable(device) is None
    architecture = dispatch._architecture(device)
    assert architecture is not None and architecture.name == name


def test_a_gpu_that_is_too_old(pretend: Callable[..., torch.device]) -> None:
    device = pretend((7, 5))
    reason = "it needs compute capability 8.0 or newer; cuda:0 has 7.5"
    assert cuda.unavailable(device) == reason
    assert dispatch._architecture(device) is None


def test_a_gpu_that_does_not_take_the_extension(
    pretend: Callable[..., torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_information, "summary", lambda: "built by nvcc 13.0 for sm_90")
    error = "no kernel image is available for execution on the device"
    reason = cuda.unavailable(pretend((10, 0), error))
    assert reason is not None and error in reason
    assert "built by nvcc 13.0 for sm_90; build it on this machine" in reason


# ---- where tensors lie ---------------------------------------------------------------------------


@in_both_layouts
@pytest.mark.parametrize("elements", range(1, 9))
@pytest.mark.parametrize("shape", [(3, 8, 16, 16, 9), (2, 16, 7, 14, 5)], ids=["whole", "rows"])
def test_any_address_that_is_a_multiple_of_an_element(
    shape: tuple[int, int, int, int, int], elements: int, layout: str
) -> None:
    input, weight, bias, grad_output = arranged_case(layout, shape)
    moved = functools.partial(strided.off_by, elements)
    check("cuda", moved(input), weight, bias, grad_output)
    check("cuda", input, moved(weight), bias, moved(grad_output))


@in_both_layouts
@pytest.mark.parametrize(
    "shape", [(3, 8, 16, 16, 9), (3, 8, 7, 12, 9), (1, 16, 36, 20, 9), (1, 8, 5, 70, 9)], ids=str
)
def test_copies_of_what_lies_outside_name_an_address_inside(
    shape: tuple[int, int, int, int, int], layout: str
) -> None:
    """Tensors fill their memory, and images, rows and columns are missing in every pass.

    What runs kernels without a GPU reports an address outside a tensor even where nothing is read.
    """
    check("cuda", *arranged_case(layout, shape))


@pytest.mark.memory
@needs_gpu
@in_both_layouts
def test_more_than_two_to_the_31_elements(layout: str) -> None:
    images, channels, size = 2**15 + 2, 64, 32
    elements = images * channels * size**2
    assert elements > 2**31
    if torch.cuda.mem_get_info()[0] < 4 * 2 * elements * 1.1:
        pytest.skip("four tensors of 4.3 GB do not fit")
    # All but the first image and the last two are zero, all are small whole numbers: sums are exact
    # in any order.
    ends = [0, images - 2, images - 1]
    small = arranged_case(layout, (len(ends), channels, size, size, 7))
    small = tuple(each.mul(4).round().clamp(-2, 2) for each in small)  # type: ignore[assignment]
    input, weight, bias, grad_output = small

    def among_zeros(tensor: Tensor) -> Tensor:
        format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        large = torch.empty((images, *tensor.shape[1:]), dtype=FP16, device=DEVICE)
        large = large.to(memory_format=format).zero_()
        large[ends] = tensor
        return large

    expected = all_passes(*small)
    large_input, large_grad_output = among_zeros(input), among_zeros(grad_output)
    output = cuda.forward(large_input, weight, bias)
    assert torch.equal(output[ends], expected[0])
    # An image of zeros gives the bias.
    assert torch.equal(output[images // 2], bias.half().view(-1, 1, 1).expand_as(output[0]))
    del output
    grad_weight, grad_bias = cuda.weight_gradient(
        large_input, large_grad_output, Filter(7, 7), True
    )
    assert grad_bias is not None
    assert torch.equal(grad_weight, expected[2]) and torch.equal(grad_bias, expected[3])
    grad_input = cuda.input_gradient(large_grad_output, weight)
    assert torch.equal(grad_input[ends], expected[1])
    assert not grad_input[images // 2].any()


# ---- streams, graphs, devices --------------------------------------------------------------------


@needs_gpu
@in_both_layouts
def test_kernels_follow_the_current_stream(layout: str) -> None:
    shape = (8, 96, 32, 32, 9)
    late = arranged_case(layout, shape)
    expected = all_passes(*late)
    input, weight, bias, grad_output = arranged_case(layout, shape, seed=1)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        # Kernels and memory of the stream are there afterwards: getting them would wait.
        all_passes(input, weight, bias, grad_output)
        side.synchronize()
        # Kernels on another stream would overtake the copies and see the other values. Half a
        # second is more than a busy machine takes to launch them.
        torch.cuda._sleep(1_000_000_000)
        for tensor, value in zip((input, weight, bias, grad_output), late, strict=True):
            tensor.copy_(value)
        actual = all_passes(input, weight, bias, grad_output)
        assert not side.query(), "a pass has waited for the GPU"
    torch.cuda.synchronize()
    assert_same_bits(actual, expected)


@needs_gpu
@in_both_layouts
@pytest.mark.parametrize(
    "shape", [(4, 96, 32, 32, 9), (2, 12, 56, 56, 15), (64, 16, 7, 7, 7)], ids=str
)
def test_graphs_are_captured_and_replayed(
    layout: str, shape: tuple[int, int, int, int, int]
) -> None:
    static = arranged_case(layout, shape)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        all_passes(*static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # fails where anything synchronises
        captured = all_passes(*static)
    for seed in (1, 2):
        fresh = arranged_case(layout, shape, seed=seed)
        for tensor, value in zip(static, fresh, strict=True):
            tensor.copy_(value)
        graph.replay()
        torch.cuda.synchronize()
        assert_same_bits(captured, all_passes(*fresh))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@in_both_layouts
def test_kernels_run_where_their_tensors_are(layout: str) -> None:
    shape = (4, 24, 32, 32, 9)
    on_first = all_passes(*arranged_case(layout, shape, device="cuda:0"))
    assert torch.cuda.current_device() == 0
    on_second = all_passes(*arranged_case(layout, shape, device="cuda:1"))
    assert torch.cuda.current_device() == 0
    assert {each.device.index for each in on_second} == {1}
    if torch.cuda.get_device_name(0) == torch.cuda.get_device_name(
        1
    ):  # other chips may take other shares
        assert_same_bits([each.to("cuda:0") for each in on_second], on_first)
    with torch.cuda.device(1):
        again = all_passes(*arranged_case(layout, shape, device="cuda:0"))
        assert torch.cuda.current_device() == 1
    assert_same_bits(again, on_first)
