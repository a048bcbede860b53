"""The PEP 517 backend: that of setuptools, which also asks for the compilers this machine lacks."""

from __future__ import annotations

from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

import toolchain

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return [
        *build_meta.get_requires_for_build_wheel(config_settings),
        *toolchain.build_requirements(),
    ]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return [
        *build_meta.get_requires_for_build_editable(config_settings),
        *toolchain.build_requirements(),
    ]
