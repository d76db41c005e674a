"""How many zeros each weight gets: a share of all by what the outputs lose, or as many as the budget allows."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from graphopt.ir.facts import Array
from graphopt.prune.sparse_weights import Outcome, Part
from graphopt.prune.sparsifier import Sparse, Sparsifier
from graphopt.quant import layers as lossy_layers
from graphopt.verify.budget import Judgement

_QUANTILES = 257
_MOST_SCORES = 1 << 20
_PROBED = 0.5
_CAP = 1.5
"""Times the share of all that one weight may lose: small losses say little of large ones."""
_MOST = 0.95
_TRIES, _TRIES_WITHOUT_TIME = 6, 3
_HALVINGS = 80


class Shares:
    """Zeros of each weight so that they come to a share of all of them.

    What is lost adds up, and a number is worth its score times what the outputs lose for a loss of its layer; so all
    numbers that are worth less than one threshold go. What the outputs lose is measured with half of each weight alone.

    Args:
        sparsifier: Its zeros may be anywhere.
        uniform: Whether each weight loses the same share instead.
    """

    def __init__(self, sparsifier: Sparsifier, *, uniform: bool) -> None:
        self._names = [part.name for part in sparsifier.parts]
        self._sizes = np.asarray([part.size for part in sparsifier.parts], np.float64)
        self._curves: list[Array] = []
        if not uniform:
            curves = [_curve(sparsifier, part) for part in sparsifier.parts]
            worth = _worth(
                curves, self._sizes, sparsifier.noise_alone(sparsifier.context.deadline, _PROBED), self._names
            )
            self._curves = [curve * factor for curve, factor in zip(curves, worth, strict=True)]

    def of(self, share: float) -> dict[str, float]:
        """By layer, for a share of all."""
        if not self._curves:
            return dict.fromkeys(self._names, share)
        cap = min(_CAP * share, (1 + share) / 2)
        grid = np.linspace(0.0, 1.0, _QUANTILES)

        def below(threshold: float) -> Array:
            found = [float(np.interp(threshold, curve, grid)) for curve in self._curves]
            shares: Array = np.minimum(np.asarray(found), cap)
            return shares

        least = min((float(curve[curve > 0][0]) for curve in self._curves if curve.any()), default=1e-300)
        low, high = np.log(least) - 1, np.log(max(max(float(curve[-1]) for curve in self._curves), least)) + 1
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            enough = float(below(np.exp(middle)) @ self._sizes) >= share * self._sizes.sum()
            low, high = (low, middle) if enough else (middle, high)
        return {name: float(own) for name, own in zip(self._names, below(np.exp(high)), strict=True)}


def _curve(sparsifier: Sparsifier, part: Part) -> Array:
    """Scores of a weight's numbers relative to their sum, at equal shares of them, the least first."""
    scores = sparsifier.scores(part)[0].reshape(-1)
    some = scores[:: -(-len(scores) // _MOST_SCORES)]
    whole = max(float(some.mean()) * part.size, 1e-300)
    found: Array = np.quantile(some, np.linspace(0, 1, _QUANTILES)) / whole
    return found


def _worth(curves: list[Array], sizes: Array, alone: Mapping[str, float], names: list[str]) -> list[float]:
    """What the outputs lose for a loss of each layer; the usual where that was not measured."""
    half = round(_PROBED * (_QUANTILES - 1))
    found = []
    for name, curve, size in zip(names, curves, sizes, strict=True):
        lost = float(curve[: half + 1].mean()) * _PROBED * float(size)
        found.append(alone.get(name, np.nan) / max(lost, 1e-12))
    known = [ratio for ratio in found if np.isfinite(ratio) and ratio > 0]
    usual = float(np.median(known)) if known else 1.0
    return [ratio if np.isfinite(ratio) and ratio > 0 else usual for ratio in found]


def largest_share(sparsifier: Sparsifier, *, uniform: bool) -> list[Sparse]:
    """As many zeros as the budget allows: by bisection, as long as there is time, and until something holds.

    Returns:
        Every model that was judged.
    """
    shares = Shares(sparsifier, uniform=uniform)
    found: list[Sparse] = []
    low, high, share, seconds = 0.0, _MOST, _PROBED, 0.0
    for _ in range(_TRIES):
        started = time.monotonic()
        late = started + seconds > sparsifier.context.deadline
        if late and (low > 0 or len(found) >= _TRIES_WITHOUT_TIME):
            break
        found.append(sparsifier.judged(sparsifier.made(shares=shares.of(share))))
        seconds = max(seconds, time.monotonic() - started)
        low, high = (share, high) if found[-1].holds else (low, share)
        share = (low + high) / 2
    return found


def most_layers(sparsifier: Sparsifier) -> list[Sparse]:
    """The pattern in as many weights as the budget allows: those that add least noise for their zeros.

    Returns:
        Every model that was judged, that with the pattern in all weights first.
    """
    found: list[Sparse] = []
    names = frozenset(part.name for part in sparsifier.parts)

    def judge(chosen: frozenset[str]) -> Judgement:
        made = sparsifier.judged(sparsifier.made(None if chosen == names else chosen))
        found.append(made)
        assert made.judgement is not None
        return made.judgement

    def noise(until: float) -> Mapping[str, float]:
        # Measured with the other numbers as they are, so less by as much as their change makes up for in the layer.
        alone = sparsifier.noise_alone(until)
        return {name: value * _left(found[0].outcomes.get(name)) for name, value in alone.items()}

    lossy_layers.choose(
        {part.name: part.size * sparsifier.pattern.share for part in sparsifier.parts}, judge, noise,
        deadline=sparsifier.context.deadline, limit=sparsifier.context.limit,
        progress=sparsifier.context.progress,
    )  # fmt: skip
    return found


def _left(outcome: Outcome | None) -> float:
    """Share of a layer's loss that is left once its other numbers have made up for it."""
    if outcome is None or not outcome.before or outcome.after is None:
        return 1.0
    return outcome.after / outcome.before


__all__ = ["Shares", "largest_share", "most_layers"]
