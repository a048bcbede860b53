"""Convolution, activation and BatchNorm of a block or stem as fused operations.

The modules keep their parameters, buffers and modes, and the operations of `convmixer_kernels`
compute their composition in fewer passes over memory. A block runs module by module if one of its
modules is hooked, parametrised, patched, or not exactly of the expected class, so that no module is
left out that a user can observe; the patch embedding of a stem runs as it is for the same reasons.
With `nn.SyncBatchNorm` all processes have to run a block in the same way, because the fused
operations and the module exchange different messages.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, TypeVar

import torch
import torch.distributed as dist
import torch.nn.modules.module as module_hooks
from torch import Tensor, nn

from convmixer.model.pointwise import pointwise_product, pointwise_product_of_inference
from convmixer_kernels import (
    DepthwiseConv2d,
    arguments,
    depthwise_conv2d,
    depthwise_conv2d_gelu_batch_norm,
    direct,
    dispatch,
    gelu_batch_norm,
    inference,
    inference_tables,
)
from convmixer_kernels.filters import Filter
from convmixer_kernels.modules import edited

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_Module = TypeVar("_Module", bound=nn.Module)


class ActivatedNorm(NamedTuple):
    """An activation followed by BatchNorm, for the fused operations."""

    activation: str
    norm: nn.BatchNorm2d | nn.SyncBatchNorm

    def next_batch(self) -> dict[str, Any]:
        """Count a batch like the module, and return the arguments of the fused operations."""
        norm = self.norm
        running_mean, running_var = _buffer(norm, "running_mean"), _buffer(norm, "running_var")
        momentum, process_group = norm.momentum, None
        if norm.training:
            process_group = _process_group(norm)
            batches = norm.num_batches_tracked
            if not norm.track_running_stats:
                running_mean = running_var = None
            elif batches is not None:
                batches.add_(1)
                if momentum is None:
                    momentum = 1.0 / float(batches)
        return {
            "gamma": _parameter(norm, "weight"),
            "beta": _parameter(norm, "bias"),
            "running_mean": running_mean,
            "running_var": running_var,
            "training": norm.training or running_mean is None,
            "momentum": 0.0 if momentum is None else momentum,
            "eps": norm.eps,
            "activation": self.activation,
            "process_group": process_group,
        }

    def running(self) -> inference.Norm | None:
        """Return the normalisation by running statistics, None if others are asked for."""
        norm, eps = self.norm, self.norm.eps
        running_mean, running_var = _buffer(norm, "running_mean"), _buffer(norm, "running_var")
        if norm.training or running_mean is None or eps <= 0:
            return None
        gamma, beta = _parameter(norm, "weight"), _parameter(norm, "bias")
        return inference.Norm(running_mean, running_var, gamma, beta, eps)


class FusedBlock(NamedTuple):
    """The parts of a block that the fused operations can compute.

    Args:
        leading: the depthwise convolutions and activations before the last convolution.
        weight, bias, impl: of the last convolution of the depthwise branch.
    """

    leading: tuple[nn.Module, ...]
    weight: Tensor
    bias: Tensor | None
    impl: str
    depthwise_norm: ActivatedNorm
    skip: bool
    pointwise_weight: Tensor
    pointwise_bias: Tensor | None
    pointwise_norm: ActivatedNorm
    pointwise_skip: bool

    def infer(self, input: Tensor) -> Tensor | None:
        """Compute the block by running statistics, or return None if that needs more questions.

        They are asked once for the whole block. The output is as that of `forward`.
        """
        first, second = self.depthwise_norm.running(), self.pointwise_norm.running()
        if first is None or second is None or self.leading:
            return None
        weight, pointwise_weight = self.weight, self.pointwise_weight
        if not direct.takes((input, weight, pointwise_weight)):
            return None
        if torch.is_grad_enabled():
            parameters = (weight, self.bias, pointwise_weight, self.pointwise_bias)
            if direct.records((input, *parameters, *first[:4], *second[:4])):
                return None
        name = dispatch.convolution_at_once(input, weight, None, self.impl, fused=True)
        next_name = dispatch.at_once(self.impl, input.device, input.dtype, None, fused=True)
        if name is None or next_name is None:
            return None
        spatial = inference.convolved(
            input, weight, self.bias, first, self.depthwise_norm.activation, self.skip, name
        )
        if spatial is None:
            return None
        return inference.normalised(
            pointwise_product_of_inference(spatial, pointwise_weight),
            self.pointwise_bias,
            second,
            self.pointwise_norm.activation,
            spatial if self.pointwise_skip else None,
            next_name,
        )

    def forward(self, input: Tensor) -> Tensor:
        """Compute the block; the output is CNHW or, for channels_last input, channels_last."""
        spatial = self._mix_positions(input)
        return gelu_batch_norm(
            pointwise_product(spatial, self.pointwise_weight),
            bias=self.pointwise_bias,
            residual=spatial if self.pointwise_skip else None,
            impl=self.impl,
            **self.pointwise_norm.next_batch(),
        )

    def _mix_positions(self, input: Tensor) -> Tensor:
        if not self.leading:
            return depthwise_conv2d_gelu_batch_norm(
                input,
                self.weight,
                self.bias,
                residual=self.skip,
                impl=self.impl,
                **self.depthwise_norm.next_batch(),
            )
        value = input
        for module in self.leading:
            value = module(value)
        return gelu_batch_norm(
            depthwise_conv2d(value, self.weight, self.bias, impl=self.impl),
            residual=input if self.skip else None,
            impl=self.impl,
            **self.depthwise_norm.next_batch(),
        )


def fused_block(
    residual: nn.Module,
    branch: nn.Module,
    skip: bool,
    pointwise: nn.Module,
    activation: nn.Module,
    norm: nn.Module,
    pointwise_skip: bool,
) -> FusedBlock | None:
    """Return the block made of these modules, or None if they have to run one by one.

    Args:
        residual: the module that adds the input of `branch`, or not.
        branch: depthwise convolutions, each followed by an activation, and a norm.
        skip: True adds the input of `branch` to its output.
        pointwise, activation, norm: the modules that follow `branch`.
        pointwise_skip: True adds the input of these three to their output.
    """
    if type(branch) is not nn.Sequential:
        return None
    modules = tuple(branch._modules.values())
    if len(modules) < 3:
        return None
    *leading, depthwise, first_activation, first_norm = modules
    depthwise_norm = _activated_norm(first_activation, first_norm)
    pointwise_norm = _activated_norm(activation, norm)
    if (
        depthwise_norm is None
        or pointwise_norm is None
        or type(depthwise) is not DepthwiseConv2d
        or type(pointwise) is not nn.Conv2d
        or not _mixes_channels_alone(pointwise)
        or _observed(residual, branch, *modules[-3:], pointwise, activation, norm)
    ):
        return None
    weight = _parameter(depthwise, "weight")
    if edited(depthwise, weight):
        return None
    return FusedBlock(
        tuple(leading),
        weight,
        _parameter(depthwise, "bias"),
        depthwise.impl,
        depthwise_norm,
        skip,
        _parameter(pointwise, "weight"),
        _parameter(pointwise, "bias"),
        pointwise_norm,
        pointwise_skip,
    )


def activated_norm(activation: nn.Module, norm: nn.Module) -> ActivatedNorm | None:
    """Return the pair for the fused operations, or None if the modules have to run one by one."""
    return None if _observed(activation, norm) else _activated_norm(activation, norm)


def patch_operands(embedding: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """Return weight and bias of `embedding` for `patch_product`, or None if the module has to run.

    Under autocast the weight is in its dtype. The module has to run if it is not `untouched`, does
    not cut these images into patches, or refuses their shape or dtype.
    """
    if not untouched(embedding, nn.Conv2d) or not _cuts_patches(embedding, images):
        return None
    weight, bias = embedding.weight, embedding.bias
    dtype = arguments.autocast_dtype(images.device)
    if dtype is None:
        return (weight, bias) if weight.dtype == images.dtype else None
    castable = all(
        tensor.is_floating_point() and tensor.dtype != torch.float64 for tensor in (images, weight)
    )
    return (weight.to(dtype), bias) if castable else None


def runs_kernels(input: Tensor, weight: Tensor | None, impl: str) -> bool:
    """Return whether `impl` means kernels here and the modules compute in the dtype of `input`."""
    if input.dim() != 4:
        return False
    if direct.dispatcher_is_idle():
        filter = None if weight is None else Filter.of(weight)
        if dispatch.at_once(impl, input.device, input.dtype, filter, fused=True) is not None:
            return True
    if arguments.autocast_dtype(input.device) not in (None, input.dtype):
        # Autocast gives the convolutions another dtype than the residual, and PyTorch promotes it.
        return False
    return dispatch.resolve(input, weight, impl, fused=True) != "torch"


def forget_tables(block: nn.Module) -> None:
    """Have inference compute anew what it keeps of a block whose modules have run by themselves.

    A CUDA graph that captures them may change the statistics of their norms and, with an optimizer,
    their parameters.
    """
    if not torch.compiler.is_compiling():
        inference_tables.forget(_trained_buffers(block))
        inference_tables.trained(_trained_buffers(block))
        if torch.is_grad_enabled():
            inference_tables.trained(block.parameters())


def _trained_buffers(block: nn.Module) -> Iterator[Tensor]:
    trained = (module for module in block.modules() if module.training)
    return (buffer for module in trained for buffer in module.buffers(recurse=False))


def untouched(module: nn.Module, kind: type[_Module]) -> TypeGuard[_Module]:
    """Return whether calling `module` does what `kind` defines and nothing else."""
    return type(module) is kind and not _observed(module)


def _observed(*modules: nn.Module) -> bool:
    """Return whether a hook or a replaced `forward` runs when one of the modules is called."""
    if (
        module_hooks._global_forward_hooks
        or module_hooks._global_forward_pre_hooks
        or module_hooks._global_backward_hooks
        or module_hooks._global_backward_pre_hooks
    ):
        return True
    for module in modules:
        # For modules of several classes, Python looks up an attribute in twice the time.
        own = module.__dict__
        if (
            own["_forward_hooks"]
            or own["_forward_pre_hooks"]
            or own["_backward_hooks"]
            or own["_backward_pre_hooks"]
            or "forward" in own
        ):
            return True
    return False


def _activated_norm(activation: nn.Module, norm: nn.Module) -> ActivatedNorm | None:
    """Return the pair if its modules are of classes that the fused operations compute."""
    if type(norm) is not nn.BatchNorm2d and type(norm) is not nn.SyncBatchNorm:
        return None
    if type(activation) is nn.GELU and activation.approximate == "none":
        return ActivatedNorm("gelu", norm)
    return ActivatedNorm("relu", norm) if type(activation) is nn.ReLU else None


def _parameter(module: nn.Module, name: str) -> Any:
    """Return a parameter; the search of `nn.Module` for an attribute takes four times as long."""
    parameters = module._parameters
    return parameters[name] if name in parameters else getattr(module, name)


def _buffer(module: nn.Module, name: str) -> Any:
    buffers = module._buffers
    return buffers[name] if name in buffers else getattr(module, name)


def _mixes_channels_alone(convolution: nn.Conv2d) -> bool:
    return (
        convolution.kernel_size == (1, 1)
        and convolution.stride == (1, 1)
        and convolution.padding in ((0, 0), "same", "valid")
        and convolution.groups == 1
    )


def _cuts_patches(convolution: nn.Conv2d, images: Tensor) -> bool:
    """Return whether patches of `images` that do not overlap are all that it reads."""
    _, channels, *patch = convolution.weight.shape
    return (
        convolution.stride == tuple(patch)
        and convolution.padding in ((0, 0), "valid")
        and convolution.padding_mode == "zeros"
        and convolution.dilation == (1, 1)
        and images.dim() == 4
        # With groups, filters have fewer channels than the images.
        and images.shape[1] == channels
        and images.shape[2] >= patch[0]
        and images.shape[3] >= patch[1]
    )


def _process_group(norm: nn.Module) -> ProcessGroup | None:
    """Return the processes with which `norm` shares its statistics, if there are others."""
    if not isinstance(norm, nn.SyncBatchNorm) or not norm.training:
        return None
    if not dist.is_available() or not dist.is_initialized():
        return None
    group: Any = norm.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None
