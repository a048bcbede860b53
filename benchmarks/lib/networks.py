"""The networks of tables 1, 2, 3 and 5 of the paper: ConvMixers, and the peers through timm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.lib import large_kernel_networks
from convmixer import ConvMixer, create_model
from convmixer.model.published import published_rows
from convmixer.model.variants import get_variant, list_variants


@dataclass(frozen=True)
class Network:
    """Something to build and time.

    Attributes:
        name: unique; that of the variant for a ConvMixer.
        build: makes the network, with random initial values, on the default device.
        has_depthwise: whether its depthwise convolutions can run on the kernels.
        image_size: in pixels.
        note: what a reader must know of how it was built.
    """

    name: str
    build: Callable[[], nn.Module]
    has_depthwise: bool
    image_size: int = 224
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A row of a table of the paper.

    Attributes:
        table: its number.
        label: of the network, as printed.
        network: name of the network.
        parameters: as printed, in millions; None where the table has no such column.
        images_per_second: as printed.
        gpu: on which the paper measured.
        recipe: of the training, where rows differ in nothing else.
    """

    table: int
    label: str
    network: str
    parameters: float | None
    images_per_second: int
    gpu: str
    recipe: str = ""


def _timm(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        model: nn.Module = timm.create_model(name, **arguments)
        return model

    return build


def _res_mlp(patch_size: int, blocks: int, dim: int, **block: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock

        layer: Any = partial(ResBlock, **block)
        model: nn.Module = MlpMixer(
            patch_size=patch_size,
            num_blocks=blocks,
            embed_dim=dim,
            mlp_ratio=4,
            block_layer=layer,
            norm_layer=Affine,
        )
        return model

    return build


class IsotropicMobileNetV3(nn.Module):
    """A patch embedding, 15 equal MobileNetV3 blocks, and the head of MobileNetV3.

    Neither Sandler et al. (2019) nor the paper published theirs. This one takes from MobileNetV3
    the number of blocks, its usual expansion (6), squeeze-and-excitation and the head of 1280
    features, and from table 2 of the paper the 3 x 3 filters, ReLU and 20 million parameters,
    from which a width of 192 follows (19.9 and 20.0 million with patches of 8 and 16 pixels).
    """

    def __init__(self, patch_size: int, width: int = 192, blocks: int = 15) -> None:
        super().__init__()
        from timm.models._efficientnet_blocks import InvertedResidual, SqueezeExcite

        squeeze: Any = partial(SqueezeExcite, rd_ratio=0.25, gate_layer=nn.Hardsigmoid)
        features = 6 * width
        self.stem = _convolution(3, width, patch_size)
        self.blocks = nn.Sequential(
            *(
                InvertedResidual(width, width, exp_ratio=6, act_layer=nn.ReLU, se_layer=squeeze)
                for _ in range(blocks)
            )
        )
        self.last = _convolution(width, features, 1)
        self.head = nn.Sequential(nn.Linear(features, 1280), nn.ReLU(), nn.Linear(1280, 1000))

    def forward(self, images: Tensor) -> Tensor:
        features = self.last(self.blocks(self.stem(images)))
        logits: Tensor = self.head(features.mean((2, 3)))
        return logits


def _convolution(inputs: int, outputs: int, size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride=size, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class _Peer(NamedTuple):
    """A network of timm in the tables; label, millions of parameters and images/s as printed."""

    name: str
    label: str
    millions: float
    images_per_second: int
    build: Callable[[], nn.Module]


# A block of ResMLP scales its branches by 1e-4, or 1e-6 from 24 blocks on.
_PEERS = (
    _Peer("resnet152", "ResNet-152", 60.2, 828, _timm("resnet152")),
    _Peer("resnet101", "ResNet-101", 44.6, 1187, _timm("resnet101")),
    _Peer("resnet50", "ResNet-50", 25.6, 1739, _timm("resnet50")),
    _Peer(
        "deit_base_p7", "DeiT-B, patch 7", 86.7, 83, _timm("deit_base_patch16_224", patch_size=7)
    ),
    _Peer(
        "deit_small_p7", "DeiT-S, patch 7", 22.1, 174, _timm("deit_small_patch16_224", patch_size=7)
    ),
    _Peer(
        "deit_tiny_p7", "DeiT-Ti, patch 7", 5.7, 336, _timm("deit_tiny_patch16_224", patch_size=7)
    ),
    _Peer("deit_base_p16", "DeiT-B", 86, 792, _timm("deit_base_patch16_224")),
    _Peer("deit_small_p16", "DeiT-S", 22, 1610, _timm("deit_small_patch16_224")),
    _Peer("deit_tiny_p16", "DeiT-Ti", 5.7, 2603, _timm("deit_tiny_patch16_224")),
    _Peer("resmlp_s12_p8", "ResMLP-S12/8", 22.1, 872, _res_mlp(8, 12, 384, init_values=1e-4)),
    _Peer("resmlp_b24_p8", "ResMLP-B24/8", 129, 181, _timm("resmlp_big_24_224")),
    _Peer("resmlp_b24_p16", "ResMLP-B24", 116, 1597, _res_mlp(16, 24, 768, init_values=1e-6)),
    _Peer("swin_small", "Swin-S", 50, 576, _timm("swin_small_patch4_window7_224")),
    _Peer("swin_tiny", "Swin-T", 29, 878, _timm("swin_tiny_patch4_window7_224")),
    _Peer("vit_base_p16", "ViT-B/16", 86, 789, _timm("vit_base_patch16_224")),
    _Peer("mixer_b16", "Mixer-B/16", 59, 1025, _timm("mixer_b16_224")),
    _Peer(
        "isotropic_mobilenetv3_p8",
        "Isotropic MobileNetV3, patch 8",
        20,
        355,
        partial(IsotropicMobileNetV3, 8),
    ),
    _Peer(
        "isotropic_mobilenetv3_p16",
        "Isotropic MobileNetV3, patch 16",
        20,
        1296,
        partial(IsotropicMobileNetV3, 16),
    ),
)
_PEERS_OF_TABLE_1 = ("resnet152", "deit_base_p16", "resmlp_b24_p8")
# Reasons for which a number of parameters is not the printed one rounded.
PARAMETER_NOTES = {
    "convmixer_768_32_ks3_p14_relu": "equation 4 gives 20,465,896; the table prints 20.2 million",
    "resnet101": "44.55 million, printed as 44.6",
    "deit_tiny_p7": "5.76 million, printed as 5.7, the number with patches of 16",
    "swin_tiny": "28,288,354 in the authors' own code too; Liu et al. (2021b) print 29 million",
    "vit_base_p16": "86.57 million, printed without its decimals",
    "deit_base_p16": "86.57 million, printed without its decimals",
    "mixer_b16": "59.88 million, printed without its decimals",
}
_VISITED = ("convmixer_1536_20", "convmixer_768_32", "convmixer_1024_20_ks9_p14")
_MOBILENET_NOTE = "built from timm's blocks after its description, see networks.py"


def networks(tables: tuple[int, ...]) -> list[Network]:
    """The networks of these tables, each once, ConvMixers first."""
    names = dict.fromkeys(row.network for row in rows() if row.table in tables)
    return [_NETWORKS[name] for name in names]


def visit_networks() -> list[Network]:
    """Two ConvMixers of table 1, one with patches of 14 pixels, ConvNeXt-T and RepLKNet-31B."""
    others = {network.name: network for network in other_networks()}
    names = ("convnext_tiny", "rep_lk_net_31b")
    return [_NETWORKS[name] for name in _VISITED] + [others[name] for name in names]


def other_networks() -> list[Network]:
    """Networks with large filters that are in no table of the paper."""
    builders = {
        "convnext_tiny": _timm("convnext_tiny"),
        "inception_next_tiny": _timm("inception_next_tiny"),
        "rep_lk_net_31b": large_kernel_networks.rep_lk_net_31b,
        "uni_rep_lk_net_tiny": large_kernel_networks.uni_rep_lk_net_tiny,
        "van_b2": large_kernel_networks.van_b2,
        "slak_tiny": large_kernel_networks.slak_tiny,
    }
    return [Network(name, build, has_depthwise=True) for name, build in builders.items()]


def dry_run_networks() -> list[Network]:
    """List one small network, which shows that networks run."""
    return [Network("convmixer_8_1", partial(ConvMixer, 8, 1, 3, 7), True, image_size=28)]


def cpu_networks() -> list[Network]:
    """Two small networks that are in no table, for machines without a GPU."""
    convmixer = partial(ConvMixer, 32, 2, 9, 7)
    return [
        Network("convmixer_32_2", convmixer, has_depthwise=True, image_size=112),
        Network("test_resnet", _timm("test_resnet"), has_depthwise=False, image_size=112),
    ]


def rows() -> list[Row]:
    """The rows of tables 1, 2, 3 and 5 in their order; rows that differ in recipe share a network.

    The paper lists ResNet-152 twice in table 2.
    """
    convmixers = _convmixer_rows()
    peers = {peer.name: peer for peer in _PEERS}

    def peer_row(table: int, name: str) -> Row:
        peer = peers[name]
        return Row(table, peer.label, name, peer.millions, peer.images_per_second, "RTX 8000")

    return [
        *(row for row in convmixers if row.table == 1),
        *(peer_row(1, name) for name in _PEERS_OF_TABLE_1),
        *(row for row in convmixers if row.table == 2),
        peer_row(2, "resnet152"),
        *(peer_row(2, name) for name in peers),
        *(row for row in convmixers if row.table in (3, 5)),
    ]


def _convmixer_rows() -> list[Row]:
    names = {get_variant(name).architecture: name for name in list_variants()}
    found = []
    for architecture, result in published_rows():
        if result.images_per_second is None or result.gpu is None:
            continue
        a = architecture
        label = f"ConvMixer-{a.dim}/{a.depth}, patch {a.patch_size}, kernel {a.kernel_size}"
        label += ", 3 stacked" if a.stacked > 1 else ""
        label += ", ReLU" if a.activation == "relu" else ""
        starred = result.table == 2 and result.recipe == "a1_like"
        found.append(
            Row(
                table=result.table,
                label=label,
                network=names[architecture],
                parameters=float(result.parameters.removesuffix("M"))
                if result.parameters
                else None,
                images_per_second=result.images_per_second,
                gpu=result.gpu,
                recipe="A1-like recipe" if starred else "",
            )
        )
    return found


def note(name: str) -> str:
    """Return the remarks on the network of this name; empty without any."""
    notes = [_NETWORKS[name].note]
    if name in PARAMETER_NOTES:
        notes.append(f"parameters: {PARAMETER_NOTES[name]}")
    return "; ".join(filter(None, notes))


def parameters(network: Network) -> int:
    """Number of parameters, counted without memory for their values."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in network.build().parameters())


_NETWORKS = {
    **{
        row.network: Network(row.network, partial(create_model, row.network), has_depthwise=True)
        for row in _convmixer_rows()
    },
    **{
        peer.name: Network(
            peer.name,
            peer.build,
            has_depthwise=False,
            note=_MOBILENET_NOTE if peer.name.startswith("isotropic") else "",
        )
        for peer in _PEERS
    },
}
