"""Copies of images for kernels that read another layout.

Between channels_last and planes a kernel of this package copies: PyTorch's reaches a seventh of the
copy bandwidth of an H200 there. From any other strides PyTorch copies.
"""

from __future__ import annotations

from torch import Tensor

from convmixer_kernels.backends.cuda.device import extension_for


def arranged(grad: Tensor, channels_last: bool) -> Tensor:
    """Return what `layout.arranged` does."""
    return extension_for(grad).arranged(grad, channels_last)
