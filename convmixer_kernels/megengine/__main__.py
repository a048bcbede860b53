"""Print the folder from which `depthwise_conv2d_implicit_gemm` can be imported."""

from pathlib import Path

if __name__ == "__main__":
    print(Path(__file__).parent)
