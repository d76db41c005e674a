"""Quantities as people read them, wherever they are shown."""

from __future__ import annotations


def milliseconds(value: float) -> str:
    """A latency, without its unit: three significant digits."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def size(count: int) -> str:
    """Bytes for people, in decimal units."""
    number = float(count)
    for unit in ("B", "kB", "MB"):
        if number < 999.5:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 99.95 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB" if number < 99.95 else f"{number:.0f} GB"
