"""Feature maps of the blocks, with the interface of timm's `features_only`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from convmixer.model.network import ConvMixer


class FeatureInfo:
    """A description of the feature maps of a `FeatureExtractor`, in the order of its output.

    Like timm's class of this name, it counts all blocks of the model: in `len`, in indexing, and in
    the argument `idx` of its methods, which takes the place of `out_indices`.
    """

    def __init__(self, info: Sequence[dict[str, Any]], out_indices: Sequence[int]) -> None:
        self.info = [{**entry, "index": index} for index, entry in enumerate(info)]
        self.out_indices = tuple(out_indices)

    def __len__(self) -> int:
        return len(self.info)

    def __getitem__(self, index: Any) -> Any:
        return self.info[index]

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """Return the entry `key` of each feature map: a list, or one value for an int `idx`."""
        if isinstance(idx, int):
            return self.info[idx][key]
        return [self.info[index][key] for index in (self.out_indices if idx is None else idx)]

    def get_dicts(
        self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None
    ) -> Any:
        """Return the entries `keys`, or all, of each feature map: a list, or one for an int."""
        if isinstance(idx, int):
            entry = self.info[idx]
            return dict(entry) if keys is None else {key: entry[key] for key in keys}
        return [self.get_dicts(keys, index) for index in (self.out_indices if idx is None else idx)]

    def from_other(self, out_indices: Sequence[int]) -> FeatureInfo:
        """Return a description of the feature maps of other blocks."""
        return FeatureInfo(self.info, out_indices)

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the channels of each feature map."""
        return self.get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the pixels a side for which one position of each feature map stands."""
        return self.get("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the name of the layer whose output each feature map is."""
        return self.get("module", idx)


class FeatureExtractor(nn.Module):
    """A model that returns the feature maps of some blocks, without later blocks and classifier.

    Args:
        model: a `ConvMixer`, which is changed in place and becomes the submodule `model`.
        out_indices: the last so many blocks, or indices of blocks.

    `forward` takes (N, in_chans, H, W) and returns a list of (N, dim, H // p, W // p), a tensor for
    each index, from the first block to the last. `feature_info` describes them.
    """

    def __init__(self, model: ConvMixer, out_indices: int | Sequence[int] = 3) -> None:
        super().__init__()
        self.out_indices = sorted(set(model.prune_intermediate_layers(out_indices)))
        self.model = model
        self.feature_info = FeatureInfo(model.feature_info, self.out_indices)

    def forward(self, input: Tensor) -> list[Tensor]:
        features: list[Tensor] = self.model.forward_intermediates(
            input, self.out_indices, stop_early=True, intermediates_only=True
        )
        return features

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory; see `ConvMixer.set_grad_checkpointing`."""
        self.model.set_grad_checkpointing(enable)
