"""What passes that make layers smaller have in common: judged models, the search for one, what is proposed."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import onnx_ir as ir

from graphopt.errors import UsageError, did_you_mean, nearest
from graphopt.lossy import Candidate, Proposal
from graphopt.verify.budget import Judgement, judged_of

_FIRST, _MOST = 0.25, 0.75
"""Shares of the multiplications, where none is asked for: what is tried first, and what is never reached."""
QUANTIZERS = (
    "quantize", "quantize-dynamic", "quantize-weights", "float16",
    "equalize", "smooth", "round-weights", "correct-bias",
)  # fmt: skip
"""Passes that change how weights are held, or prepare for it: what makes layers smaller comes before them."""
_TRIES, _TRIES_WITHOUT_TIME = 5, 3
_RECOVERABLE = 3.0
"""Times the budget that may be lost where a pass follows that wins accuracy back."""


@dataclass
class Reduced:
    """A model with fewer multiplications.

    Attributes:
        label: "pruned, 42% of the multiplications gone".
        model: The graph.
        macs: Share of the multiplications that is left.
        judgement: What it loses; None where it could not be judged.
    """

    label: str
    model: ir.Model
    macs: float
    judgement: Judgement | None

    @property
    def drop(self) -> float:
        """What is lost, as a share."""
        return float("inf") if self.judgement is None else self.judgement.drop

    @property
    def held(self) -> bool:
        """Whether it keeps the budget."""
        return self.judgement is not None and self.judgement.ok

    @property
    def recoverable(self) -> bool:
        """Whether training may bring it within the budget."""
        return self.judgement is not None and self.drop <= _RECOVERABLE * self.judgement.allowed

    def candidate(self) -> Candidate:
        """For the passes that follow, and as a form."""
        return Candidate(self.label, self.model, judgement=self.judgement)


R = TypeVar("R", bound=Reduced)


def search(
    attempt: Callable[[float], R | None], deadline: float, most: float = _MOST, *, recovers: bool = False
) -> list[R]:
    """As much as the budget allows: by bisection, as long as there is time, and until something holds.

    Args:
        attempt: From a share of the multiplications to the model without it; None where that is nothing new.
        most: Share that is never reached.
        recovers: Whether a pass follows that wins accuracy back: then somewhat more may be lost than the budget allows.
    """
    found: list[R] = []
    longest = 0.0

    def bisect(high: float, share: float, enough: Callable[[R], bool]) -> float:
        """The smallest share that was too much."""
        nonlocal longest
        low = 0.0
        for _ in range(_TRIES):
            started = time.monotonic()
            if started + longest > deadline and (low > 0 or len(found) >= _TRIES_WITHOUT_TIME):
                break
            made = attempt(share)
            if made is None:
                break
            found.append(made)
            longest = max(longest, time.monotonic() - started)
            low, high = (share, high) if enough(made) else (low, share)
            share = (low + high) / 2
        return high

    high = min(most, _MOST)
    bisect(high, min(_FIRST, high / 2), lambda made: made.recoverable if recovers else made.held)
    if recovers and found and not any(made.held for made in found):
        # Training may win nothing back: then what holds by itself is what is left.
        least = 1 - max(made.macs for made in found)
        bisect(least, least / 2, lambda made: made.held)
    return found


def tried_of(tried: Sequence[Reduced]) -> list[dict[str, Any]]:
    """What was judged, for the report: plain JSON."""
    return [{"macs_left": one.macs, **judged_of(one.judgement)} for one in tried]


def proposal_of(
    tried: Sequence[R],
    details: Callable[[R | None, Sequence[R]], dict[str, Any]],
    *,
    nothing: str,
    warnings: Callable[[R | None], Sequence[str]] = lambda chosen: (),
    recovers: bool = False,
) -> Proposal:
    """The one with fewest multiplications that holds, or what came nearest.

    Args:
        details: For the report, of the one that is chosen and of all that were tried.
        nothing: The reason where none was tried.
        warnings: For the user, of the one that is chosen.
        recovers: Whether a pass follows that wins accuracy back: it is given one besides that is over the budget by
            little.
    """
    held = [found for found in tried if found.held]
    further = [found for found in tried if recovers and found.recoverable and not found.held]
    if held:
        best = min(held, key=lambda found: found.macs)
        candidates = [best.candidate()]
        chosen = min([best, *further], key=lambda found: found.macs)
        if chosen is not best:
            candidates.append(replace(chosen.candidate(), prepares=True))
        return Proposal(candidates, details(chosen, tried), warnings=warnings(chosen))
    if not tried:
        return Proposal(reason=nothing, details=details(None, tried), warnings=warnings(None))
    closest = (
        min(further, key=lambda found: found.macs) if further else min(tried, key=lambda found: found.drop)
    )
    words = "" if closest.judgement is None else f": {closest.judgement.describe()}"
    return Proposal(
        details=details(closest, tried),
        reason=f"{closest.label}: over the budget{words}",
        warnings=warnings(closest),
        best_effort=closest.candidate(),
    )


def check_shares(pass_name: str, ratio: float, macs: float, both: str) -> None:
    """Refuse shares that are none, and two of them.

    Args:
        both: What the pass takes one share of.

    Raises:
        UsageError: Names the option.
    """
    for name, share in (("ratio", ratio), ("macs", macs)):
        if not 0 <= share < 1:
            raise UsageError(
                f"the {name} of {pass_name} is {share:g}",
                hint=f"write a share from 0 to below 1: {pass_name}{{{name}=0.3}}",
            )
    if ratio and macs:
        raise UsageError(f"{pass_name} takes a share of {both}", hint="leave out ratio or macs")


def is_named(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name is among patterns with wildcards."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def naming_nothing(patterns: Iterable[str], names: Sequence[str]) -> list[str]:
    """Warnings of patterns of the option ``keep`` that fit none of the names."""
    return [
        f"the option 'keep' names no layer: {pattern!r} "
        f"({did_you_mean(nearest(pattern, names)) or 'names are in the report'})"
        for pattern in patterns
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names)
    ]


__all__ = [
    "QUANTIZERS",
    "Reduced",
    "check_shares",
    "is_named",
    "naming_nothing",
    "proposal_of",
    "search",
    "tried_of",
]
