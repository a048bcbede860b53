"""The Triton kernels and the functions that they share; launchers are in the package above."""
