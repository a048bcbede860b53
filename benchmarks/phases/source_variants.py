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
        "streaming stores",
        "core/staging_contiguous.cuh",
        """      *reinterpret_cast<uint4*>(to_ + image * stride_ + in_plane) =
          *reinterpret_cast<const uint4*>(from + in_shared_ + in_shared);""",
        """      __stcs(reinterpret_cast<uint4*>(to_ + image * stride_ + in_plane),
             *reinterpret_cast<const uint4*>(from + in_shared_ + in_shared));""",
    ),
    Variant(
        "streaming stores of pixels",
        "core/staging_channels_last.cuh",
        "*reinterpret_cast<uint4*>(at) = make_uint4(r[0], r[1], r[2], r[3]);",
        "__stcs(reinterpret_cast<uint4*>(at), make_uint4(r[0], r[1], r[2], r[3]));",
    ),
    Variant(
        "prefetch of 256 bytes",
        "core/device.h",
        "cp.async.cg.shared.global [%0], [%1], 16, %2;",
        "cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;",
    ),
)


def write(variant: Variant, csrc: Path, folder: Path) -> Path:
    """Write the sources of `csrc` with the other choice below `folder`, and return where.

    Raises:
        ValueError: the sources do not hold the choice as it is written down here.
    """
    copied = folder / variant.label.replace(" ", "_")
    rooms = (csrc / room for room in ("core", "host", "kernels"))
    sources = (path for room in rooms for path in room.iterdir() if path.is_file())
    for source in (csrc / "arguments.h", *sources):
        name = source.relative_to(csrc)
        content = source.read_text()
        if name == Path(variant.file):
            if content.count(variant.text) != 1:
                raise ValueError(f"{variant.file} does not hold {variant.text!r} once")
            content = content.replace(variant.text, variant.replacement)
        (copied / name).parent.mkdir(parents=True, exist_ok=True)
        (copied / name).write_text(content)
    return copied
