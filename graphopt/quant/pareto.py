"""The sets of layers that a search judged, as a table of time, size and score."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from graphopt.verify.budget import Judgement, judged_of

_LESS_IS_BETTER = ("predicted_ms", "constant_bytes", "drop")


def table(judged: Iterable[tuple[int, float, int, Judgement | None]]) -> list[dict[str, Any]]:
    """Plain JSON, a row for each set.

    Args:
        judged: How many layers are on integers, milliseconds as predicted, bytes of the constants (those left in float
            as they are), and what is lost.

    Returns:
        Rows; ``front`` says whether no other is as fast, as small and as good, and better in one of these.
    """
    rows = [
        {"int8": count, "predicted_ms": milliseconds, "constant_bytes": size, **judged_of(judgement)}
        for count, milliseconds, size, judgement in judged
    ]
    return [{**row, "front": not any(_dominates(other, row) for other in rows)} for row in rows]


def _dominates(other: dict[str, Any], row: dict[str, Any]) -> bool:
    pairs = [(_number(other[key]), _number(row[key])) for key in _LESS_IS_BETTER]
    return all(mine <= theirs for mine, theirs in pairs) and any(mine < theirs for mine, theirs in pairs)


def _number(value: float | None) -> float:
    return float("inf") if value is None else value


__all__ = ["table"]
