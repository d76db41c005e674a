"""The budget of lossy passes: what a metric may lose against the original model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.errors import UsageError

DEFAULT_DROP = 0.01
_CLEAR_SHARE = 0.8
_CLEAR_DECIBELS = 0.5
"""Of the budget, and above what is needed: with that much in hand it holds where numbers are rounded otherwise."""
_READABLE = 5e-4


def parse_drop(given: str | float | None) -> float:
    """A share from ``"1%"``, ``"0.01"`` or ``0.01``.

    Raises:
        UsageError: It is none, or not from 0 to 1.
    """
    if given is None:
        return DEFAULT_DROP
    try:
        share = float(given) if not isinstance(given, str) else _share(given.strip())
    except ValueError:
        raise UsageError(f"cannot read the budget {given!r}", hint="write --max-drop as 1% or 0.01") from None
    if not 0 <= share < 1:
        raise UsageError(
            f"the budget {given!r} is not a share of the metric from 0 to below 1",
            hint="write --max-drop as 1% or 0.01",
        )
    return share


def percent(share: float) -> str:
    """A share for people: two places, or two digits where that would read as nothing."""
    if not np.isfinite(share):
        return "all"
    return f"{share:.2%}" if share == 0 or not abs(share) < _READABLE else f"{100 * share:.2g}%"


def _share(text: str) -> float:
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


@dataclass(frozen=True)
class Judgement:
    """What a model scores against its budget.

    Attributes:
        value: Of the metric.
        original: What the original scores.
        drop: What is lost, relative to the original's score.
        allowed: The budget.
        decibels: Signal-to-noise ratio of the worst output of numbers, whatever the metric; where there is none, of
            what may differ between categories.
        needed: Decibels that are asked for besides, where the samples are too few to show a drop as small as the
            budget: on 24 lines of text a metric moves in steps of 4 %, and a budget of 1 % would hold by luck.
        error: Standard error of the drop over the samples, where the metric counts.
        some: Number of samples, where not all were run since these were enough to tell; else 0.
    """

    value: float
    original: float
    drop: float
    allowed: float
    decibels: float
    needed: float = 0.0
    error: float = 0.0
    some: int = 0

    @property
    def ok(self) -> bool:
        """Whether the budget holds."""
        holds = self.drop <= self.allowed and np.isfinite(self.value) and self.decibels >= self.needed
        return bool(holds and not self.some)

    @property
    def excess(self) -> tuple[float, float]:
        """How far it is over the budget: by the metric, then in decibels; the least is the nearest."""
        drop = self.drop - self.allowed if np.isfinite(self.drop) else float("inf")
        decibels = self.needed - self.decibels if np.isfinite(self.decibels) else float("-inf")
        return max(drop, 0.0), max(decibels, 0.0)

    @property
    def is_clear(self) -> bool:
        """Whether it holds with a margin, so that it holds on a backend that rounds otherwise."""
        enough = not self.needed or self.decibels >= self.needed + _CLEAR_DECIBELS
        return self.ok and self.drop <= _CLEAR_SHARE * self.allowed and enough

    def describe(self) -> str:
        """For people."""
        if not np.isfinite(self.drop):
            return f"no usable outputs, {self.decibels:.1f} dB"
        spread = f" (standard error {percent(self.error)})" if self.error and np.isfinite(self.error) else ""
        also = f" (of {self.needed:.0f}, since the samples are few)" if self.needed else ""
        on = f" on {self.some} samples" if self.some else ""
        return (
            f"drop {percent(self.drop)} of {percent(self.allowed)}{spread}{on}, {self.decibels:.1f} dB{also}"
        )


def judged_of(judgement: Judgement | None) -> dict[str, Any]:
    """What one that was judged loses, for the report: plain JSON."""
    return {
        "value": None if judgement is None else judgement.value,
        "drop": None if judgement is None else judgement.drop,
        "decibels": None if judgement is None else judgement.decibels,
        "held": judgement is not None and judgement.ok,
    }
