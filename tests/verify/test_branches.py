"""Which branches the verified inputs have taken."""

from __future__ import annotations

import numpy as np
import pytest

import graphopt
from graphopt.data.interface import Feeds
from graphopt.testing import model_from_text
from graphopt.verify.branches import unreached

TEXT = """g (float[n] x, int64 rate) => (float[m] y) <int64 wide={16}, float two={2}> {
    big = Relu(x) wanted = Equal(rate, wide)
    r = If(wanted) <then_branch = a () => (float[p] t) { t = Mul(x, two) },
                    else_branch = b () => (float[q] e) { e = Neg(big) }>
    y = Abs(r) }"""


def given(rate: int) -> Feeds:
    return {"x": np.ones(3, np.float32), "rate": np.array(rate)}


@pytest.mark.parametrize(
    ("rates", "missing"), [((16,), ["else_branch"]), ((8, 9), ["then_branch"]), ((8, 16), []), ((), [])]
)
def test_branches_that_no_input_takes(rates: tuple[int, ...], missing: list[str]) -> None:
    model = model_from_text(TEXT)
    before = [node.name for node in model.graph]
    found = unreached(model, [given(rate) for rate in rates])
    assert [name.rpartition("/")[2] for name in found] == missing
    assert [node.name for node in model.graph] == before and len(model.graph.outputs) == 1


def test_a_condition_that_is_an_input() -> None:
    text = """g (float[n] x, bool c) => (float[m] y) { y = If(c) <
        then_branch = a () => (float[p] t) { t = Relu(x) }, else_branch = b () => (float[q] e) { e = Neg(x) }> }"""
    model = model_from_text(text)
    (name,) = unreached(model, [{"x": np.ones(3, np.float32), "c": np.array(True)}])
    assert name.endswith("/else_branch")


@pytest.mark.parametrize(("rates", "told"), [((16,), True), ((16, 8), False)])
def test_the_user_is_told(rates: tuple[int, ...], told: bool) -> None:
    simplified = graphopt.simplify(model_from_text(TEXT), data=[given(rate) for rate in rates])
    assert told == any("takes the branch" in warning for warning in simplified.report.warnings)
