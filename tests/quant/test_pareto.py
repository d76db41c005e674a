"""The table of time, size and score."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from graphopt.quant.pareto import table
from graphopt.verify.budget import Judgement

NUMBERS = st.integers(0, 4)


def lost(drop: float) -> Judgement:
    return Judgement(1 - drop, 1.0, drop, 0.01, 30.0)


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=8))
def test_the_front_is_what_nothing_else_beats(points: list[tuple[int, int, int]]) -> None:
    rows = table((1, float(ms), size, lost(drop / 100)) for ms, size, drop in points)
    for (point, row), (other, _) in itertools.product(zip(points, rows, strict=True), repeat=2):
        beaten = other != point and all(a <= b for a, b in zip(other, point, strict=True))
        assert not (beaten and row["front"])
    assert any(row["front"] for row in rows)
    fastest = min(points)
    assert rows[points.index(fastest)]["front"]


def test_what_was_not_judged_is_told_last() -> None:
    rows = table([(2, 1.0, 10, None), (2, 1.0, 10, lost(0.5))])
    assert [row["front"] for row in rows] == [False, True]
    assert rows[0]["drop"] is None and not rows[1]["held"]
