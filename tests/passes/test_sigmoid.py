"""The logistic function written out, and SiLU with it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.sigmoid import Sigmoid
from graphopt.pipeline.base import RewritePass
from graphopt.testing import check, check_ignores, check_refuses

CONSTANTS = "<float one={1}, float minus={-1}, float half={0.5}, float two={2}>"
AFTER = "g (float[N,4] x) => (float[N,4] y) { y = Sigmoid(x) }"
BODIES = [
    "n = Neg(x) e = Exp(n) d = Add(e, one) y = Div(one, d)",
    "n = Mul(x, minus) e = Exp(n) d = Add(one, e) y = Reciprocal(d)",
    "h = Mul(x, half) t = Tanh(h) a = Add(t, one) y = Mul(a, half)",
    "h = Div(x, two) t = Tanh(h) a = Add(one, t) y = Div(a, two)",
    "h = Mul(x, half) t = Tanh(h) a = Mul(t, half) y = Add(half, a)",
]


def graph(body: str, outputs: str = "float[N,4] y") -> str:
    return f"g (float[N,4] x) => ({outputs}) {CONSTANTS} {{ {body} }}"


@pytest.mark.parametrize("body", BODIES)
def test_fires(body: str) -> None:
    check(Sigmoid(), graph(body), AFTER)


def test_refuses_a_shared_inner_value() -> None:
    check_refuses(Sigmoid(), graph(BODIES[0], "float[N,4] y, float[N,4] e"), "is an output of the graph")


@pytest.mark.parametrize(
    "body",
    [
        "e = Exp(x) d = Add(e, one) y = Div(one, d)",
        "e = Exp(x) d = Add(e, one) y = Div(e, d)",
        "n = Neg(x) e = Exp(n) d = Add(e, two) y = Div(one, d)",
        "t = Tanh(x) a = Add(t, one) y = Mul(a, half)",
    ],
)
def test_ignores_near_misses(body: str) -> None:
    check_ignores(Sigmoid(), graph(body))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(body=st.sampled_from(BODIES), rank=st.integers(0, 3))
def test_shape_of_the_constant(body: str, rank: int) -> None:
    constants = CONSTANTS.replace("float one", f"float[{','.join('1' * rank)}] one") if rank else CONSTANTS
    wide = rank > 2 and "one" in body
    before = f"g (float[3,4] x) => (float[{'1,' if wide else ''}3,4] y) {constants} {{ {body} }}"
    if wide:
        check_ignores(Sigmoid(), before)
    else:
        check(RewritePass("sigmoid", [Sigmoid()]), before, AFTER.replace("N", "3"))
