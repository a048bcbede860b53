"""CUDA graphs replay the passes of training, to the same results.

Without a GPU a stand-in for `torch.cuda.make_graphed_callables` treats memory as it does.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convmixer import ConvMixer
from convmixer.config.settings import Config
from convmixer.errors import UsageError
from convmixer.training import environment, stepper, trainer
from convmixer.training.distributed import Processes
from convmixer.training.environment import autocast
from convmixer.training.runs import train
from convmixer.training.scoring import score
from convmixer.training.stepper import Stepper
from tests.helpers.training import assert_same_state, tiny_config

CPU, GPU = torch.device("cpu"), torch.device("cuda")
IMAGES = 16
"""Images of a part of a batch."""
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"accumulation_steps": 2},
    "averages": {"ema_decay": 0.9, "optimizer__clip_grad_norm": 0.1},
}


def _replay_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the stand-in replay training on the CPU."""
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", _make_graphed_callables)
    for module in (environment, stepper, trainer):
        monkeypatch.setattr(module, "replays_cuda_graphs", lambda config, _: config.cuda_graphs)


def _make_graphed_callables(module: nn.Module, samples: tuple[Tensor, ...]) -> nn.Module:
    """Give `module` a forward pass like that of PyTorch's function of this name.

    It warms up, writes every gradient to the same memory, and uses this memory in forward passes.
    """
    (images,) = samples
    parameters = tuple(module.parameters())
    gradients = [torch.empty_like(parameter) for parameter in parameters]
    forward = module.forward
    for _ in range(3):
        torch.autograd.grad(forward(images).sum(), parameters)

    class Replayed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, new: Tensor, *_: Tensor) -> Tensor:
            images.copy_(new)
            for gradient in gradients:
                gradient.fill_(torch.nan)
            with torch.enable_grad():
                ctx.output = forward(images)
            return ctx.output.detach()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Any:
            found = torch.autograd.grad(ctx.output, parameters, gradient)
            for static, each in zip(gradients, found, strict=True):
                static.copy_(each)
            return None, *(static.detach() for static in gradients)

    def replayed(new: Tensor) -> Tensor:
        return Replayed.apply(new, *parameters) if module.training else forward(new)

    module.forward = replayed
    return module


def _stepper(place: torch.device, cuda_graphs: bool, **changes: Any) -> Stepper:
    """Return a stepper with its model, and with graphs if they are wanted."""
    torch.manual_seed(0)
    parts = changes.get("accumulation_steps", 1)
    config = tiny_config(cuda_graphs=cuda_graphs, batch_size=parts * IMAGES, **changes)
    found = Stepper(config, Processes(place))
    if cuda_graphs:
        found.capture(IMAGES)
    return found


def _batches(device: torch.device, parts: int, overflows: bool = False) -> Iterator[list[Any]]:
    """Three batches; if `overflows`, the gradients of the second are infinite."""
    generator = torch.Generator().manual_seed(3)
    for number in range(3):
        batch = []
        for _ in range(parts):
            images = torch.randn(IMAGES, 1, 8, 8, generator=generator)
            targets = F.one_hot(torch.randint(10, (IMAGES,), generator=generator), 10).float()
            if overflows and number == 1:
                targets *= 1e38
            batch.append((images.to(device), targets.to(device)))
        yield batch


def _trained(found: Stepper, overflows: bool = False) -> tuple[dict[str, Any], list[float]]:
    """Return the state after three steps, and the loss of an evaluation before and after each."""
    device = found.processes.device
    labels = torch.arange(IMAGES, device=device) % 10
    images = torch.linspace(-1, 1, IMAGES * 64, device=device).view(IMAGES, 1, 8, 8)

    def loss() -> float:
        evaluated = score(found.evaluated, [(images, labels)], found.config, found.processes)
        return evaluated.means.loss

    losses = [loss()]
    found.parallel.train()
    for number, batch in enumerate(_batches(device, found.parts, overflows)):
        found.step(iter(batch), rate=0.01, number=number)
        losses.append(loss())
    return found.state(), losses


# ---- without a GPU -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_that_are_replayed_are_those_that_are_not(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, losses = _trained(_stepper(CPU, False, **SETTINGS[name]))
    _replay_on_the_cpu(monkeypatch)
    state, found = _trained(_stepper(CPU, True, **SETTINGS[name]))
    assert_same_state(state, expected)
    assert found == losses


def test_a_replayed_step_with_infinite_gradients_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stepper, "effective_amp", lambda *_: "fp16")
    expected, _ = _trained(_stepper(CPU, False), overflows=True)
    _replay_on_the_cpu(monkeypatch)
    state, _ = _trained(_stepper(CPU, True), overflows=True)
    assert_same_state(state, expected)
    assert state["scaler"]["scale"] == 2.0**15


def test_capturing_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _stepper(CPU, False, ema_decay=0.9).state()
    before = torch.random.get_rng_state()
    _replay_on_the_cpu(monkeypatch)
    found = _stepper(CPU, True, ema_decay=0.9)
    assert_same_state(found.state(), expected)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in found.model.parameters())
    assert type(found.model).forward is found.model.forward.__func__


def test_a_replayed_run_is_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    _replay_on_the_cpu(monkeypatch)
    first, second = _stepper(CPU, True), _stepper(CPU, True)
    _trained(first)
    second.load_state(copy.deepcopy(first.state()))
    assert_same_state(_trained(second)[0], _trained(first)[0])


def test_a_run_is_that_without_graphs(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    captured: list[torch.Size] = []

    def noted(module: nn.Module, samples: tuple[Tensor, ...]) -> nn.Module:
        captured.append(samples[0].shape)
        return _make_graphed_callables(module, samples)

    config = {"epochs": 1, "accumulation_steps": 2}
    expected = train(tiny_config(**config), tmp_path / "plain", silent=True)
    _replay_on_the_cpu(monkeypatch)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", noted)
    found = train(tiny_config(cuda_graphs=True, **config), tmp_path / "graphs", silent=True)
    assert captured == [(160, 1, 8, 8)]
    assert found["test_loss"] == expected["test_loss"]


def test_on_a_cpu_nothing_is_captured(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    def refused(*_: Any) -> None:
        raise AssertionError("captured on a CPU")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refused)
    train(tiny_config(epochs=1, cuda_graphs=True), tmp_path / "run", silent=True)


@pytest.mark.parametrize("name", ["compile", "gradient_checkpointing"])
def test_settings_that_do_not_go_together_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"cuda_graphs true works with {name} false, got {name} t"):
        tiny_config(cuda_graphs=True, **{name: True})
    assert getattr(tiny_config(**{name: True}), name)


@pytest.mark.parametrize(("world", "stands_for"), [(2, 1), (1, 2)])
def test_runs_of_several_processes_are_refused(world: int, stands_for: int) -> None:
    with pytest.raises(
        UsageError, match="in a run that was started as one process, got a run of 2 p"
    ):
        Stepper(tiny_config(cuda_graphs=True), Processes(GPU, 0, world), 2, stands_for)


@pytest.mark.parametrize("wanted", [False, True])
def test_casts_are_not_cached_where_graphs_replay_them(wanted: bool) -> None:
    config: Config = tiny_config(cuda_graphs=wanted, amp="bf16")
    with warnings.catch_warnings():
        # PyTorch turns autocast off where it sees no GPU.
        warnings.simplefilter("ignore")
        with autocast(config, GPU):
            assert torch.is_autocast_cache_enabled() != wanted


# ---- on a GPU ------------------------------------------------------------------------------------

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
ON_GPU: dict[str, Any] = {
    "device": "cuda",
    "model__dim": 32,
    "model__depth": 2,
    "model__kernel_size": 5,
    "model__dw_impl": "auto",
    # With a smaller one AdamW makes steps of equal size of gradients that are roundings.
    "optimizer__eps": 1e-2,
}


def _assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], start: Any) -> None:
    """Compare weights and statistics, each to a twentieth of how far training moved them all."""
    for statistics in (False, True):
        names = [
            name
            for name, tensor in expected.items()
            if tensor.is_floating_point() and ("running" in name) == statistics
        ]
        moved, apart = (
            torch.cat([(expected[name] - other[name]).flatten() for name in names]).norm()
            for other in (start, found)
        )
        assert moved > 0 and apart <= 0.05 * moved
    for name in expected:
        if not expected[name].is_floating_point():
            assert torch.equal(found[name], expected[name])


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    ("name", "amp"), [*itertools.product(SETTINGS, ("none", "fp16")), ("overflow", "fp16")]
)
def test_graphs_of_a_gpu_train_as_its_launches(name: str, amp: str) -> None:
    changes = ON_GPU | SETTINGS.get(name, {}) | {"amp": amp}
    overflows = name == "overflow"
    plain, graphed = (_stepper(GPU, wanted, **changes) for wanted in (False, True))
    start = copy.deepcopy(plain.state())
    assert_same_state(graphed.state(), start)
    expected, losses = _trained(plain, overflows)
    state, found = _trained(graphed, overflows)
    for key, weights in expected.items():
        if key.startswith("state_dict") and weights is not None:
            _assert_close(state[key], weights, start[key])
    assert found == pytest.approx(losses, rel=1e-2)
    assert state["scaler"] == expected["scaler"]
    if overflows:
        assert state["scaler"]["scale"] < 2.0**16


@pytest.mark.gpu
@needs_gpu
def test_graphs_draw_nothing_at_random_and_do_not_warn() -> None:
    found = _stepper(GPU, False, **ON_GPU)
    before = torch.cuda.get_rng_state()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The AccumulateGrad node's stream does not match")
        found.capture(IMAGES)
        _trained(found)
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.gpu
@needs_gpu
def test_a_run_with_graphs_on_a_gpu_is_that_without(tmp_path: Any) -> None:
    """Images come from other processes, through pinned memory and a side stream."""
    changes = {"epochs": 2, "amp": "fp16", "accumulation_steps": 2, "ema_decay": 0.9}
    loading = {"data__device_resident": "false", "data__workers": 2}
    plain, graphed = (
        train(
            tiny_config(cuda_graphs=wanted, **(ON_GPU | changes | loading)),
            tmp_path / str(wanted),
            silent=True,
        )
        for wanted in (False, True)
    )
    assert graphed["test_loss"] == pytest.approx(plain["test_loss"], rel=0.05)


@pytest.mark.gpu
@needs_gpu
def test_evaluation_sees_the_statistics_of_replays() -> None:
    """Replays count no version of them, by which inference knows that its tables are old."""
    torch.manual_seed(0)
    arguments: Any = {"dim": 32, "depth": 2, "kernel_size": 5, "patch_size": 1, "n_classes": 10}
    model, twin = (ConvMixer(**arguments).cuda().half() for _ in range(2))
    images = torch.randn(IMAGES, 3, 8, 8, device="cuda", dtype=torch.float16)

    def evaluated(module: nn.Module) -> Tensor:
        with torch.no_grad():
            return module.eval()(images)

    found = [evaluated(model)]
    torch.cuda.make_graphed_callables(model.train(), (images.clone(),))
    for shift in range(3):
        model.train()(images + shift)
        found.append(evaluated(model))
        twin.load_state_dict(model.state_dict())
        torch.testing.assert_close(found[-1], evaluated(twin))
        assert not torch.equal(found[-1], found[-2])
