"""Every test finds the settings of the interpreter as the one before it found them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .machine import interpreter


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Restore the settings that a test changes."""
    machine = interpreter()
    before = machine.settings()
    yield
    machine.set(**before)
