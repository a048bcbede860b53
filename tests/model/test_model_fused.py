"""ConvMixer on the fused operations: same model, fewer passes.

"steps" is their specification in plain PyTorch; it takes float32, where differences are roundings.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from convmixer import ConvMixer
from convmixer.model import fused_block, layers
from convmixer_kernels import functional, inference_tables
from tests.helpers import fused_cases
from tests.helpers.fused_cases import DEVICE, Use
from tests.model.test_pointwise import copies_of

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]

FUSED = (
    "forward_normalised",
    "forward_moments",
    "moments",
    "normalise",
    "gradient_sums",
    "value_gradient",
    "fused_backward",
)
# Interpreting Triton takes half a minute for ten steps, and what surrounds its kernels is the same.
every_implementation = pytest.mark.parametrize("name", ["steps", "cuda"])


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Turn the name of an implementation into a value of `dw_impl`."""

    def dw_impl(name: str) -> str:
        if name == "steps":
            monkeypatch.setattr(functional, "_in_pytorch", lambda *_: False)
            monkeypatch.setattr(layers, "runs_kernels", lambda *_: True)
        return "auto" if name == "steps" else name

    return dw_impl


def test_a_block_asks_who_runs_fused_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements of the convolution alone may give it to PyTorch."""
    monkeypatch.setattr(
        fused_block.dispatch, "resolve", lambda *_, fused=False: "cuda" if fused else "torch"
    )
    assert fused_block.runs_kernels(torch.zeros(1, 8, 7, 7), torch.zeros(8, 1, 3, 3), "auto")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps of fused operations that are run, in their order."""
    return fused_cases.record_steps(monkeypatch, FUSED)


def dtype_of(name: str) -> torch.dtype:
    return torch.float32 if name == "steps" else torch.float16


def small(dw_impl: str, **arguments: object) -> ConvMixer:
    """Build a small model whose affine parameters and running statistics change every value."""
    torch.manual_seed(0)
    options = {"dim": 6, "depth": 2, "kernel_size": 5, "patch_size": 2, "n_classes": 5}
    model = ConvMixer(**{**options, **arguments}, dw_impl=dw_impl)  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return model.to(DEVICE)


def images(*size: int, seed: int = 1) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def results(
    model: ConvMixer, batch: Tensor, gradient: Tensor, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Output, gradients and buffers of a step; half precision by autocast."""
    model.zero_grad()
    batch = batch.clone().requires_grad_()
    with torch.autocast(DEVICE, dtype, enabled=dtype == torch.float16):
        output = model(batch)
    output.backward(gradient.to(output.dtype))
    return {
        "output": output.detach(),
        "input": batch.grad,
        **{name: parameter.grad for name, parameter in model.named_parameters()},
        **{name: buffer.clone() for name, buffer in model.named_buffers()},
    }  # type: ignore[return-value]


def assert_same_step(fused: ConvMixer, name: str, size: tuple[int, ...] = (3, 3, 13, 18)) -> None:
    """`fused` does what its modules do in PyTorch: within twice PyTorch's distance from float64.

    PyTorch may come near by chance in a gradient of six numbers, so the root mean square of its
    distances in all gradients counts where it is larger.
    """
    plain, exact = copy.deepcopy(fused), copy.deepcopy(fused).double()
    for model in (plain, exact):
        for module in model.modules():
            if hasattr(module, "impl"):
                module.impl = "torch"
    batch, gradient = images(*size), images(size[0], 5, seed=2)
    dtype = dtype_of(name)
    actual = results(fused, batch, gradient, dtype)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(layers, "runs_kernels", lambda *_: False)
        pytorch = results(plain, batch, gradient, dtype)
        wanted = results(exact, batch.double(), gradient.double(), torch.float64)
    assert actual.keys() == wanted.keys()
    for result, tensor in wanted.items():
        assert actual[result].dtype == pytorch[result].dtype, result
        if not tensor.is_floating_point():
            assert torch.equal(actual[result], tensor), result
    ours, theirs = distances(actual, wanted), distances(pytorch, wanted)
    gradients = {"input", *(name for name, _ in exact.named_parameters())}
    typical = math.sqrt(statistics.fmean(theirs[result] ** 2 for result in gradients))
    floor = {torch.float16: 2e-3, torch.float32: 1e-5}[dtype]
    for result, error in ours.items():
        allowed = 2 * max(theirs[result], typical if result in gradients else 0) + floor
        assert error <= allowed, f"{result}: error {error:.2e}, allowed {allowed:.2e}"


def distances(results: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    """Return the distance of each result from what is wanted, relative to its norm.

    Normalisation takes away what the biases before it add, so that little or nothing is left of
    their gradients. Those of the weight beside them are sums of as many terms, and give the scale.
    """
    found = {}
    for name, tensor in wanted.items():
        if not tensor.is_floating_point():
            continue
        scale = tensor.norm().item()
        of_weight = wanted.get(f"{name.removesuffix('bias')}weight")
        if name.endswith(".bias") and of_weight is not None:
            scale = max(scale, of_weight.norm().item() / math.sqrt(of_weight[0].numel()))
        found[name] = (results[name].double() - tensor).norm().item() / scale
    return found


# ---- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation": "relu", "kernel_size": 8},
        {"residual": "none"},
        {"residual": "both"},
        {"stacked": 2},
        {"stacked": 3, "residual": "none", "kernel_size": 3},
        {"stem": "resnet"},
    ],
    ids=str,
)
@every_implementation
def test_a_step_of_every_form(
    name: str, options: dict[str, object], training: bool, use: Use, calls: list[str]
) -> None:
    model = small(use(name), **options).train(training)
    assert_same_step(model, name)
    assert calls


@every_implementation
def test_channels_last(name: str, use: Use, calls: list[str]) -> None:
    model = small(use(name)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert_same_step(model, name)
    batch = images(2, 3, 12, 16).to(memory_format=torch.channels_last)
    with torch.autocast(DEVICE, torch.float16, enabled=name == "cuda"):
        features = model.forward_features(batch)
    assert calls and features.is_contiguous(memory_format=torch.channels_last)


@every_implementation
def test_channels_are_outermost_between_blocks(name: str, use: Use) -> None:
    model = small(use(name))
    with torch.autocast(DEVICE, torch.float16, enabled=name == "cuda"):
        _, features = model.forward_intermediates(images(3, 3, 12, 16))
    assert [tensor.stride() for tensor in features] == [(48, 144, 8, 1)] * 2


def every_norm(change: Callable[[nn.BatchNorm2d], object]) -> Callable[[ConvMixer], None]:
    def apply(model: ConvMixer) -> None:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                change(module)

    return apply


def freeze_some(model: ConvMixer) -> None:
    model.stem[2].eval()
    model.blocks[0][0].fn[2].eval()
    model.blocks[1][3].eval()


def cumulative(norm: nn.BatchNorm2d) -> None:
    norm.momentum = None


def without_affine(norm: nn.BatchNorm2d) -> None:
    norm.affine, norm.weight, norm.bias = False, None, None


def untracked(norm: nn.BatchNorm2d) -> None:
    norm.track_running_stats = False
    norm.running_mean = norm.running_var = norm.num_batches_tracked = None


def tracking_stopped(norm: nn.BatchNorm2d) -> None:
    """Buffers stay, and are used in evaluation, but training does not touch them any more."""
    norm.track_running_stats = False


def without_bias(model: ConvMixer) -> None:
    for block in model.blocks:
        block[0].fn[0].bias = block[1].bias = None


@pytest.mark.parametrize(
    "change",
    [
        freeze_some,
        every_norm(cumulative),
        every_norm(without_affine),
        every_norm(untracked),
        every_norm(tracking_stopped),
        without_bias,
    ],
    ids=["frozen", "cumulative", "no affine", "untracked", "tracking stopped", "no bias"],
)
@pytest.mark.parametrize("training", [True, False])
@every_implementation
def test_every_state_of_the_norms(
    name: str, training: bool, change: Callable[[ConvMixer], None], use: Use, calls: list[str]
) -> None:
    model = small(use(name)).train(training)
    change(model)
    for _ in range(2):
        assert_same_step(model, name)
    assert calls


@every_implementation
def test_frozen_parameters(name: str, use: Use, calls: list[str]) -> None:
    """Fine-tuning of the last block and the head: nothing before it is differentiated."""
    model = small(use(name))
    for part in (model.stem, model.blocks[0]):
        part.requires_grad_(False)
    with torch.autocast(DEVICE, torch.float16, enabled=name == "cuda"):
        output = model(images(3, 3, 12, 16))
    calls.clear()
    output.sum().backward()
    assert calls == ["gradient_sums", "value_gradient", "gradient_sums", "fused_backward weight"]


# ---- which path ----------------------------------------------------------------------------------


@every_implementation
def test_evaluation_is_one_kernel_for_each_convolution(
    name: str, use: Use, calls: list[str]
) -> None:
    model = small(use(name)).eval()
    state = copy.deepcopy(model.state_dict())
    with torch.no_grad(), torch.autocast(DEVICE, torch.float16, enabled=name == "cuda"):
        model(images(3, 3, 12, 16))
    assert calls == ["normalise", *["forward_normalised", "normalise"] * 2]
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


@every_implementation
def test_training_passes(name: str, use: Use, calls: list[str]) -> None:
    model = small(use(name))
    with torch.autocast(DEVICE, torch.float16, enabled=name == "cuda"):
        output = model(images(3, 3, 12, 16))
    half = ["moments", "normalise"]
    assert calls == half + ["forward_moments", "normalise", *half] * 2
    calls.clear()
    output.sum().backward()
    half = ["gradient_sums", "value_gradient"]
    assert calls == [*half, "gradient_sums", "fused_backward input weight"] * 2 + half


def test_pytorch_when_asked_for(calls: list[str]) -> None:
    small("torch")(images(3, 3, 12, 16)).sum().backward()
    assert calls == []


@pytest.mark.skipif(DEVICE != "cpu", reason="a GPU has kernels")
def test_auto_on_the_cpu_is_pytorch(calls: list[str]) -> None:
    small("auto")(images(3, 3, 12, 16)).sum().backward()
    assert calls == []


class DoublingGELU(nn.GELU):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def hook(kind: str) -> Callable[[nn.Module, list[str]], None]:
    def register(module: nn.Module, fired: list[str]) -> None:
        def note(*_: object) -> None:
            fired.append(kind)

        getattr(module, f"register_{kind}_hook")(note)

    return register


def square_output(module: nn.Module, fired: list[str]) -> None:
    module.register_forward_hook(lambda *args: args[-1].square())
    fired.append("square")


def patch_forward(module: nn.Module, fired: list[str]) -> None:
    original = module.forward
    module.forward = lambda input: (fired.append("patched"), original(input))[1]  # type: ignore[method-assign]


HOOKS = {
    kind: hook(kind) for kind in ("forward", "forward_pre", "full_backward", "full_backward_pre")
} | {"square": square_output, "patch": patch_forward}


@pytest.mark.parametrize("place", ["0", "0.fn", "0.fn.0", "0.fn.1", "0.fn.2", "1", "2", "3"])
@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_fire(kind: str, place: str, use: Use, calls: list[str]) -> None:
    """A module that somebody looks into runs as it is; the other block stays fused."""
    model = small(use("steps"))
    plain = copy.deepcopy(model)
    fired: list[str] = []
    HOOKS[kind](model.blocks[0].get_submodule(place), fired)
    output = model(images(3, 3, 12, 16))
    output.sum().backward()
    assert fired and calls.count("forward_moments") == 1
    assert calls.count("fused_backward input weight") == 1
    assert (kind == "square") == (
        not torch.allclose(output, plain(images(3, 3, 12, 16)), atol=1e-4)
    )


@pytest.mark.parametrize("place", ["1", "2"])
def test_hooks_in_the_stem_fire(place: str, use: Use, calls: list[str]) -> None:
    model = small(use("steps"))
    fired: list[str] = []
    HOOKS["forward"](model.stem.get_submodule(place), fired)
    model(images(3, 3, 12, 16))
    assert fired and calls.count("moments") == 2


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_around_fused_modules_fire(kind: str, use: Use, calls: list[str]) -> None:
    model = small(use("steps"))
    fired: list[str] = []
    for module in (model.blocks[0], model.stem, model.stem[0], model.head):
        HOOKS[kind](module, fired)
    model(images(3, 3, 12, 16)).sum().backward()
    assert len(fired) == 4 and calls.count("fused_backward input weight") == 2


@torch.no_grad()
@pytest.mark.parametrize("place", ["stem.2", "blocks.0.0.fn.2", "blocks.1.3"])
def test_statistics_that_hooked_norms_have_trained_are_seen(place: str, use: Use) -> None:
    """PyTorch trains them without a new version, by which inference knows that tables are old."""
    model = small(use("cuda")).half().eval()
    batch = images(2, 3, 8, 8).half()
    before = model(batch)
    norm = model.get_submodule(place)
    hook = norm.register_forward_hook(lambda *_: None)
    norm.train()
    model(batch)
    hook.remove()
    model.eval()
    after = model(batch)
    assert torch.equal(after, copy.deepcopy(model)(batch)) and not torch.equal(after, before)


@pytest.mark.parametrize("trained", ["running_mean", "bias"])
@pytest.mark.parametrize("place", ["stem.2", "blocks.0.0.fn.2", "blocks.1.3"])
def test_what_a_graph_of_hooked_norms_trains_is_seen(
    place: str, trained: str, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replays train statistics, or parameters beside frozen statistics, without a new version."""
    model = small(use("cuda")).half().eval()
    batch = images(2, 3, 8, 8).half()
    norm = model.get_submodule(place)
    hook = norm.register_forward_hook(lambda *_: None)
    norm.train(trained == "running_mean")
    monkeypatch.setattr(inference_tables, "_is_capturing", lambda: True)
    with torch.set_grad_enabled(trained == "bias"):
        model(batch)
    monkeypatch.setattr(inference_tables, "_is_capturing", lambda: False)
    hook.remove()
    model.eval()
    with torch.no_grad():
        before = model(batch)
        getattr(norm, trained).data.add_(1)
        after = model(batch)
        assert torch.equal(after, copy.deepcopy(model)(batch)) and not torch.equal(after, before)


def test_global_hooks_fire(use: Use, calls: list[str]) -> None:
    model = small(use("steps"))
    seen = set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.add(module))
    try:
        model(images(3, 3, 12, 16))
    finally:
        handle.remove()
    # The container of the blocks is not called itself.
    assert seen == set(model.modules()) - {model.blocks} and calls == []


def change_activation(block: nn.Module) -> None:
    block[2] = DoublingGELU()  # type: ignore[operator]


def change_approximation(block: nn.Module) -> None:
    block[0].fn[1] = nn.GELU(approximate="tanh")  # type: ignore[index, operator]


def change_norm(block: nn.Module) -> None:
    block[3] = nn.InstanceNorm2d(6)  # type: ignore[operator]


def change_pointwise(block: nn.Module) -> None:
    block[1] = nn.Conv2d(6, 6, 1, groups=2)  # type: ignore[operator]


def pad_in_a_circle(block: nn.Module) -> None:
    block[0].fn[0].padding_mode = "circular"  # type: ignore[index, union-attr]


def parametrise(block: nn.Module) -> None:
    parametrizations.weight_norm(block[0].fn[0])  # type: ignore[index, operator]


def prune_weights(block: nn.Module) -> None:
    with torch.no_grad():
        prune.l1_unstructured(block[1], "weight", 0.5)  # type: ignore[index, operator]


@pytest.mark.parametrize(
    "change",
    [
        change_activation,
        change_approximation,
        change_norm,
        change_pointwise,
        pad_in_a_circle,
        parametrise,
        prune_weights,
    ],
)
def test_other_modules_run_as_they_are(
    change: Callable[[nn.Module], None], use: Use, calls: list[str]
) -> None:
    model = small(use("steps"))
    change(model.blocks[0])
    model.to(DEVICE)
    assert_same_step(model, "steps")
    assert calls.count("forward_moments") == 1


def test_layer_norm_runs_as_it_is(use: Use, calls: list[str]) -> None:
    model = small(use("steps"), norm="layer")
    assert_same_step(model, "steps")
    assert calls == []


def test_features_of_another_dtype_than_autocast() -> None:
    """PyTorch promotes their sum with a branch of lower precision."""
    features = images(3, 6, 6, 8)
    with torch.autocast(DEVICE, torch.float16):
        assert not fused_block.runs_kernels(features, None, "cuda")
        assert fused_block.runs_kernels(features.half(), None, "cuda")
        assert small("cuda").blocks[0][0](features).dtype == torch.float32
    assert not fused_block.runs_kernels(features[0].half(), None, "cuda")


# ---- around the model ----------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, None])
@every_implementation
def test_gradient_checkpointing_updates_statistics_once(
    name: str, momentum: float | None, use: Use, calls: list[str]
) -> None:
    plain = small(use(name))
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = momentum
    checkpointed = copy.deepcopy(plain)
    checkpointed.set_grad_checkpointing()
    for step in range(2):
        batch, gradient = images(2, 3, 12, 16, seed=step), images(2, 5, seed=step)
        expected = results(plain, batch, gradient, dtype_of(name))
        calls.clear()
        actual = results(checkpointed, batch, gradient, dtype_of(name))
        assert calls.count("forward_moments") == 4
        for result, tensor in expected.items():
            assert torch.equal(actual[result], tensor), result


@pytest.mark.parametrize(
    ("name", "checkpointing"),
    [
        *(("steps", False), ("cuda", False), ("cuda", True)),
        pytest.param("steps", True, marks=pytest.mark.repeats),
    ],
)
def test_compiles_as_a_whole(name: str, checkpointing: bool, use: Use) -> None:
    torch._dynamo.reset()
    model = small(use(name))
    model.set_grad_checkpointing(checkpointing)
    expected = copy.deepcopy(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for step in range(2):
        batch, gradient = images(2 + step, 3, 12, 16, seed=step), images(2 + step, 5, seed=step)
        wanted = results(expected, batch, gradient, dtype_of(name))
        actual = results(compiled, batch, gradient, dtype_of(name))  # type: ignore[arg-type]
        for result, tensor in wanted.items():
            ours = actual.get(result, actual.get(f"_orig_mod.{result}"))
            torch.testing.assert_close(ours, tensor, msg=lambda text, r=result: f"{r}: {text}")
    model.eval()
    expected.eval()
    with torch.no_grad(), torch.autocast(DEVICE, torch.float16, enabled=name == "cuda"):
        torch.testing.assert_close(compiled(batch), expected(batch))
    torch._dynamo.reset()


@pytest.mark.parametrize("channels_last", [False, True])
def test_features_are_not_copied(channels_last: bool) -> None:
    """PyTorch copies nothing; the gradient of the pooling takes its layout from the backend."""
    model = small("cuda", depth=3).half()
    batch = images(7, 3, 10, 22).half()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        batch = batch.to(memory_format=torch.channels_last)

    def train() -> None:
        model(batch).sum().backward()

    train()
    # PyTorch's own pooling uses aten::copy_ inside on the CPU; on a GPU its backward pass may clone
    # the gradient that it gets.
    allowed = {0} if DEVICE == "cpu" else {0, 1, 2}
    assert copies_of(7 * 6 * 5 * 11, train).count("aten::clone") in allowed


@pytest.mark.parametrize("name", ["cuda", pytest.param("triton", marks=pytest.mark.repeats)])
def test_ten_steps_follow_float32(name: str) -> None:
    """Loss of training in half precision on kernels, beside unfused training in float32."""

    def losses(dw_impl: str, half: bool) -> list[float]:
        model = small(dw_impl, dim=4, kernel_size=3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
        curve = []
        for step in range(10):
            batch = images(5, 3, 12, 12, seed=step % 2)
            labels = torch.arange(5, device=DEVICE)
            with torch.autocast(DEVICE, torch.float16, enabled=half):
                loss = F.cross_entropy(model(batch), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        return curve

    fused, unfused = losses(name, half=True), losses("torch", half=False)
    assert unfused[-1] < 0.75 * unfused[0]
    assert fused == pytest.approx(unfused, rel=0.01)


@every_implementation
def test_synchronised_norms_without_processes(name: str, use: Use, calls: list[str]) -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(small(use(name)))
    expected = small(use(name))
    batch, gradient = images(3, 3, 12, 16), images(3, 5)
    wanted = results(expected, batch, gradient, dtype_of(name))
    fused = list(calls)
    calls.clear()
    actual = results(model, batch, gradient, dtype_of(name))
    assert calls == fused and "fused_backward input weight" in calls
    for result, tensor in wanted.items():
        assert torch.equal(actual[result], tensor), result


@pytest.mark.skipif(DEVICE == "cuda", reason="the names are those of no implementation")
def test_inference_asks_for_each_operation_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of "auto", the convolution and what follows the product may run elsewhere."""
    names = []

    def run(input: Tensor, *arguments: object) -> Tensor:
        names.append(arguments[-1])
        return input

    monkeypatch.setattr(
        fused_block.dispatch,
        "at_once",
        lambda _, device, dtype, filter, fused: "second" if filter is None else "first",
    )
    monkeypatch.setattr(fused_block.inference, "convolved", run)
    monkeypatch.setattr(fused_block.inference, "normalised", run)
    block = ConvMixer(8, 1, kernel_size=3, patch_size=4, n_classes=10).eval().blocks[0]
    with torch.no_grad():
        block(torch.randn(1, 8, 4, 4))
    assert names == ["first", "second"]
