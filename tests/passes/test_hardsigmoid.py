"""HardSigmoid as clipped affine functions."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.hardsigmoid import HardSigmoid
from graphopt.passes.hardswish import HardSwish
from graphopt.pipeline.base import RewritePass
from graphopt.testing import check, check_ignores, check_refuses

CONSTANTS = (
    "<float zero={0}, float one={1}, float three={3}, float six={6}, float fifth={0.2}, float five={5},"
    " float half={0.5}, float sixth={0.16666667}>"
)


def graph(body: str, outputs: str = "float[N,4] y") -> str:
    return f"g (float[N,4] x) => ({outputs}) {CONSTANTS} {{ {body} }}"


def after(alpha: float, beta: float) -> str:
    return f"g (float[N,4] x) => (float[N,4] y) {{ y = HardSigmoid<alpha={alpha}, beta={beta}>(x) }}"


@pytest.mark.parametrize(
    ("body", "alpha", "beta"),
    [
        ("a = Add(x, three) b = Clip(a, zero, six) y = Div(b, six)", 1 / 6, 0.5),
        ("a = Add(x, three) b = Clip(a, zero, six) y = Mul(sixth, b)", 1 / 6, 0.5),
        ("a = Add(x, three) r = Relu(a) b = Min(r, six) y = Mul(b, sixth)", 1 / 6, 0.5),
        ("a = Add(x, three) r = Max(zero, a) b = Min(six, r) y = Div(b, six)", 1 / 6, 0.5),
        ("m = Mul(x, fifth) a = Add(m, half) y = Clip(a, zero, one)", 0.2, 0.5),
        ("m = Div(x, five) a = Add(half, m) r = Min(a, one) y = Max(r, zero)", 0.2, 0.5),
        ("m = Mul(x, fifth) a = Sub(m, half) y = Clip(a, zero, one)", 0.2, -0.5),
        ("a = Add(x, half) y = Clip(a, zero, one)", 1.0, 0.5),
        ("a = Mul(x, fifth) y = Clip(a, zero, one)", 0.2, 0.0),
    ],
)
def test_fires(body: str, alpha: float, beta: float) -> None:
    check(HardSigmoid(), graph(body), after(alpha, beta))


def test_leads_to_hardswish() -> None:
    body = "m = Mul(x, sixth) a = Add(m, half) b = Clip(a, zero, one) y = Mul(x, b)"
    passes = RewritePass("both", [HardSwish(), HardSigmoid()])
    check(passes, graph(body), "g (float[N,4] x) => (float[N,4] y) { y = HardSwish(x) }")


def test_refuses_a_shared_inner_value() -> None:
    body = "m = Mul(x, fifth) a = Add(m, half) y = Clip(a, zero, one)"
    check_refuses(HardSigmoid(), graph(body, "float[N,4] y, float[N,4] a"), "is an output of the graph")


def test_a_shared_factor_stays_outside() -> None:
    body = "m = Mul(x, fifth) a = Add(m, half) y = Clip(a, zero, one)"
    expected = (
        f"g (float[N,4] x) => (float[N,4] y, float[N,4] m) {CONSTANTS} "
        "{ m = Mul(x, fifth) y = HardSigmoid<alpha=1.0, beta=0.5>(m) }"
    )
    check(HardSigmoid(), graph(body, "float[N,4] y, float[N,4] m"), expected)


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(x, three) b = Clip(a, zero, six) y = Div(b, three)",
        "a = Add(x, three) y = Clip(a, zero, six)",
        "a = Add(x, three) b = Clip(a, one, six) y = Div(b, six)",
        "y = Clip(x, zero, one)",
    ],
)
def test_ignores_near_misses(body: str) -> None:
    check_ignores(HardSigmoid(), graph(body))


def test_ignores_channels_higher_ranks_and_float64() -> None:
    body = "a = Mul(x, fifth) y = Clip(a, zero, one)"
    check_ignores(HardSigmoid(), graph(body).replace("float fifth={0.2}", "float[4] fifth={1,2,3,4}"))
    wide = graph(body, "float[1,N,4] y").replace("float fifth=", "float[1,1,1] fifth=")
    check_ignores(HardSigmoid(), wide)
    check_ignores(HardSigmoid(), graph(body).replace("float", "double"))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    a=st.floats(-4, 4, width=32),
    b=st.floats(-2, 2, width=32),
    height=st.integers(1, 16),
    minus=st.booleans(),
)
def test_agrees_for_any_affine_function(a: float, b: float, height: int, minus: bool) -> None:
    constants = f"<float a={{{a}}}, float b={{{b}}}, float zero={{0}}, float h={{{height}}}>"
    body = f"m = Mul(x, a) s = {'Sub' if minus else 'Add'}(m, b) c = Clip(s, zero, h) y = Div(c, h)"
    check(HardSigmoid(), f"g (float[N,4] x) => (float[N,4] y) {constants} {{ {body} }}")
