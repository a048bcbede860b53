"""Distributed tensors: every process convolves what it has of the images or channels.

A fake process group plays the processes one after the other: what a process computes is real, and
no message is sent, so a placement that needs one would show in wrong values.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from convmixer_kernels import DepthwiseConv2d
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
