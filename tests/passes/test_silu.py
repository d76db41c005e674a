"""SiLU and quick GELU."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.silu import Silu
from graphopt.testing import check, check_ignores, check_refuses

AFTER = "g (float[N,4] x) => (float[N,4] y) { s = Sigmoid(x) y = Mul(x, s) }"


def graph(body: str, outputs: str = "float[N,4] y", k: float = 1.702) -> str:
    constants = f"<float one={{1}}, float k={{{k}}}, float minus_k={{{-k}}}, float two={{2}}>"
    return f"g (float[N,4] x) => ({outputs}) {constants} {{ {body} }}"


def test_fires() -> None:
    check(Silu(), graph("n = Neg(x) e = Exp(n) d = Add(one, e) y = Div(x, d)"), AFTER)


@pytest.mark.parametrize("exponent", ["m = Mul(x, k) n = Neg(m)", "n = Mul(minus_k, x)"])
def test_fires_with_a_factor(exponent: str) -> None:
    after = (
        "g (float[N,4] x) => (float[N,4] y) <float k={1.702}> { m = Mul(x, k) s = Sigmoid(m) y = Mul(x, s) }"
    )
    check(Silu(), graph(f"{exponent} e = Exp(n) d = Add(one, e) y = Div(x, d)"), after)


def test_refuses_a_shared_inner_value() -> None:
    body = "n = Neg(x) e = Exp(n) d = Add(one, e) y = Div(x, d)"
    check_refuses(Silu(), graph(body, "float[N,4] y, float[N,4] e"), "is an output of the graph")


@pytest.mark.parametrize(
    "body",
    [
        "n = Neg(x) e = Exp(n) d = Add(two, e) y = Div(x, d)",
        "n = Neg(x) e = Exp(n) d = Add(one, e) y = Div(n, d)",
        "e = Exp(x) d = Add(one, e) y = Div(x, d)",
        "s = Sigmoid(x) y = Mul(x, s)",
    ],
)
def test_ignores_near_misses(body: str) -> None:
    check_ignores(Silu(), graph(body))


def test_ignores_a_factor_by_channel() -> None:
    body = "n = Mul(x, k) e = Exp(n) d = Add(one, e) y = Div(x, d)"
    check_ignores(Silu(), graph(body).replace("float k={1.702}", "float[4] k={1,2,3,4}"))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(k=st.floats(0.25, 4, width=32))
def test_agrees_for_any_factor(k: float) -> None:
    check(Silu(), graph("m = Mul(x, k) n = Neg(m) e = Exp(n) d = Add(one, e) y = Div(x, d)", k=k))
