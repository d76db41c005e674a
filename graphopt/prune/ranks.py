"""Which rank each layer is given: where least is lost for the time that is saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from graphopt.ir.facts import Array
from graphopt.prune import factors
from graphopt.prune.factors import Factors
from graphopt.prune.structure import Layer

SEEN = 1e-8
"""Relative power: what is less is lost in rounding."""
_CAPS = (1.0, 2.0, 4.0, 8.0)
_SPARE = 1.5
"""More than is wanted that must be there to choose from."""
_LEAST_SLOPE = 0.1
"""Of a time that is proportional to the rank: what is measured is noisy, and a lower rank is never slower."""


@dataclass(frozen=True)
class Choice:
    """A layer that may become two products.

    Attributes:
        layer: The layer.
        factors: Of its weight.
        ranks: That it may have, smallest first.
        macs: Multiplications with its whole weight.
        saved: What each rank saves, in milliseconds.
        loss: Noise power over signal power that is expected in the model's outputs at each rank.
    """

    layer: Layer
    factors: Factors
    ranks: tuple[int, ...]
    macs: float
    saved: Array
    loss: Array

    @property
    def name(self) -> str:
        """Of the layer."""
        return self.layer.name

    def left(self, rank: int) -> float:
        """Multiplications at a rank."""
        outputs, numbers = factors.sizes(self.layer)
        return self.macs * rank * (outputs + numbers) / (outputs * numbers)

    def gone(self, rank: int) -> float:
        """Multiplications that are saved at a rank."""
        return self.macs - self.left(rank)

    @property
    def middle(self) -> int:
        """The rank at which its loss is looked at in the outputs: one that loses something."""
        rank = self.ranks[len(self.ranks) // 2]
        return rank if self.factors.lost[rank] > SEEN else self.ranks[0]

    def capped(self, times: float) -> Choice:
        """Without the ranks that lose more than so many times what :attr:`middle` does."""
        most = times * self.factors.lost[self.middle]
        first = next((place for place, rank in enumerate(self.ranks) if self.factors.lost[rank] <= most), 0)
        return replace(self, ranks=self.ranks[first:], saved=self.saved[first:], loss=self.loss[first:])

    def steps(self) -> list[tuple[float, int]]:
        """Ranks on the lower convex hull of what is lost over what is saved, the largest first.

        Returns:
            What a millisecond more costs there, and the rank.
        """
        hull: list[tuple[float, float, int]] = [(0.0, 0.0, 0)]
        points = sorted(zip(self.saved.tolist(), self.loss.tolist(), self.ranks, strict=True))
        for saved, loss, rank in points:
            if saved <= hull[-1][0]:
                continue
            while len(hull) > 1 and _slope(hull[-2], (saved, loss, rank)) <= _slope(hull[-2], hull[-1]):
                hull.pop()
            hull.append((saved, loss, rank))
        return [(_slope(hull[place], point), point[2]) for place, point in enumerate(hull[1:])]


def cheapest(choices: Sequence[Choice], wanted: float) -> dict[str, int]:
    """Ranks by layer that remove so many multiplications, as far as there are any, where least is lost for the time.

    No layer loses much more than where its loss was looked at in the outputs, as long as enough can be removed so: what
    is known of small losses says little of large ones.

    Args:
        wanted: Multiplications.
    """
    for times in _CAPS:
        capped = [choice.capped(times) for choice in choices]
        if sum(choice.gone(choice.ranks[0]) for choice in capped) >= _SPARE * wanted:
            return _cheapest(capped, wanted)
    return _cheapest(choices, wanted)


def _cheapest(choices: Sequence[Choice], wanted: float) -> dict[str, int]:
    by_name = {choice.name: choice for choice in choices}
    steps = sorted(
        (slope, place, name, rank)
        for name, choice in by_name.items()
        for place, (slope, rank) in enumerate(choice.steps())
    )
    ranks: dict[str, int] = {}
    saved = 0.0
    for _, _, name, rank in steps:
        if saved >= wanted:
            break
        choice = by_name[name]
        rest = saved - (choice.gone(ranks[name]) if name in ranks else 0.0)
        # The last step need not be taken whole.
        enough = [
            other
            for other, milliseconds in zip(choice.ranks, choice.saved, strict=True)
            if milliseconds > 0 and rest + choice.gone(other) >= wanted
        ]
        ranks[name] = max([rank, *enough])
        saved = rest + choice.gone(ranks[name])
    return ranks


def milliseconds_at(measured: Sequence[tuple[int, float]], ranks: Sequence[int]) -> Array:
    """Milliseconds at each rank: a line through what was measured at two of them, rising at least a little."""
    (low, first), (high, second) = measured
    least = _LEAST_SLOPE * (first + second) / (low + high)
    slope = max((second - first) / (high - low) if high > low else 0.0, least)
    middle, rank = (first + second) / 2, (low + high) / 2
    wanted = np.asarray(ranks, float)
    # Below the smaller one it takes no less than its share of that.
    at_low = middle + slope * (low - rank)
    return np.maximum(middle + slope * (wanted - rank), at_low * np.minimum(wanted / low, 1.0))


def _slope(start: tuple[float, float, int], end: tuple[float, float, int]) -> float:
    return (end[1] - start[1]) / (end[0] - start[0])


__all__ = ["SEEN", "Choice", "cheapest", "milliseconds_at"]
