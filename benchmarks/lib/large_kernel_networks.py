"""Networks with large depthwise filters that timm lacks, after their published descriptions.

RepLKNet (Ding et al. 2022), UniRepLKNet (Ding et al. 2024), VAN (Guo et al. 2023), MogaNet (Li et
al. 2024) and SLaK (Liu et al. 2023, dense, without its sparsity), as they are trained: with the
parallel small and dilated filters that some merge for inference. Images are (N, 3, H, W), logits
(N, 1000). Stochastic depth is left out, which inference does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class _Add(nn.Module):
    """The sum of branches, or of a branch and its input."""

    def __init__(self, *branches: nn.Module, residual: bool = False) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.residual = residual

    def forward(self, input: Tensor) -> Tensor:
        results = [branch(input) for branch in self.branches]
        total: Tensor = sum(results[1:], start=results[0])
        return input + total if self.residual else total


class _Scale(nn.Module):
    """A learnable factor for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.full((channels, 1, 1), 1e-2))

    def forward(self, input: Tensor) -> Tensor:
        return self.factors * input


class _ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each position."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _SqueezeExcite(nn.Module):
    """Channels weighted by what their means tell."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // 4
        self.weights = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, input: Tensor) -> Tensor:
        scaled: Tensor = input * self.weights(input)
        return scaled


class _ResponseNorm(nn.Module):
    """Global response normalisation (ConvNeXt V2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, input: Tensor) -> Tensor:
        norm = input.norm(dim=(2, 3), keepdim=True)
        response = norm / (norm.mean(1, keepdim=True) + 1e-6)
        return self.gamma * (input * response) + self.beta + input


def _depthwise(
    channels: int,
    size: int | tuple[int, int],
    dilation: int = 1,
    stride: int = 1,
    bias: bool = False,
) -> nn.Conv2d:
    height, width = (size, size) if isinstance(size, int) else size
    padding = (dilation * (height - 1) // 2, dilation * (width - 1) // 2)
    return nn.Conv2d(
        channels,
        channels,
        (height, width),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=channels,
        bias=bias,
    )


def _normed(convolution: nn.Conv2d, *after: nn.Module) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels), *after)


def _pointwise(inputs: int, outputs: int, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, bias=bias)


def _classifier(channels: int, norm: Callable[[int], nn.Module]) -> nn.Sequential:
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(norm(channels), pool, nn.Flatten(), nn.Linear(channels, 1000))


# ---- RepLKNet ------------------------------------------------------------------------------------


def rep_lk_net_31b() -> nn.Sequential:
    """Build RepLKNet-31B: filters of 31, 29, 27 and 13, each beside one of 5."""
    channels, depths, sizes = (128, 256, 512, 1024), (2, 2, 18, 2), (31, 29, 27, 13)
    first = channels[0]
    layers: list[nn.Module] = [
        _normed(nn.Conv2d(3, first, 3, stride=2, padding=1, bias=False), nn.ReLU()),
        _normed(_depthwise(first, 3), nn.ReLU()),
        _normed(_pointwise(first, first), nn.ReLU()),
        _normed(_depthwise(first, 3, stride=2), nn.ReLU()),
    ]
    for stage, (width, depth, size) in enumerate(zip(channels, depths, sizes, strict=True)):
        if stage > 0:
            layers.append(_normed(_pointwise(channels[stage - 1], width), nn.ReLU()))
            layers.append(_normed(_depthwise(width, 3, stride=2), nn.ReLU()))
        for _ in range(depth):
            layers += [_rep_lk_block(width, size), _feed_forward(width, 4)]
    return nn.Sequential(*layers, _classifier(channels[-1], nn.BatchNorm2d))


def _rep_lk_block(channels: int, size: int) -> nn.Module:
    branches = _Add(_normed(_depthwise(channels, size)), _normed(_depthwise(channels, 5)))
    return _Add(
        nn.Sequential(
            nn.BatchNorm2d(channels),
            _normed(_pointwise(channels, channels), nn.ReLU()),
            branches,
            nn.ReLU(),
            _normed(_pointwise(channels, channels)),
        ),
        residual=True,
    )


def _feed_forward(channels: int, ratio: int) -> nn.Module:
    return _Add(
        nn.Sequential(
            nn.BatchNorm2d(channels),
            _normed(_pointwise(channels, ratio * channels), nn.GELU()),
            _normed(_pointwise(ratio * channels, channels)),
        ),
        residual=True,
    )


# ---- UniRepLKNet ---------------------------------------------------------------------------------


def uni_rep_lk_net_tiny() -> nn.Sequential:
    """Build UniRepLKNet-T: filters of 13, each beside five small and dilated ones, and of 3."""
    channels, depths = (80, 160, 320, 640), (3, 3, 18, 3)
    layers: list[nn.Module] = [
        nn.Conv2d(3, channels[0] // 2, 3, stride=2, padding=1),
        _ChannelNorm(channels[0] // 2),
        nn.GELU(),
        nn.Conv2d(channels[0] // 2, channels[0], 3, stride=2, padding=1),
        _ChannelNorm(channels[0]),
    ]
    for stage, (width, depth) in enumerate(zip(channels, depths, strict=True)):
        if stage > 0:
            layers.append(nn.Conv2d(channels[stage - 1], width, 3, stride=2, padding=1))
            layers.append(_ChannelNorm(width))
        for number in range(depth):
            small = stage == 0 or (stage == 2 and number % 2 == 1)
            layers.append(_uni_rep_lk_block(width, 3 if small else 13))
    return nn.Sequential(*layers, _classifier(channels[-1], _ChannelNorm))


def _uni_rep_lk_block(channels: int, size: int) -> nn.Module:
    convolution: nn.Module = _depthwise(channels, size)
    if size > 3:
        others = ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5))
        branches = [_depthwise(channels, small, dilation) for small, dilation in others]
        convolution = _Add(*map(_normed, (_depthwise(channels, size), *branches)))
    return _Add(
        nn.Sequential(
            convolution,
            nn.BatchNorm2d(channels),
            _SqueezeExcite(channels),
            _pointwise(channels, 4 * channels, bias=True),
            nn.GELU(),
            _ResponseNorm(4 * channels),
            _normed(_pointwise(4 * channels, channels)),
            _Scale(channels),
        ),
        residual=True,
    )


# ---- VAN and MogaNet -----------------------------------------------------------------------------


class _LargeKernelAttention(nn.Module):
    """Values weighted by a 5x5 and a dilated 7x7 filter of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before = nn.Sequential(_pointwise(channels, channels, bias=True), nn.GELU())
        self.weights = nn.Sequential(
            _depthwise(channels, 5, bias=True),
            _depthwise(channels, 7, dilation=3, bias=True),
            _pointwise(channels, channels, bias=True),
        )
        self.after = _pointwise(channels, channels, bias=True)

    def forward(self, input: Tensor) -> Tensor:
        values = self.before(input)
        attended: Tensor = input + self.after(values * self.weights(values))
        return attended


class _Moga(nn.Module):
    """A gate beside filters of three orders, for an eighth, three and four of the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.parts = (channels // 8, 3 * channels // 8, channels // 2)
        self.before = _pointwise(channels, channels, bias=True)
        self.sigma = nn.Parameter(torch.full((channels, 1, 1), 1e-5))
        self.gate = _pointwise(channels, channels, bias=True)
        self.first = _depthwise(channels, 5, bias=True)
        self.second = _depthwise(self.parts[1], 5, dilation=2, bias=True)
        self.third = _depthwise(self.parts[2], 7, dilation=3, bias=True)
        self.joined = _pointwise(channels, channels, bias=True)
        self.after = _pointwise(channels, channels, bias=True)

    def forward(self, input: Tensor) -> Tensor:
        features = self.before(input)
        pooled = features.mean((2, 3), keepdim=True)
        features = nn.functional.gelu(features + self.sigma * (features - pooled))
        one, two, three = self.first(features).split(self.parts, dim=1)
        joined = self.joined(torch.cat([one, self.second(two), self.third(three)], dim=1))
        silu = nn.functional.silu
        gated: Tensor = self.after(silu(self.gate(features)) * silu(joined))
        return gated


def _convolved_feed_forward(channels: int, ratio: int) -> nn.Sequential:
    hidden = ratio * channels
    return nn.Sequential(
        _pointwise(channels, hidden, bias=True),
        _depthwise(hidden, 3, bias=True),
        nn.GELU(),
        _pointwise(hidden, channels, bias=True),
    )


def _scaled(channels: int, branch: nn.Module) -> nn.Module:
    return _Add(nn.Sequential(nn.BatchNorm2d(channels), branch, _Scale(channels)), residual=True)


def van_b2() -> nn.Sequential:
    """Build VAN-B2: filters of 5, of 7 with dilation 3, and of 3."""
    channels, depths, ratios = (64, 128, 320, 512), (3, 3, 12, 3), (8, 8, 4, 4)
    layers: list[nn.Module] = []
    before = 3
    for width, depth, ratio in zip(channels, depths, ratios, strict=True):
        size, stride = (7, 4) if before == 3 else (3, 2)
        layers.append(_normed(nn.Conv2d(before, width, size, stride=stride, padding=size // 2)))
        for _ in range(depth):
            layers.append(_scaled(width, _LargeKernelAttention(width)))
            layers.append(_scaled(width, _convolved_feed_forward(width, ratio)))
        layers.append(_ChannelNorm(width))
        before = width
    return nn.Sequential(*layers, _classifier(channels[-1], lambda _: nn.Identity()))


def moga_net_small() -> nn.Sequential:
    """Build MogaNet-S: filters of 5, of 5 and 7 with dilations 2 and 3, and of 3."""
    channels, depths, ratios = (64, 128, 320, 512), (2, 3, 12, 2), (8, 8, 4, 4)
    layers: list[nn.Module] = [
        _normed(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.GELU()),
        _normed(nn.Conv2d(32, 64, 3, stride=2, padding=1)),
    ]
    for stage, (width, depth, ratio) in enumerate(zip(channels, depths, ratios, strict=True)):
        if stage > 0:
            layers.append(_normed(nn.Conv2d(channels[stage - 1], width, 3, stride=2, padding=1)))
        for _ in range(depth):
            layers.append(_scaled(width, _Moga(width)))
            layers.append(_scaled(width, _convolved_feed_forward(width, ratio)))
    return nn.Sequential(*layers, _classifier(channels[-1], nn.BatchNorm2d))


# ---- SLaK ----------------------------------------------------------------------------------------


def slak_tiny() -> nn.Sequential:
    """Build SLaK-T: filters of 51 x 5 and 5 x 51, 49, 47 and 13, each pair beside one of 5 x 5."""
    channels: Sequence[int] = [int(1.3 * width) for width in (96, 192, 384, 768)]
    depths, sizes = (3, 3, 9, 3), (51, 49, 47, 13)
    layers: list[nn.Module] = [nn.Conv2d(3, channels[0], 4, stride=4), _ChannelNorm(channels[0])]
    for stage, (width, depth, size) in enumerate(zip(channels, depths, sizes, strict=True)):
        if stage > 0:
            layers.append(_ChannelNorm(channels[stage - 1]))
            layers.append(nn.Conv2d(channels[stage - 1], width, 2, stride=2))
        layers += [_slak_block(width, size) for _ in range(depth)]
    return nn.Sequential(*layers, _classifier(channels[-1], _ChannelNorm))


def _slak_block(channels: int, size: int) -> nn.Module:
    branches = [_depthwise(channels, shape) for shape in ((size, 5), (5, size), (5, 5))]
    return _Add(
        nn.Sequential(
            _Add(*map(_normed, branches)),
            _ChannelNorm(channels),
            _pointwise(channels, 4 * channels, bias=True),
            nn.GELU(),
            _pointwise(4 * channels, channels, bias=True),
            _Scale(channels),
        ),
        residual=True,
    )
