"""Numbers and tables as text."""

from __future__ import annotations

from collections.abc import Sequence

NOTHING = "-"


def seconds(value: float) -> str:
    """Three digits and a unit: ``94.2 µs``."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if value >= scale:
            return f"{digits(value / scale)} {unit}"
    return f"{digits(value * 1e6)} µs"


def digits(value: float) -> str:
    """Three significant digits, never scientific."""
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def times(ratio: float) -> str:
    return f"{digits(ratio)}x"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def rate(operations_per_second: float) -> str:
    if operations_per_second >= 1e12:
        return f"{digits(operations_per_second / 1e12)} TFLOP/s"
    return f"{digits(operations_per_second / 1e9)} GFLOP/s"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table; its first `left` columns are text, the others numbers."""
    align = ["---"] * left + ["---:"] * (len(header) - left)
    lines = [header, align, *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """The lines of a table for a terminal; its first `left` columns are text."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in [header, *rows]
    ]
