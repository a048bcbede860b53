"""Put the kernels under a ConvNeXt of timm by one line, which keeps its parameters and results.

On a GPU in half precision its 7x7 convolutions run on the kernels; elsewhere PyTorch runs them, and
`explain` says why. Needs `pip install timm`.
"""

import timm
import torch

from convmixer_kernels import DepthwiseConv2d, convert_depthwise, explain

device = "cuda" if torch.cuda.is_available() else "cpu"
dtype = torch.float16 if device == "cuda" else torch.float32

torch.manual_seed(0)
model = timm.create_model("convnext_atto", num_classes=10).to(device, dtype).eval()
images = torch.randn(4, 3, 64, 64, device=device, dtype=dtype)

with torch.inference_mode():
    before = model(images)
    print(convert_depthwise(model))  # the line
    after = model(images)

layer = next(each for each in model.modules() if isinstance(each, DepthwiseConv2d))
print(explain(images.new_empty(4, layer.in_channels, 16, 16), layer.weight))
print("largest difference of a score:", (before - after).abs().max().item())
