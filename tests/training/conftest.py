"""Fixtures of the training tests."""

from __future__ import annotations

import pytest

from convmixer.training.runs import train
from tests.helpers.training import tiny_config


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A finished run of one epoch."""
    out = tmp_path_factory.mktemp("run_folder") / "run"
    train(tiny_config(epochs=1), out, silent=True)
    return out
