"""Fixtures of the tests of operators."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from convmixer_kernels import architectures, dispatch


@pytest.fixture
def on_sm_90(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make dispatch take every device for a GPU that every implementation runs on."""
    monkeypatch.setattr(dispatch, "_architecture", lambda device: architectures.find((9, 0)))
    monkeypatch.setattr(dispatch, "_barred", lambda *what: None)
    dispatch._resolve_once.cache_clear()
    yield
    dispatch._resolve_once.cache_clear()
