"""Distributed tensors: every process convolves what it has of the images or channels.

A fake process group plays the processes one after the other: what a process computes is real, and
no message is sent, so a placement that needs one would show in wrong values.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from convmixer_kernels import (
    DepthwiseConv2d,
    convert_depthwise,
    depthwise_conv2d_gelu_batch_norm,
)
from tests.helpers.depthwise_cases import DEVICE, KERNELS

pytestmark = pytest.mark.gpu

fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
tensor = pytest.importorskip("torch.distributed.tensor")


@pytest.fixture
def processes() -> Iterator[list[int]]:
    """Two processes, each in turn the one that runs."""

    def in_turn() -> Iterator[int]:
        for rank in range(2):
            dist.init_process_group("fake", store=fake.FakeStore(), rank=rank, world_size=2)
            try:
                yield rank
            finally:
                dist.destroy_process_group()

    yield in_turn()
    assert not dist.is_initialized()


@pytest.mark.parametrize("impl", KERNELS)
@pytest.mark.parametrize(("divided", "dimension"), [("images", 0), ("channels", 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_layer(impl, divided, dimension, bias, processes):
    generator = torch.Generator().manual_seed(0)
    shape = (4, 6, 7, 8)
    image, gradient = (torch.randn(shape, generator=generator).to(DEVICE).half() for _ in range(2))
    layer = DepthwiseConv2d(6, 5, bias=bias, impl=impl, device=DEVICE, dtype=torch.float16)
    expected_image = image.clone().requires_grad_()
    output = layer(expected_image)
    output.backward(gradient)

    parts: list[list[Tensor]] = []
    for rank in processes:
        mesh = dist.init_device_mesh(DEVICE, (2,))
        of_image = [tensor.Shard(dimension)]
        of_parameter = [tensor.Shard(0) if divided == "channels" else tensor.Replicate()]
        # Each process has to be given its own part, as there are no messages.
        own_image, own_gradient = (
            tensor.DTensor.from_local(t.chunk(2, dimension)[rank], mesh, of_image, run_check=False)
            for t in (image, gradient)
        )
        own_image.requires_grad_()
        sharded = DepthwiseConv2d(6, 5, bias=bias, impl=impl, device=DEVICE, dtype=torch.float16)
        for name, parameter in layer.named_parameters():
            part = parameter.detach()
            if divided == "channels":
                part = part.chunk(2)[rank]
            part = tensor.DTensor.from_local(part.clone(), mesh, of_parameter, run_check=False)
            sharded.register_parameter(name, torch.nn.Parameter(part))
        result = sharded(own_image)
        assert result.placements == tuple(of_image)
        assert result.shape == shape
        result.backward(own_gradient)
        grads = [parameter.grad for parameter in sharded.parameters()]
        expected = tensor.Shard(0) if divided == "channels" else tensor.Partial()
        assert all(grad.placements == (expected,) for grad in grads)
        parts.append([each.to_local() for each in (result, own_image.grad, *grads)])

    first, second = parts
    for name, one, other, whole in zip(
        ("output", "input gradient"),
        first,
        second,
        (output, expected_image.grad),
        strict=False,
    ):
        assert torch.equal(torch.cat([one, other], dimension), whole), name
    for one, other, parameter in zip(first[2:], second[2:], layer.parameters(), strict=True):
        if divided == "channels":
            assert torch.equal(torch.cat([one, other]), parameter.grad)
        else:
            rounding = torch.finfo(torch.float16).eps * parameter.grad.abs().max()
            torch.testing.assert_close(one + other, parameter.grad, atol=rounding.item(), rtol=0)


def test_fused_operations_are_refused(processes):
    """Statistics of divided images would take messages."""
    for _ in processes:
        mesh = dist.init_device_mesh(DEVICE, (2,))
        image, weight, *norm = (
            tensor.DTensor.from_local(each.to(DEVICE), mesh, [tensor.Replicate()], run_check=False)
            for each in (
                torch.randn(2, 4, 6, 6).half(),
                torch.rand(4, 1, 3, 3).half(),
                *torch.rand(4, 4),
            )
        )
        with pytest.raises(NotImplementedError, match=r"convmixer_kernels\..*sharding strategy"):
            depthwise_conv2d_gelu_batch_norm(
                image, weight, None, *norm, training=True, impl=KERNELS[0]
            )


def test_fully_sharded_data_parallel_in_one_process():
    """Parameters are distributed tensors between steps and plain ones within."""
    sharding = pytest.importorskip("torch.distributed.fsdp")
    torch.manual_seed(0)
    plain = torch.nn.Sequential(
        torch.nn.Conv2d(6, 6, 5, padding=2, groups=6), torch.nn.GELU(), torch.nn.Conv2d(6, 6, 1)
    ).to(DEVICE)
    model = copy.deepcopy(plain)
    convert_depthwise(model, KERNELS[0])
    image = torch.randn(2, 6, 7, 8, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    dist.init_process_group(
        "gloo" if DEVICE == "cpu" else "nccl", store=dist.HashStore(), rank=0, world_size=1
    )
    try:
        mesh = dist.init_device_mesh(DEVICE, (1,))
        half = sharding.MixedPrecisionPolicy(torch.float16, torch.float32)
        for layer in (model[0], model):
            sharding.fully_shard(layer, mesh=mesh, mp_policy=half)
        assert all(isinstance(parameter, tensor.DTensor) for parameter in model.parameters())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(image).float().square().sum().backward()
        grads = [parameter.grad.full_tensor() for parameter in model.parameters()]
        optimizer.step()
        state = {name: value.full_tensor() for name, value in model.state_dict().items()}
    finally:
        dist.destroy_process_group()
    output = plain.half()(image.half())
    output.float().square().sum().backward()
    for (name, parameter), grad in zip(plain.named_parameters(), grads, strict=True):
        expected = parameter.grad.float()
        scale = expected.abs().max().item()
        torch.testing.assert_close(grad, expected, atol=0.01 * scale, rtol=0.01, msg=name)
        torch.testing.assert_close(
            state[name], parameter.float() - 0.1 * grad, atol=1e-3, rtol=1e-3
        )
