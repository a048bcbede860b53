"""The entry point of `python -m convmixer`."""

from __future__ import annotations

import sys

from convmixer.cli import main

if __name__ == "__main__":
    sys.exit(main())
