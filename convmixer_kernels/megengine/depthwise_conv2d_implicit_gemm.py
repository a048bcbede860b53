"""The module that code written for MegEngine's extension imports."""

from convmixer_kernels.megengine import DepthWiseConv2dImplicitGEMM

__all__ = ["DepthWiseConv2dImplicitGEMM"]
