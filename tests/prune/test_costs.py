"""What stands in where a sensitivity is not known."""

from __future__ import annotations

import math

import pytest

from graphopt.prune.costs import known_or_usual

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("ratios", "wanted"),
    [
        ([1.0, 3.0, 2.0], [1.0, 3.0, 2.0]),
        ([1.0, NAN, 3.0], [1.0, 2.0, 3.0]),
        ([NAN, NAN], [1.0, 1.0]),
        # What ruins the outputs goes last, and is not taken for average.
        ([1.0, INF, NAN], [1.0, 1e6, 1.0]),
    ],
)
def test_unknown_ones_are_average_and_ruinous_ones_are_last(ratios: list[float], wanted: list[float]) -> None:
    assert known_or_usual(ratios) == wanted
