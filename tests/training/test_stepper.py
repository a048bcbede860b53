"""One optimizer step: what reaches model, gradient scaler, optimizer and moving average."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convmixer import ConvMixer
from convmixer.training import stepper
from convmixer.training.distributed import Processes
from convmixer.training.environment import memory_format
from convmixer.training.optimizer import build_optimizer
from convmixer.training.scoring import score
from convmixer.training.stepper import Stepper, shares_statistics
from tests.helpers.training import assert_same_state, tiny_config

CPU = torch.device("cpu")
COLOUR = {"model__in_chans": 3, "data__mean": [0.5] * 3, "data__std": [0.2] * 3}


def _stepper(**changes) -> Stepper:
    torch.manual_seed(0)
    return Stepper(tiny_config(**changes), Processes(CPU))


def _batch(channels: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    targets = F.one_hot(torch.randint(10, (16,), generator=generator), 10).float()
    return torch.randn(16, channels, 8, 8, generator=generator), targets


def _step(stepper: Stepper, number: int = 0, **batch) -> None:
    stepper.step(iter([_batch(**batch)]), rate=0.01, number=number)


def _inputs(model: nn.Module) -> list[Tensor]:
    """A list that every input of the model is added to."""
    inputs: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    return inputs


def _gradient_norms(stepper: Stepper) -> list[float]:
    """A list that the norm of the gradients is added to in every step of the optimizer."""
    norms: list[float] = []

    def keep(optimizer, *_):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norms.append(float(torch.cat([p.grad.flatten() for p in parameters]).norm()))

    stepper.optimizer.register_step_pre_hook(keep)
    return norms


@pytest.fixture
def scaled(monkeypatch):
    """fp16 with its gradient scaler, on the CPU and without autocast."""
    monkeypatch.setattr(stepper, "effective_amp", lambda config, _: config.amp)
    return {"amp": "fp16"}


def test_loss_and_hits_are_those_of_soft_targets():
    soft = torch.randn(16, 10, generator=torch.Generator().manual_seed(5)).softmax(1)
    plain = _stepper(model__norm="layer")
    inputs = _inputs(plain.model)
    images, _ = _batch()
    logits = plain.model(images).detach()
    plain.step(iter([(images, soft)]), rate=0.01, number=0)
    assert torch.equal(inputs[1], images)
    count, loss, right = plain.sums.tolist()
    assert count == 16 and right == (logits.argmax(1) == soft.argmax(1)).sum()
    assert loss == pytest.approx(16 * float(F.cross_entropy(logits, soft)), rel=1e-5)


@pytest.mark.parametrize(("images", "expected"), [(0.0, [0.0, 0.0]), (16.0, [3.0, math.nan])])
def test_a_metric_that_a_saved_epoch_lacks_has_no_value_in_it(images, expected):
    state = _stepper().state()
    resumed = _stepper()
    resumed.load_state(state | {"epoch_sums": torch.tensor([images, expected[0]])})
    torch.testing.assert_close(
        resumed.sums.tolist(), [images, *expected], rtol=0, atol=0, equal_nan=True
    )


def test_scaled_gradients_are_clipped_at_their_true_size(scaled):
    clipped = _stepper(**scaled, optimizer__clip_grad_norm=1e-2)
    assert clipped.scaler.is_enabled()
    norms = _gradient_norms(clipped)
    _step(clipped)
    assert norms == [pytest.approx(1e-2, rel=1e-2)]


def test_the_scale_is_continued(scaled):
    first, second = _stepper(**scaled), _stepper(**scaled)
    images, targets = _batch()
    first.step(iter([(images * float("inf"), targets)]), rate=0.01, number=0)
    _step(first, number=1)
    assert first.scaler.get_scale() < second.scaler.get_scale()
    second.load_state(first.state())
    assert_same_state(second.state()["scaler"], first.state()["scaler"])


def test_a_run_of_a_cpu_continues_with_a_gradient_scaler(scaled, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(stepper, "effective_amp", lambda *_: "none")
        state = _stepper(**scaled).state()
    resumed = _stepper(**scaled)
    resumed.load_state(state)
    assert resumed.scaler.get_scale() == 2.0**16


@pytest.mark.parametrize("number", [0, 3])
def test_the_average_takes_in_the_weights_after_the_step(number):
    averaged = _stepper(ema_decay=0.9)
    before = {name: p.detach().clone() for name, p in averaged.model.named_parameters()}
    _step(averaged, number=number)
    decay = (1 + number) / (10 + number)
    after = dict(averaged.model.named_parameters())
    assert not torch.equal(after["head.weight"], before["head.weight"])
    for name, average in averaged.average.module.named_parameters():
        expected = decay * before[name] + (1 - decay) * after[name]
        torch.testing.assert_close(average, expected.detach(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("wanted", ["auto", "true", "false"])
def test_images_take_the_memory_format_of_the_model(wanted):
    config = tiny_config(channels_last=wanted, **COLOUR)
    stepper = Stepper(config, Processes(CPU))
    inputs = _inputs(stepper.model)
    _step(stepper, channels=3)
    images, targets = _batch(channels=3)
    score(stepper.model, [(images, targets.argmax(1))], config, Processes(CPU))
    last, plain = torch.channels_last, torch.contiguous_format
    formats = [each.is_contiguous(memory_format=last) for each in inputs]
    assert formats == [wanted != "false"] * 2
    on_gpu = memory_format(config, torch.device("cuda"))
    assert on_gpu == (last if wanted == "true" else plain)


def test_scoring_evaluates_and_returns_to_training():
    config = tiny_config()
    model = Stepper(config, Processes(CPU)).model
    modes: list[bool] = []
    model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    images, targets = _batch()
    batch = images, targets.argmax(1)
    score(model, [batch], config, Processes(CPU))
    assert modes == [False] and model.training
    score(model.eval(), [batch], config, Processes(CPU))
    assert not model.training


@pytest.mark.parametrize(
    ("world", "device", "wanted"), [*itertools.product((1, 2), ("cpu", "cuda"), (True, False))]
)
def test_statistics_are_shared_between_gpus_where_wanted(world, device, wanted):
    processes = Processes(torch.device(device), 0, world)
    shared = shares_statistics(tiny_config(sync_batch_norm=wanted), processes)
    assert shared == (world == 2 and device == "cuda" and wanted)


def test_shared_statistics_are_those_of_synchronised_batch_norm(monkeypatch):
    monkeypatch.setattr(stepper, "shares_statistics", lambda *_: True)
    shared = _stepper(ema_decay=0.9)
    norms = [m for m in shared.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 3 and all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)


def test_the_optimizer_decays_by_group():
    config = tiny_config(optimizer__weight_decay=0.5).optimizer
    optimizer = build_optimizer(ConvMixer(8, 1, 3, 1, 10, in_chans=1), config)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]


def test_a_run_of_another_device_goes_on_with_the_optimizer_of_this_one():
    """It is fused on a GPU alone; a state names what it was made with."""
    saved = _stepper()
    state = saved.state()
    for group in state["optimizer"]["param_groups"]:
        assert group["fused"] is False
        group["fused"] = True
    resumed = _stepper()
    resumed.load_state(state)
    assert all(group["fused"] is False for group in resumed.optimizer.param_groups)
    assert all(group["fused"] is True for group in state["optimizer"]["param_groups"])


# Starting from a checkpoint


def test_a_checkpoint_gives_the_initial_weights(tmp_path):
    source = ConvMixer(8, 1, 3, 1, 10, in_chans=1)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    started = _stepper(ema_decay=0.9)
    started.start_from(tmp_path / "weights.pt")
    for model in (started.model, started.average.module):
        assert_same_state(dict(model.state_dict()), dict(source.state_dict()))


def test_a_head_for_other_classes_is_left_out(tmp_path):
    source = ConvMixer(8, 1, 3, 1, 7, in_chans=1)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    started = _stepper()
    head = started.model.head.weight.detach().clone()
    started.start_from(tmp_path / "weights.pt")
    assert torch.equal(started.model.head.weight, head)
    assert torch.equal(started.model.stem[0].weight, source.stem[0].weight)


def test_statistics_of_one_process_are_the_mean_of_those_it_stands_for():
    config = tiny_config(ema_decay=0.9, augment__mixup=0, augment__cutmix=0)
    batches = [(torch.randn(4, 1, 8, 8) + place, torch.eye(10)[:4]) for place in range(4)]

    def stepped(chosen, stands_for):
        torch.manual_seed(0)
        stepper = Stepper(config, Processes(CPU), len(chosen), stands_for)
        for number in range(2):
            stepper.step(chosen, 0.0, number)
        assert {m.momentum for m in stepper.model.modules() if isinstance(m, nn.BatchNorm2d)} == {
            0.1
        }
        return [stepper.model.state_dict(), stepper.average.module.state_dict()]

    first, second = stepped(batches[::2], 1), stepped(batches[1::2], 1)
    for found, one, other in zip(stepped(batches, 2), first, second, strict=True):
        for name in found:
            if name.endswith(("running_mean", "running_var")):
                torch.testing.assert_close(found[name], (one[name] + other[name]) / 2)
