"""Copies of the headers in which one choice of the planner is another, to be timed against it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Variant:
    """A choice that is made when kernels are compiled.

    Attributes:
        label: what is chosen instead.
        file: the header that chooses.
        text: the choice as it stands there, once.
        replacement: the other choice.
    """

    label: str
    file: str
    text: str
    replacement: str


VARIANTS = (
    Variant(
        "8 channels a block",
        "plan.h",
        "return pass == Pass::forward && room ? 16 : 8;",
        "return room ? 8 : 8;",
    ),
    Variant(
        "registers for 3 blocks",
        "plan.h",
        "return size <= 9 && (whole || tiles <= 2) ? 4 : size > 9 && tiles > 4 ? 2 : 3;",
        "return size > 9 && (whole || tiles > 4) && tiles > 4 ? 2 : 3;",
    ),
)


def write(variant: Variant, csrc: Path, folder: Path) -> Path:
    """Write the headers of `csrc` with the other choice below `folder`, and return where.

    Raises:
        ValueError: the headers do not hold the choice as it is written down here.
    """
    copied = folder / variant.label.replace(" ", "_")
    copied.mkdir(parents=True, exist_ok=True)
    for header in (*csrc.glob("*.h"), *csrc.glob("*.cuh")):
        content = header.read_text()
        if header.name == variant.file:
            if content.count(variant.text) != 1:
                raise ValueError(f"{variant.file} does not hold {variant.text!r} once")
            content = content.replace(variant.text, variant.replacement)
        (copied / header.name).write_text(content)
    return copied
