"""The short way from a public function to a kernel: when it is taken, and what it remembers."""

from __future__ import annotations

import contextlib
import copy
import io
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from convmixer import ConvMixer
from convmixer_kernels import (
    depthwise_conv2d,
    depthwise_conv2d_gelu_batch_norm,
    direct,
    dispatch,
    emulated_gpu,
    gelu_batch_norm,
    inference_tables,
    layout,
)
from convmixer_kernels.backends import cuda
from convmixer_kernels.operands import PreActivation
from convmixer_kernels.ops import declaration
from tests.helpers import strided
from tests.helpers.depthwise_cases import DEVICE, FP16, KERNELS

pytestmark = pytest.mark.gpu


def image(batch: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, 5, 5, generator=torch.Generator().manual_seed(1)).to(
        DEVICE, FP16
    )


def filters(channels: int = 3) -> Tensor:
    return torch.randn(channels, 1, 3, 3, generator=torch.Generator().manual_seed(2)).to(
        DEVICE, FP16
    )


# ---- when it is taken ----------------------------------------------------------------------------


class Quiet(TorchDispatchMode):
    """A mode that changes nothing."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


class QuietFunctions(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


def while_tracing(ask: Callable[[], bool]) -> bool:
    answers: list[bool] = []

    def traced(value: Tensor) -> Tensor:
        answers.append(ask())
        return value + 1

    torch.jit.trace(traced, torch.zeros(2), check_trace=False)
    return answers[0]


def while_transformed(transform: Callable[..., Any]) -> Callable[[Callable[[], bool]], bool]:
    def asked(ask: Callable[[], bool]) -> bool:
        answers: list[bool] = []

        def function(value: Tensor) -> Tensor:
            answers.append(ask())
            return value.sum()

        transform(function)(torch.zeros(2, 2))
        return answers[0]

    return asked


def while_compiling(ask: Callable[[], bool]) -> bool:
    @torch.compile(backend="eager", fullgraph=True)
    def compiled(value: Tensor) -> Tensor:
        return value + (1 if ask() else 2)

    return bool(compiled(torch.zeros(1)) == 1)


def within(context: Callable[[], Any]) -> Callable[[Callable[[], bool]], bool]:
    def asked(ask: Callable[[], bool]) -> bool:
        with context():
            return ask()

    return asked


def profiling() -> Any:
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@pytest.mark.parametrize(
    "asked",
    {
        "dispatch mode": within(Quiet),
        "function mode": within(QuietFunctions),
        "flop counter": within(lambda: FlopCounterMode(display=False)),
        "fake tensors": within(torch._subclasses.FakeTensorMode),
        "autocast": within(lambda: torch.autocast("cpu")),
        "profiler": within(profiling),
        "forward mode": within(forward_ad.dual_level),
        "jit.trace": while_tracing,
        "compile": while_compiling,
        "make_fx": while_transformed(make_fx),
        "vmap": while_transformed(torch.vmap),
        "func.grad": while_transformed(torch.func.grad),
        "functionalize": while_transformed(torch.func.functionalize),
    }.items(),
    ids=lambda pair: pair[0],
)
def test_what_sees_operators_keeps_calls_from_the_short_way(
    asked: tuple[str, Callable[[Callable[[], bool]], bool]],
) -> None:
    assert direct.dispatcher_is_idle()
    assert not asked[1](direct.dispatcher_is_idle)
    assert direct.dispatcher_is_idle()


@pytest.mark.parametrize("context", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_gradient_modes_leave_the_dispatcher_idle(context: Callable[[], Any]) -> None:
    with context():
        assert direct.takes((torch.zeros(2), nn.Parameter(torch.zeros(2))), (None,))


def test_tensors_that_the_dispatcher_treats_in_its_own_way() -> None:
    class Subclass(Tensor):
        pass

    for tensor in (
        torch.zeros(2).as_subclass(Subclass),
        torch.zeros(2, device="meta"),
        torch._neg_view(torch.zeros(2)),
        None,
        1.0,
    ):
        assert not direct.takes((tensor,))
        assert tensor is None or not direct.takes((), (tensor,))


def test_a_backward_pass_calls_kernels_where_a_forward_pass_does() -> None:
    gradient = torch.zeros(2)
    assert not direct.takes_gradient(gradient)  # of a backward pass that is differentiated
    with torch.no_grad():
        assert direct.takes_gradient(gradient)
        assert not direct.takes_gradient(torch._neg_view(gradient))
        with Quiet():
            assert not direct.takes_gradient(gradient)


@pytest.fixture
def no_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing runs that goes through an operator or records a gradient."""

    def fail(*_: object) -> None:
        raise AssertionError("the long way")

    for name in ("run", "differentiable", "directly"):
        monkeypatch.setattr(declaration.DifferentiableOperator, name, fail)


CALLS: dict[str, Callable[[Tensor, str], Tensor]] = {
    "depthwise_conv2d": lambda input, impl: depthwise_conv2d(input, filters(), impl=impl),
    "depthwise_conv2d_gelu_batch_norm": lambda input, impl: depthwise_conv2d_gelu_batch_norm(
        *(input, filters(), None, None, None, torch.zeros(3, device=DEVICE)),
        torch.ones(3, device=DEVICE),
        training=False,
        impl=impl,
    ),
    "gelu_batch_norm": lambda input, impl: gelu_batch_norm(
        *(input, None, None, torch.zeros(3, device=DEVICE), torch.ones(3, device=DEVICE)),
        training=False,
        impl=impl,
    ),
}


@pytest.mark.usefixtures("no_operators")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("impl", KERNELS)
def test_without_gradients_neither_dispatcher_nor_autograd_runs(impl: str, call: str) -> None:
    assert CALLS[call](image(), impl).grad_fn is None
    with torch.no_grad():
        assert not CALLS[call](image().requires_grad_(), impl).requires_grad
    with pytest.raises(AssertionError, match="the long way"), Quiet():
        CALLS[call](image(), impl)


@pytest.mark.parametrize("call", CALLS)
def test_a_negative_bit_is_resolved_before_a_kernel_reads(call: str) -> None:
    input = image()
    expected = CALLS[call](-input, "cuda")
    assert torch.equal(CALLS[call](torch._neg_view(input), "cuda"), expected)


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_a_tensor_that_has_left_a_transform_is_read(call: str, differentiable: bool) -> None:
    """It is a wrapper without an address."""
    left: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        left.append(2 * value)
        return value.float().sum()

    torch.func.grad(keep)(image())
    # The wrapper requires a gradient, and running statistics are applied in two steps then.
    ordinary = (2 * image()).requires_grad_()
    with torch.set_grad_enabled(differentiable):
        assert torch.equal(CALLS[call](left[0], "cuda"), CALLS[call](ordinary, "cuda"))


SHAPES = [(2, 3, 4, 5), (1, 3, 4, 5), (2, 1, 4, 5), (2, 3, 1, 5), (2, 3, 4, 1), (2, 3, 1, 1)]


@pytest.mark.parametrize("shape", [*SHAPES, (1, 1, 1, 1), (0, 3, 4, 5)])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_outputs_have_the_strides_that_pytorch_gives(
    format: torch.memory_format, shape: tuple[int, ...]
) -> None:
    input = torch.empty(shape).to(memory_format=format)
    # Images whose strides allow both are planar.
    kept = torch.contiguous_format if layout.is_planar(input) else format
    expected = torch.empty_like(input, memory_format=kept).stride()
    assert layout.empty_like_input(input).stride() == expected
    output = cuda.forward(input.to(DEVICE, FP16), filters(shape[1]), None)
    assert output.stride() == expected


@pytest.mark.usefixtures("skipped")
@pytest.mark.parametrize("shape", SHAPES)
def test_passes_read_pixels_at_one_distance_as_they_are(shape: tuple[int, ...]) -> None:
    dense = torch.zeros(shape, dtype=FP16).to(memory_format=torch.channels_last)
    wider = strided.slice_of_pixels(torch.zeros(shape, dtype=FP16), 2, 1)
    assert reads(dense) and reads(wider)
    if shape[1] > 1:
        assert reads(dense[:1, :, :1, :1].expand(-1, -1, 4, 5))
    if shape[2] > 1 and shape[3] > 1:
        assert not reads(dense[:, :, :, :-1])


def reads(image: Tensor) -> bool:
    """Tell whether an elementwise pass reads this tensor rather than a copy."""
    given: list[Tensor] = []
    emulated_gpu.extension().watch(lambda tensor, _: given.append(tensor))
    cuda.moments(PreActivation(image, None, "gelu"))
    emulated_gpu.extension().watch(None)
    return all(tensor is image for tensor in given if tensor.dtype == FP16)


# ---- tables of inference -------------------------------------------------------------------------


def norm() -> nn.BatchNorm2d:
    """In evaluation, with numbers that leave nothing as it is."""
    module = nn.BatchNorm2d(3).to(DEVICE).eval()
    with torch.no_grad():
        for number, each in enumerate((module.weight, module.bias, module.running_mean), 1):
            assert each is not None
            each.copy_(torch.arange(3) / 4 + number)
    return module


def infer(module: nn.BatchNorm2d, bias: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return gelu_batch_norm(
            *(image(), module.weight, module.bias, module.running_mean, module.running_var),
            bias=bias,
            training=False,
            impl="cuda",
        )


def expected(module: nn.BatchNorm2d, bias: Tensor | None = None) -> Tensor:
    """Infer with copies of the tensors, for which no tables have been kept."""
    return infer(copy.deepcopy(module), None if bias is None else bias.clone())


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by each table that the CUDA backend computes."""
    calls: list[int] = []
    backend = dispatch.backend("cuda")
    compute = backend.running_normalisation

    def count(*arguments: Any) -> Tensor:
        calls.append(len(calls))
        table: Tensor = compute(*arguments)
        return table

    monkeypatch.setattr(backend, "running_normalisation", count)
    return calls


def test_tables_are_computed_once(computed: list[int]) -> None:
    module, bias = norm(), torch.randn(3, device=DEVICE, dtype=FP16)
    for _ in range(3):
        infer(module, bias)
    assert len(computed) == 1
    # The fused convolution has the same table, of another bias.
    with torch.no_grad():
        for _ in range(3):
            depthwise_conv2d_gelu_batch_norm(
                *(image(), filters(), None, module.weight, module.bias),
                *(module.running_mean, module.running_var),
                training=False,
                impl="cuda",
            )
    assert len(computed) == 2


def set_in_place(module: nn.BatchNorm2d) -> None:
    assert module.running_var is not None
    module.running_var.mul_(4)


def load(module: nn.BatchNorm2d) -> None:
    module.load_state_dict({name: each * 2 for name, each in module.state_dict().items()})


def train(module: nn.BatchNorm2d) -> None:
    gelu_batch_norm(
        *(image(), module.weight, module.bias, module.running_mean, module.running_var),
        training=True,
        impl="cuda",
    )


def train_in_pytorch(module: nn.BatchNorm2d) -> None:
    """PyTorch changes the statistics without a new version."""
    gelu_batch_norm(
        *(image(), module.weight, module.bias, module.running_mean, module.running_var),
        training=True,
        impl="torch",
    )


def differentiate(module: nn.BatchNorm2d) -> None:
    """Run with the running statistics, for an optimizer of the parameters."""
    gelu_batch_norm(
        *(image(), module.weight, module.bias, module.running_mean, module.running_var),
        training=False,
        impl="cuda",
    )


def step(module: nn.BatchNorm2d) -> None:
    module.weight.grad = torch.ones_like(module.weight)
    torch.optim.SGD(module.parameters(), lr=1.0).step()


def other_memory(module: nn.BatchNorm2d) -> None:
    module.weight.data = module.weight.data * 3


CHANGES: dict[str, Callable[[nn.BatchNorm2d], object]] = {
    "in place": set_in_place,
    "load_state_dict": load,
    "training": train,
    "training in PyTorch": train_in_pytorch,
    "an optimizer's step": step,
    "other memory": other_memory,
    "half": lambda module: module.half(),
    "double": lambda module: module.double(),
    "to another device and back": lambda module: module.to("meta").to_empty(device=DEVICE),
    "no gamma": lambda module: setattr(module, "weight", None),
    "other buffers": lambda module: setattr(module, "running_mean", torch.ones(3, device=DEVICE)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_is_seen(change: str) -> None:
    module = norm()
    before = infer(module)
    CHANGES[change](module)
    if change == "to another device and back":
        module.load_state_dict({name: each + 1 for name, each in norm().state_dict().items()})
    after = infer(module)
    assert torch.equal(after, expected(module))
    assert change in ("half", "double") or not torch.equal(after, before)


def test_memory_that_tables_were_computed_from_is_not_handed_out_again() -> None:
    """Other numbers at the same address, with the same version, would look the same."""
    mean, var = torch.zeros(3), torch.ones(3)
    sources = inference_tables.Sources(mean, var, None, None, None)
    tables = inference_tables.Tables(torch.zeros(5, 3), None)
    assert inference_tables.keep(sources, (1e-5, "cuda"), -1, lambda: tables) is tables
    assert inference_tables.kept(sources, (1e-5, "cuda"), -1) is tables
    before = mean.data_ptr()
    mean.data = mean.data + 1
    assert inference_tables.kept(sources, (1e-5, "cuda"), -1) is None
    (entry,) = (each for each in inference_tables._entries.values() if each.tables is tables)
    assert entry.storages[0].data_ptr() == before


def test_a_changed_bias_is_seen() -> None:
    module, bias = norm(), torch.ones(3, device=DEVICE, dtype=FP16)
    infer(module, bias)
    bias.mul_(-2)
    assert torch.equal(infer(module, bias), expected(module, bias))


def test_copies_and_pickles_have_tables_of_their_own() -> None:
    module = norm()
    infer(module)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for twin in (copy.deepcopy(module), torch.load(file, weights_only=False)):
        with torch.no_grad():
            twin.weight.mul_(2)
        assert not torch.equal(infer(twin), infer(module))
        assert torch.equal(infer(twin), expected(twin))


def test_nothing_is_kept_of_inference_tensors(computed: list[int]) -> None:
    with torch.inference_mode():
        module = norm()
        before = infer(module)
        module.weight.mul_(2)
        assert not torch.equal(infer(module), before)
        assert len(computed) == 2 and not kept(module)


def test_normal_tensors_are_kept_in_inference_mode(computed: list[int]) -> None:
    module = norm()
    with torch.inference_mode():
        first = infer(module)
    assert torch.equal(first, infer(module)) and len(computed) == 1


def kept(module: nn.BatchNorm2d) -> bool:
    identity = id(module.running_mean)
    return any(identity in key[:5] for key in inference_tables._entries)


def test_captured_graphs_compute_their_own_tables(
    monkeypatch: pytest.MonkeyPatch, computed: list[int]
) -> None:
    """Replays see the statistics of their time, and change them without a new version."""
    module, trained, frozen = norm(), norm(), norm()
    monkeypatch.setattr(inference_tables, "_is_capturing", lambda: True)
    infer(module)
    train(trained)
    assert len(computed) == 1 and not kept(module)
    differentiate(frozen)
    monkeypatch.undo()
    assert not kept(trained) and not kept(frozen)
    for each in (trained, frozen, module):
        infer(each)
    assert kept(module) and not kept(trained) and not kept(frozen)


def test_entries_go_with_their_tensors_and_have_an_upper_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = norm()
    infer(module)
    before = len(inference_tables._entries)
    assert kept(module)
    del module
    assert len(inference_tables._entries) == before - 1
    monkeypatch.setattr(inference_tables, "MOST_ENTRIES", 2)
    modules = [norm() for _ in range(5)]
    for each in modules:
        infer(each)
    assert len(inference_tables._entries) <= 2


def test_threads_have_the_tables_of_their_own_modules() -> None:
    wrong: list[Exception] = []

    def work(seed: int) -> None:
        try:
            module = norm()
            for _ in range(3):
                with torch.no_grad():
                    module.weight.add_(seed)
                assert torch.equal(infer(module), expected(module))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("eps", 0.0, "eps: got 0.0"),
        ("momentum", None, "momentum: got None"),
        ("activation", "tanh", "activation: got 'tanh'"),
        ("impl", "cudnn", "impl: got 'cudnn'"),
        ("gamma", torch.ones(4), r"gamma: got shape \(4,\)"),
        ("running_var", None, "running_var: got None"),
        ("residual", torch.ones(2, 3, 5, 4), "residual: got shape"),
    ],
)
def test_bad_arguments_are_told_after_good_ones(argument: str, value: object, message: str) -> None:
    module = norm()
    arguments: dict[str, Any] = {
        **{"gamma": module.weight, "beta": module.bias, "impl": "cuda", "training": False},
        **{"running_mean": module.running_mean, "running_var": module.running_var},
    }
    with torch.no_grad():
        gelu_batch_norm(image(), **arguments)
        with pytest.raises(ValueError, match=message):
            gelu_batch_norm(image(), **{**arguments, argument: value})
        with pytest.raises(ValueError, match="gamma: got shape"):
            gelu_batch_norm(image(channels=4), **arguments)


# ---- changing batches ----------------------------------------------------------------------------


@pytest.fixture
def skipped() -> Iterator[None]:
    """Launches end before their kernels, on an emulated GPU."""
    if DEVICE != "cpu":
        pytest.skip("counts work of the host, which is the same on a GPU")
    with emulated_gpu.kernels_skipped():
        yield


@pytest.mark.usefixtures("skipped")
def test_the_host_remembers_nothing_of_a_batch_size() -> None:
    module, weight = norm(), filters()

    def run(batch: int) -> None:
        input = torch.empty(batch, 3, 5, 5, dtype=FP16)
        depthwise_conv2d(input, weight, impl="cuda")
        gelu_batch_norm(
            *(input, module.weight, module.bias, module.running_mean, module.running_var),
            training=False,
            impl="cuda",
        )

    with torch.no_grad():
        run(1)
        misses = dispatch._resolve_once.cache_info().misses
        entries = len(inference_tables._entries)
        for batch in range(2, 1000, 7):
            run(batch)
    assert dispatch._resolve_once.cache_info().misses == misses
    assert len(inference_tables._entries) == entries


def test_batches_of_any_size_take_the_triton_kernels_of_a_few() -> None:
    pytest.importorskip("triton")
    from convmixer_kernels.backends.triton import configurations, depthwise_forward
    from convmixer_kernels.backends.triton.launch_context import LaunchContext
    from convmixer_kernels.backends.triton.shape_key import ShapeKey

    context = LaunchContext((9, 0), 132)
    constants = set()
    before = configurations.forward_candidates.cache_info().misses
    for batch in range(1, 1001):
        tensor = torch.empty(batch, 384, 31, 31, device="meta", dtype=FP16)
        key = ShapeKey.of((tensor, tensor), 9)
        found = configurations.forward_candidates(key.of_rounded_batch(), context)[0]
        configuration = configurations.for_batch(found, key)
        assert 1 <= configuration.splits <= found.splits
        tiles = batch * key.tiles_across * configuration.row_blocks
        assert configuration.splits <= -(-tiles // configuration.tiles)
        constants.add(
            str(depthwise_forward.constants(key, configuration, False, "identity"))
            + str(depthwise_forward.launching.options(configuration))
        )
    assert configurations.forward_candidates.cache_info().misses - before <= 11
    assert len(constants) <= 11


# ---- CUDA graphs ---------------------------------------------------------------------------------

# These wait for the GPU to read a value, which no operation may while a graph is captured.
SYNCHRONISING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::item", "aten::equal"}


class Called(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


def small(dw_impl: str = "cuda") -> ConvMixer:
    return ConvMixer(8, 2, 3, 4, 10, dw_impl=dw_impl).to(DEVICE, FP16)


@pytest.mark.usefixtures("skipped")
def test_no_operation_waits_for_the_gpu() -> None:
    model, images = small(), torch.randn(2, 3, 16, 16).half()
    with Called() as called:
        outputs: Tensor = model.train()(images)
        outputs.float().sum().backward()
        with torch.no_grad():
            model.eval()(images)
    assert {name for name in called.names if name.startswith("convmixer_kernels::")}
    assert not called.names & SYNCHRONISING


def test_the_extension_neither_allocates_nor_waits() -> None:
    """PyTorch owns all memory, so that a graph can be captured and replayed."""
    sources = [
        path.read_text()
        for path in emulated_gpu.CSRC.rglob("*")
        if path.suffix in (".cpp", ".cu", ".cuh", ".h") and "interpreter" not in path.parts
    ]
    assert len(sources) > 10
    for word in ("cudaMalloc", "cudaFree", "cudaMemcpy", "Synchronize", "cudaStreamCreate"):
        assert not any(word in text for text in sources)


@pytest.mark.skipif(DEVICE == "cpu", reason="captures CUDA graphs")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("impl", KERNELS)
def test_a_model_is_captured_and_replayed(impl: str, training: bool) -> None:
    torch.manual_seed(0)
    model = small(impl).train(training)
    images = torch.randn(8, 3, 16, 16, device=DEVICE, dtype=FP16)
    expected = copy.deepcopy(model)(images)
    state = {name: each.clone() for name, each in model.state_dict().items()}
    graphed = torch.cuda.make_graphed_callables(model, (images,))
    model.load_state_dict(state)
    output = graphed(images)
    torch.testing.assert_close(output, expected, rtol=1e-2, atol=1e-2)
    if training:
        output.float().square().sum().backward()
        assert all(each.grad is not None for each in model.parameters())
