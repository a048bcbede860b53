"""ConvMixer ("Patches Are All You Need?", Trockman and Kolter, 2022)."""

# Without `from __future__ import annotations`, because torch.fx keeps the annotations of `forward`
# and could not pickle strings.
from collections.abc import Collection, Sequence
from typing import Any, Literal, overload

import torch
import torch.fx
from torch import Tensor, nn

from convmixer.model.layers import (
    ACTIVATIONS,
    NORMS,
    make_block,
    make_patch_stem,
    make_resnet_stem,
    run_checkpointed,
)
from convmixer_kernels.dispatch import IMPLEMENTATIONS

RESIDUALS = ("depthwise", "none", "both")
STEMS = ("patch", "resnet")
POOLINGS: dict[str, type[nn.Module]] = {"avg": nn.AdaptiveAvgPool2d, "max": nn.AdaptiveMaxPool2d}


class ConvMixer(nn.Module):
    """The model of figure 3, with the variations of tables 4 to 7.

    Args:
        dim: width h, the channels of the patch embedding and of every block.
        depth: number d of blocks.
        kernel_size: size k of the depthwise filters. Padding is 'same': an even k pads the extra
            row and column at the bottom and right.
        patch_size: size p of a patch; images of H x W pixels have H // p x W // p positions inside.
        n_classes: classes of the linear head; 0 for none: the model then returns pooled features.
        in_chans: channels of the images.
        activation: ``"gelu"`` (exact) or ``"relu"``.
        norm: ``"batch"``, or ``"layer"`` (tables 6 and 7): mean and variance over the C channels at
            each position of each image, scale and shift per channel. The paper names LayerNorm
            without its axes; these are the axes of ViT and MLP-Mixer, from which it takes the norm.
        residual: ``"depthwise"`` (equation 2), ``"none"``, or ``"both"`` for one around the
            pointwise part (equation 3) as well (table 7).
        stem: ``"patch"`` (equation 1) or ``"resnet"`` (table 4): convolution of size p and stride
            p / 2, norm, activation, 3 x 3 max pooling of stride 2, with the internal resolution of
            the patch stem; p must be even.
        stacked: depthwise convolutions in a block, each followed by the activation, before one
            normalisation, all inside the residual (table 5). Two more biased 3 x 3 convolutions in
            each block of ConvMixer-512/12 without norms of their own give 3,950,568 parameters,
            the table's 3.95 million; with norms they would be 3.98, without biases 3.94.
        global_pool: ``"avg"``, ``"max"``, or ``""`` for feature maps without pooling, with
            n_classes 0.
        drop_rate: probability with which training drops each pooled feature.
        dw_impl: implementation of the depthwise convolutions, as in
            `convmixer_kernels.depthwise_conv2d`. With kernels, activation and BatchNorm run as
            fused operations too (see `convmixer.model.fused_block`).

    `forward` takes (N, in_chans, H, W) with H and W of at least p, and returns (N, n_classes).
    Names and shapes in the state dict of the plain model are those of timm's implementation.
    Initial values are PyTorch's defaults, those of figure 3.

    `torch.compile`, `torch.export`, `torch.jit.trace` and `torch.fx.symbolic_trace`, which sees the
    patch stem and every block as one node, work. `torch.jit.script` does not work, because Python
    that TorchScript cannot express chooses the operations by the input.

    Attributes:
        num_classes, num_features: n_classes and dim.
        feature_info: channels, reduction and name of the layer, for every block.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        kernel_size: int = 9,
        patch_size: int = 7,
        n_classes: int = 1000,
        *,
        in_chans: int = 3,
        activation: str = "gelu",
        norm: str = "batch",
        residual: str = "depthwise",
        stem: str = "patch",
        stacked: int = 1,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        dw_impl: str = "auto",
    ) -> None:
        super().__init__()
        _check_integer("dim", dim)
        _check_integer("depth", depth)
        _check_integer("kernel_size", kernel_size)
        _check_integer("patch_size", patch_size)
        _check_integer("n_classes", n_classes, minimum=0)
        _check_integer("in_chans", in_chans)
        _check_integer("stacked", stacked)
        _check_choice("activation", activation, ACTIVATIONS)
        _check_choice("norm", norm, NORMS)
        _check_choice("residual", residual, RESIDUALS)
        _check_choice("stem", stem, STEMS)
        _check_choice("dw_impl", dw_impl, ("auto", *IMPLEMENTATIONS))
        _check_choice("global_pool", global_pool, (*POOLINGS, ""))
        if n_classes and not global_pool:
            raise ValueError(f"n_classes: got {n_classes} without pooling, expected 0")
        if not 0 <= drop_rate <= 1:
            raise ValueError(f"drop_rate: got {drop_rate!r}, expected 0 to 1")
        if stem == "resnet" and patch_size % 2:
            raise ValueError(
                f"patch_size: got {patch_size}, expected an even size for stem='resnet', "
                "whose stride is patch_size / 2"
            )
        self.num_classes = n_classes
        self.num_features = self.head_hidden_size = dim
        self.patch_size = patch_size
        self.grad_checkpointing = False

        self.stem = (
            make_patch_stem(
                in_chans, dim, patch_size, activation=activation, norm=norm, dw_impl=dw_impl
            )
            if stem == "patch"
            else make_resnet_stem(in_chans, dim, patch_size, activation=activation, norm=norm)
        )
        self.blocks = nn.Sequential(
            *(
                make_block(
                    dim,
                    kernel_size,
                    activation=activation,
                    norm=norm,
                    residual=residual,
                    stacked=stacked,
                    dw_impl=dw_impl,
                )
                for _ in range(depth)
            )
        )
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": dim, "reduction": patch_size, "module": f"blocks.{i}"} for i in range(depth)
        ]
        self.global_pool = _pooling(global_pool)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = _classifier(dim, n_classes)

    @property
    def in_chans(self) -> int | None:
        """Channels of the images, read from the first convolution of the stem; None without one."""
        for module in self.stem.modules():
            if isinstance(module, nn.Conv2d):
                return module.in_channels
        return None

    def forward(self, input: Tensor) -> Tensor:
        """Classify images (N, in_chans, H, W): return (N, n_classes)."""
        return self.forward_head(self.forward_features(input))

    def forward_features(self, input: Tensor) -> Tensor:
        """Return the output of the last block, (N, dim, H // p, W // p), for (N, in_chans, H, W).

        The output of fused blocks is channels_last if their input was, and else has the strides of
        (dim, N, H // p, W // p).
        """
        check_images(input, self.in_chans, self.patch_size)
        features: Tensor = self.stem(input)
        for block in self.blocks:
            features = self._run_block(block, features)
        return features

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool the output of `forward_features` and, unless `pre_logits`, classify it."""
        pooled: Tensor = self.head_drop(self.global_pool(features))
        return pooled if pre_logits else self.head(pooled)

    @overload
    def forward_intermediates(
        self,
        input: Tensor,
        indices: int | Sequence[int] | None = ...,
        norm: bool = ...,
        stop_early: bool = ...,
        output_fmt: str = ...,
        intermediates_only: Literal[False] = ...,
    ) -> tuple[Tensor, list[Tensor]]: ...

    @overload
    def forward_intermediates(
        self,
        input: Tensor,
        indices: int | Sequence[int] | None = ...,
        norm: bool = ...,
        stop_early: bool = ...,
        output_fmt: str = ...,
        *,
        intermediates_only: Literal[True],
    ) -> list[Tensor]: ...

    def forward_intermediates(
        self,
        input: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> tuple[Tensor, list[Tensor]] | list[Tensor]:
        """Return the outputs of some blocks, with the arguments of timm's models.

        Args:
            input: (N, in_chans, H, W).
            indices: None for all blocks, an int for the last so many, or indices of blocks, of
                which negative ones count from the end.
            norm: accepted for compatibility; the model has no norm after its blocks.
            stop_early: do not run the blocks after the last of `indices`.
            output_fmt: ``"NCHW"``, the only format.
            intermediates_only: return the intermediates without the final features.

        Returns:
            The output of the last block that ran, and a list of the outputs of `indices`, each
            (N, dim, H // p, W // p), from the first block to the last; or the list alone. Strides
            are those of `forward_features`.

        Raises:
            ValueError: `indices` or `output_fmt` is out of range.
        """
        _check_choice("output_fmt", output_fmt, ("NCHW",))
        chosen = _block_indices(len(self.blocks), indices)
        check_images(input, self.in_chans, self.patch_size)
        features: Tensor = self.stem(input)
        intermediates = []
        for index, block in enumerate(self.blocks):
            if stop_early and index > max(chosen):
                break
            features = self._run_block(block, features)
            if index in chosen:
                intermediates.append(features)
        return intermediates if intermediates_only else (features, intermediates)

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove the layers that `forward_intermediates(indices)` does not run.

        Args:
            indices: see `forward_intermediates`.
            prune_norm: accepted for compatibility; the model has no norm after its blocks.
            prune_head: remove pooling and classifier too.

        Returns:
            The indices, counted from the first block.
        """
        chosen = _block_indices(len(self.blocks), indices)
        self.blocks = nn.Sequential(*list(self.blocks)[: max(chosen) + 1])
        if prune_head:
            self.reset_classifier(0, "")
        return chosen

    def get_classifier(self) -> nn.Module:
        """Return the linear head, or `nn.Identity` if there are no classes."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new, randomly initialised one.

        Args:
            num_classes: classes of the new head; 0 for none.
            global_pool: ``"avg"``, ``"max"``, ``""`` for feature maps without pooling (then
                num_classes must be 0), or None to leave the pooling as it is.

        Raises:
            ValueError: an argument is out of range.
        """
        _check_integer("num_classes", num_classes, minimum=0)
        if global_pool is not None:
            _check_choice("global_pool", global_pool, (*POOLINGS, ""))
        pooling = self.global_pool if global_pool is None else _pooling(global_pool)
        if num_classes and isinstance(pooling, nn.Identity):
            raise ValueError(f"num_classes: got {num_classes} without pooling, expected 0")
        parameter = next(self.blocks.parameters())
        self.num_classes = num_classes
        self.global_pool = pooling
        self.head = _classifier(self.num_features, num_classes).to(
            parameter.device, parameter.dtype
        )
        self.train(self.training)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return patterns of parameter names for layer-wise learning rates: stem, then every block.

        `coarse` is timm's argument and makes no difference: the model has no stages to group by.
        """
        return {"stem": r"^stem", "blocks": r"^blocks\.(\d+)"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: keep only the input of each block for the backward pass.

        The backward pass computes the rest of a block again. Outputs, gradients and running
        statistics do not change.
        """
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Return the names of biases, scales and shifts, which weight decay leaves out."""
        return {name for name, parameter in self.named_parameters() if parameter.ndim <= 1}

    def _run_block(self, block: nn.Module, features: Tensor) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return run_checkpointed(block, features)
        output: Tensor = block(features)
        return output


@torch.fx.wrap
def check_images(input: Tensor, in_chans: int | None, patch_size: int) -> None:
    """Check the shape of a batch of images; `torch.fx` records this function as one call.

    Raises:
        ValueError: the shape is not (N, in_chans, H, W) with H and W of at least `patch_size`.
    """
    if (
        input.dim() != 4
        or in_chans not in (None, input.shape[1])
        or min(input.shape[2:]) < patch_size
    ):
        channels = "C" if in_chans is None else in_chans
        raise ValueError(
            f"input: got shape {tuple(input.shape)}, expected (N, {channels}, H, W) with "
            f"H and W of at least the patch size {patch_size}"
        )


def _block_indices(depth: int, indices: int | Sequence[int] | None) -> list[int]:
    """Return the indices of blocks from 0, in the order of `indices`.

    Args:
        depth: number of blocks.
        indices: None for all blocks, an int for the last so many, or indices of blocks, of which
            negative ones count from the end.

    Raises:
        ValueError: an index is out of range, or there is none.
    """
    if indices is None:
        return list(range(depth))
    if isinstance(indices, int):
        if not 1 <= indices <= depth:
            raise ValueError(f"indices: got the last {indices}, expected 1 to {depth} blocks")
        return list(range(depth - indices, depth))
    chosen = []
    for index in indices:
        if not -depth <= index < depth:
            raise ValueError(f"indices: got {index}, expected {-depth} to {depth - 1}")
        chosen.append(index % depth)
    if not chosen:
        raise ValueError("indices: got an empty sequence, expected at least one block")
    return chosen


def _pooling(kind: str) -> nn.Module:
    return nn.Sequential(POOLINGS[kind](1), nn.Flatten()) if kind else nn.Identity()


def _classifier(features: int, n_classes: int) -> nn.Module:
    return nn.Linear(features, n_classes) if n_classes else nn.Identity()


def _check_integer(name: str, value: object, minimum: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"{name}: got {value!r}, expected an integer of at least {minimum}")


def _check_choice(name: str, value: object, accepted: Collection[str]) -> None:
    if value not in tuple(accepted):
        raise ValueError(
            f"{name}: got {value!r}, expected {' or '.join(repr(word) for word in accepted)}"
        )
