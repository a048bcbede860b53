"""Run a script of timm with the models of this package registered.

    python -m convmixer.timm_models validate.py --model kernels_convmixer_768_32 --data-dir DIR

The script and its arguments are passed on unchanged.
"""

from __future__ import annotations

import runpy
import sys

import convmixer.timm_models  # noqa: F401


def main() -> None:
    """Run the script that the command line names."""
    if len(sys.argv) < 2:
        sys.exit("usage: python -m convmixer.timm_models SCRIPT [ARGUMENTS]")
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
