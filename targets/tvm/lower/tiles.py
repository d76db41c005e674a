"""How large the piece of an output is that one innermost loop keeps in vector registers.

A product's innermost loop adds, for each element of the reduced axes, ``rows`` numbers times ``width`` numbers to
``rows * width`` sums. The sums stay in registers; the ``width`` numbers are vectors of weights, each of the ``rows``
numbers is spread over a vector. What is computed in vain at the edges counts against a tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_SPARE = 8
"""Registers for what is multiplied: with fewer the sums are spilled (seen with 28 sums of 32 registers)."""
_WIDTHS = (1, 2, 4)
_FETCHES = 0.5
"""Cost of fetching an operand, relative to a multiplication."""
_LATENCY = 8
"""Sums that have to be independent of each other for two multiplications a cycle, each taking four cycles."""


@dataclass(frozen=True)
class Vectors:
    """Vector registers of a processor.

    Attributes:
        lanes: float32 numbers in one.
        count: How many there are.
        dots: Whether there is an instruction for products of bytes that are added up in fours (VNNI).
    """

    lanes: int
    count: int
    dots: bool = False


@dataclass(frozen=True)
class Tile:
    """A piece of the output.

    Attributes:
        rows: Positions.
        width: Channels of each; a multiple of the lanes.
        runs_on: Whether rows go on over the ends of lines; then ``rows`` divides the positions.
        channels_inside: Whether all channels of some positions are computed before the next positions, whose input then
            stays in the cache; otherwise all positions of some channels are, whose weights do.
    """

    rows: int
    width: int
    runs_on: bool = False
    channels_inside: bool = False


def tiles_of(lines: int, length: int, channels: int, vectors: Vectors, *, runs_on: bool) -> list[Tile]:
    """All tiles for an output of these sizes, first what is fastest as far as that can be said without measuring.

    Args:
        lines: Of positions that lie in a row.
        length: Positions in a line.
        channels: Outputs at each position.
        runs_on: Whether the end of a line may lie within a tile.
    """
    found: list[tuple[float, int, int, Tile]] = []
    # TVM does not come to an end with one row of several.
    least = 1 if length == 1 else 2
    for wide in _WIDTHS:
        width = wide * vectors.lanes
        for rows in range(least, max((vectors.count - _SPARE) // wide, 1) + 1):
            multiplied = rows * wide
            cost = round_up(channels, width) * (1 + _FETCHES * (rows + wide) / multiplied)
            cost *= max(_LATENCY / multiplied, 1.0)
            if rows <= length:
                found.append((cost * lines * round_up(length, rows), rows, wide, Tile(rows, width)))
            if runs_on and (lines * length) % rows == 0:
                found.append((cost * lines * length, rows, wide, Tile(rows, width, True)))
    # Of equal ones that with fewer columns, whose weights stay in the cache.
    found.sort(key=lambda entry: entry[:3])
    return [tile for *_, tile in found]


def depthwise_tile(length: int, channels: int, vectors: Vectors) -> Tile:
    """For sums of each channel by itself: as many positions of a line as keep the multipliers busy."""
    lanes = next(
        (size for size in (vectors.lanes, vectors.lanes // 2) if channels % size == 0), vectors.lanes
    )
    most = min(_LATENCY, length)
    rows = min(range(max(most // 2, 1), most + 1), key=lambda size: (round_up(length, size), -size))
    return Tile(rows, lanes)


def round_up(size: Any, step: int) -> Any:
    """The least multiple of ``step`` that is not smaller; of a number, or of an expression of TVM."""
    return (size + (step - 1)) // step * step
