"""Softplus without PyTorch's threshold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.softplus import SoftplusThreshold
from graphopt.testing import check, check_ignores, check_refuses

PLAIN = "c = Greater(x, t) s = Softplus(x) w = Where(c, x, s) y = Neg(w)"
SCALED = "m = Mul(x, k) c = Greater(m, t) s = Softplus(m) d = Div(s, k) w = Where(c, x, d) y = Neg(w)"


def graph(body: str, threshold: float = 20, k: float = 2) -> str:
    constants = f"<float t={{{threshold}}}, float k={{{k}}}, float j={{{1 / k}}}>"
    return f"g (float[N,4] x) => (float[N,4] y) {constants} {{ {body} }}"


def test_fires() -> None:
    after = "g (float[N,4] x) => (float[N,4] y) { s = Softplus(x) y = Neg(s) }"
    check(SoftplusThreshold(), graph(PLAIN), after)


@pytest.mark.parametrize("body", [SCALED, SCALED.replace("Div(s, k)", "Mul(s, j)")])
def test_fires_with_a_factor(body: str) -> None:
    result = body.replace("c = Greater(m, t) ", "").replace("w = Where(c, x, d) ", "").replace("(w)", "(d)")
    check(SoftplusThreshold(), graph(body), graph(result))


def test_refuses_a_low_threshold() -> None:
    check_refuses(SoftplusThreshold(), graph(PLAIN, threshold=5), "differ noticeably")


def test_refuses_a_shared_inner_value() -> None:
    body = PLAIN + " z = Not(c)"
    before = graph(body).replace("float[N,4] y)", "float[N,4] y, bool[N,4] z)")
    check_refuses(SoftplusThreshold(), before, "is used elsewhere")


@pytest.mark.parametrize(
    "body",
    [
        PLAIN.replace("Greater", "Less"),
        PLAIN.replace("Where(c, x, s)", "Where(c, s, x)"),
        SCALED.replace("Div(s, k)", "Mul(s, k)"),
        SCALED.replace("Softplus(m)", "Softplus(x)"),
    ],
)
def test_ignores_near_misses(body: str) -> None:
    check_ignores(SoftplusThreshold(), graph(body))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(threshold=st.floats(15, 60, width=32), k=st.sampled_from([0.5, 1.0, 3.0]))
def test_agrees_around_the_threshold(threshold: float, k: float) -> None:
    x = (threshold / k + np.linspace(-8, 8, 40)).reshape(10, 4).astype(np.float32)
    check(SoftplusThreshold(), graph(SCALED, threshold, k), feeds={"x": x}, rtol=2e-7)
