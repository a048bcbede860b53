"""A residual block of one's own whose convolution, GELU and BatchNorm are one fused operation."""

import torch
from torch import Tensor, nn

from convmixer_kernels import DepthwiseConv2d, depthwise_conv2d_gelu_batch_norm


class MixingBlock(nn.Module):
    """`norm(gelu(convolution(x))) + x`, with the state dict of the layers that it holds."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.convolution = DepthwiseConv2d(channels, kernel_size)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        convolution, norm = self.convolution, self.norm
        return depthwise_conv2d_gelu_batch_norm(
            x, convolution.weight, convolution.bias,
            norm.weight, norm.bias, norm.running_mean, norm.running_var,
            residual=True, training=self.training,
        )  # fmt: skip


device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
block = MixingBlock(channels=64, kernel_size=9).to(device)
x = torch.randn(8, 64, 16, 16, device=device)

with torch.autocast(device, torch.bfloat16):
    output = block(x)
loss = output.square().mean()
loss.backward()
print("output", tuple(output.shape), "loss", loss.item())
