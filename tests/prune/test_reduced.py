"""The search for the largest share, and what is proposed of it."""

from __future__ import annotations

import time

import onnx_ir as ir
import pytest

from graphopt.prune.reduced import Reduced, proposal_of, search
from graphopt.testing import model_from_text
from graphopt.verify.budget import Judgement

MODEL: ir.Model = model_from_text("g (float[2] x) => (float[2] y) { y = Relu(x) }")
ALLOWED = 0.01


def made(share: float, drop: float) -> Reduced:
    return Reduced(f"{share:.3f} gone", MODEL, 1 - share, Judgement(1 - drop, 1.0, drop, ALLOWED, 30.0))


def loses_in_proportion(share: float) -> Reduced:
    """A tenth of the share: 10 % of the multiplications keep the budget of 1 %."""
    return made(share, share / 10)


@pytest.mark.parametrize(("recovers", "reached"), [(False, 0.1), (True, 0.3)])
def test_bisection_comes_near_to_what_the_budget_allows(recovers: bool, reached: float) -> None:
    tried = search(loses_in_proportion, time.monotonic() + 60, recovers=recovers)
    best = max(1 - one.macs for one in tried if (one.recoverable if recovers else one.held))
    assert reached - 0.04 < best <= reached


def test_without_time_it_ends_once_something_holds() -> None:
    tried = search(loses_in_proportion, time.monotonic() - 1)
    assert len(tried) == 3, "three tries to find one that holds, since the first ones do not"
    assert len(search(lambda share: made(share, 0.0), time.monotonic() - 1)) <= 2


def test_what_holds_is_proposed_and_more_is_handed_to_a_pass_that_recovers() -> None:
    tried = [made(0.1, 0.009), made(0.2, 0.02), made(0.5, 0.2)]

    def details(chosen: Reduced | None, all_tried: object) -> dict[str, object]:
        return {"chosen": chosen and chosen.label}

    alone = proposal_of(tried, details, nothing="")
    assert [entry.label for entry in alone.candidates] == ["0.100 gone"]
    held, further = proposal_of(tried, details, nothing="", recovers=True).candidates
    assert held.label == "0.100 gone" and not held.prepares
    assert further.label == "0.200 gone" and further.prepares
    nothing = proposal_of(tried[1:], details, nothing="", recovers=True)
    assert not nothing.candidates and nothing.best_effort is not None
    assert nothing.best_effort.label == "0.200 gone" and "over the budget" in nothing.reason
