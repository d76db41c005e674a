"""Leaky and parametric ReLU."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.prelu import PRelu
from graphopt.testing import check, check_ignores, check_refuses

FORMS = [
    "p = Relu(x) n = Neg(x) r = Relu(n) m = Mul(a, r) y = Sub(p, m)",
    "p = Relu(x) n = Neg(x) r = Relu(n) m = Mul(r, b) y = Add(p, m)",
    "p = Relu(x) r = Min(x, zero) m = Mul(a, r) y = Add(m, p)",
    "p = Relu(x) n = Neg(x) q = Relu(n) r = Neg(q) m = Mul(a, r) y = Add(p, m)",
    "p = Relu(x) q = Abs(x) r = Sub(x, q) s = Mul(r, a) m = Mul(s, half) y = Add(p, m)",
    "p = Relu(x) q = Abs(x) r = Sub(x, q) s = Mul(r, half) m = Mul(s, a) y = Add(p, m)",
    "c = Greater(x, zero) m = Mul(x, a) y = Where(c, x, m)",
    "c = GreaterOrEqual(x, zero) m = Mul(a, x) y = Where(c, x, m)",
    "c = Less(x, zero) m = Mul(x, a) y = Where(c, m, x)",
]
MAX = "m = Mul(x, a) y = Max(x, m)"
OPERATOR = "y = PRelu(x, a)"


def graph(body: str, slopes: list[float], shape: str, x: str = "N,2,3", outputs: str = "") -> str:
    plus, minus = (",".join(str(sign * slope) for slope in slopes) for sign in (1, -1))
    constants = (
        f"<float{shape} a={{{plus}}}, float{shape} b={{{minus}}}, float zero={{0}}, float half={{0.5}}>"
    )
    return f"g (float[{x}] x) => ({outputs or f'float[{x}] y'}) {constants} {{ {body} }}"


@pytest.mark.parametrize("body", [*FORMS, MAX, OPERATOR])
def test_one_slope(body: str) -> None:
    after = "g (float[N,2,3] x) => (float[N,2,3] y) { y = LeakyRelu<alpha=0.25>(x) }"
    check(PRelu(), graph(body, [0.25, 0.25], "[2,1]"), after, exact=True)


@pytest.mark.parametrize("body", FORMS)
def test_slopes_by_channel(body: str) -> None:
    after = graph(MAX, [0.25, -0.5], "[2,1]")
    check(PRelu(), graph(body, [0.25, -0.5], "[2,1]"), after, exact=True)


def test_a_slope_above_one() -> None:
    after = "g (float[N,2,3] x) => (float[N,2,3] y) { y = LeakyRelu<alpha=3>(x) }"
    check(PRelu(), graph(FORMS[6], [3.0], ""), after.replace("alpha=3", "alpha=3.0"), exact=True)
    check_ignores(PRelu(), graph(MAX, [3.0], ""))
    check_refuses(PRelu(), graph(FORMS[0], [0.5, 3.0], "[2,1]"), "above 1")


def test_refuses_a_zero_among_the_slopes() -> None:
    check_refuses(PRelu(), graph(FORMS[0], [0.5, 0.0], "[2,1]"), "a slope is 0")


def test_refuses_a_slope_that_enlarges() -> None:
    before = graph(FORMS[0], [0.5, 0.5], "[2,1,1,1]", outputs="float[2,N,2,3] y")
    check_refuses(PRelu(), before, "may enlarge")
    check_refuses(PRelu(), graph(FORMS[0], [0.5, 0.5], "[2]", "N,2,M"), "may enlarge")


def test_refuses_a_shared_inner_value() -> None:
    before = graph(FORMS[6], [0.5], "", outputs="float[N,2,3] y, float[N,2,3] m")
    check_refuses(PRelu(), before, "is an output of the graph")


@pytest.mark.parametrize(
    "body",
    [
        "p = Relu(x) n = Neg(x) r = Relu(n) m = Mul(a, r) y = Add(p, n)",
        "c = Greater(x, half) m = Mul(x, a) y = Where(c, x, m)",
        "c = Greater(x, zero) m = Mul(x, a) y = Where(c, m, x)",
    ],
)
def test_ignores_near_misses(body: str) -> None:
    check_ignores(PRelu(), graph(body, [0.25], ""))


def test_ignores_the_operator_by_channel_zero_and_float64() -> None:
    check_ignores(PRelu(), graph(OPERATOR, [0.25, 0.5], "[2,1]"))
    check_ignores(PRelu(), graph(FORMS[0], [0.0], ""))
    check_ignores(PRelu(), graph(FORMS[0], [0.5], "").replace("float", "double"))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    body=st.sampled_from([*FORMS, MAX, OPERATOR]),
    slope=st.sampled_from(["", "[1]", "[3]", "[2,1]", "[2,3]", "[1,2,1]", "[1,1,1]"]),
    uniform=st.booleans(),
    seed=st.integers(0, 99),
)
def test_agrees(body: str, slope: str, uniform: bool, seed: int) -> None:
    size = int(np.prod([int(dim) for dim in slope.strip("[]").split(",") if dim]))
    rng = np.random.default_rng(seed)
    slopes = [0.125] * size if uniform else [float(s) for s in np.round(rng.uniform(-1, 1, size), 2) + 0.001]
    before = graph(body, slopes, slope)
    if body in (MAX, OPERATOR) and len(set(slopes)) > 1:
        check_ignores(PRelu(), before)
    else:
        check(PRelu(), before, rtol=2e-7)
