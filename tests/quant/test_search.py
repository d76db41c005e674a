"""What a search proposes."""

from __future__ import annotations

import pytest

from graphopt.passes.quantize import _proposed
from graphopt.quant.search import Point
from graphopt.verify.budget import Judgement

CLEAR, UNCLEAR, OVER = 0.002, 0.0095, 0.02


def points(*drops: float) -> list[Point]:
    """Sets with what they lose, each a millisecond slower than the one before."""
    return [
        Point(frozenset({str(index)}), 1.0 + index, judgement=Judgement(1 - drop, 1.0, drop, 0.01, 30.0))
        for index, drop in enumerate(drops)
    ]


@pytest.mark.parametrize(
    ("drops", "proposed"),
    [
        ((CLEAR, CLEAR, CLEAR), [0, 1]),
        ((UNCLEAR, UNCLEAR, CLEAR), [0, 2]),
        ((OVER, UNCLEAR, OVER, UNCLEAR), [1, 3]),
        ((CLEAR, UNCLEAR), [0, 1]),
        ((OVER, OVER), []),
        ((), []),
    ],
)
def test_a_set_with_a_margin_is_beside_the_fastest(drops: tuple[float, ...], proposed: list[int]) -> None:
    made = points(*drops)
    for given in (made, made[::-1], [*made, Point(frozenset(), 0.1)]):
        assert _proposed(given) == [made[index] for index in proposed]
