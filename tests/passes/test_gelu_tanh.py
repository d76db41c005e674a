"""The tanh approximation of Gelu in the orders that exporters write."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.gelu_tanh import GeluTanh
from graphopt.testing import check, check_ignores, check_refuses

CONSTANTS = (
    "<float one={1}, float two={2}, float three={3}, float half={0.5}, float k={0.044715}, float s={0.7978845608},"
    " float sk={0.035677408}, float s2={1.5957691216}>"
)
AFTER = 'g (float[N,4] x) => (float[N,4] y) { y = Gelu<approximate="tanh">(x) }'
ARGUMENTS = [
    "p = Pow(x, three) m = Mul(p, k) i = Add(x, m) a = Mul(i, s)",
    "q = Mul(x, x) p = Mul(x, q) m = Mul(k, p) i = Add(x, m) a = Mul(s, i)",
    "q = Mul(x, x) p = Mul(q, x) m = Mul(k, p) i = Add(m, x) a = Mul(s, i)",
    "l = Mul(x, k) q = Mul(l, x) p = Mul(q, x) i = Add(x, p) a = Mul(i, s)",
    "l = Mul(x, k) q = Mul(l, x) b = Add(q, one) u = Mul(x, s) a = Mul(u, b)",
    "q = Mul(x, x) l = Mul(q, k) b = Add(one, l) v = Mul(b, s) a = Mul(x, v)",
    "q = Pow(x, two) l = Mul(q, k) b = Add(one, l) v = Mul(b, x) a = Mul(v, s)",
    "u = Mul(x, s) p = Pow(x, three) m = Mul(p, sk) a = Add(u, m)",
]
OUTER = [
    "t = Tanh(a) n = Add(t, one) h = Mul(x, half) y = Mul(h, n)",
    "t = Tanh(a) n = Add(one, t) h = Mul(x, n) y = Mul(half, h)",
    "t = Tanh(a) n = Add(one, t) h = Mul(n, half) y = Mul(h, x)",
    "t = Tanh(a) h = Mul(t, half) n = Add(half, h) y = Mul(x, n)",
    "t = Tanh(a) n = Add(t, one) h = Mul(x, n) y = Div(h, two)",
]


def graph(body: str, outputs: str = "float[N,4] y") -> str:
    return f"g (float[N,4] x) => ({outputs}) {CONSTANTS} {{ {body} }}"


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_fires_for_each_argument(argument: str) -> None:
    check(GeluTanh(), graph(f"{argument} {OUTER[0]}"), AFTER)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(argument=st.sampled_from(ARGUMENTS), outer=st.sampled_from(OUTER))
def test_fires_for_each_pair(argument: str, outer: str) -> None:
    check(GeluTanh(), graph(f"{argument} {outer}"), AFTER)


def test_fires_through_a_sigmoid() -> None:
    argument = ARGUMENTS[0].replace("Mul(i, s)", "Mul(i, s2)")
    check(GeluTanh(), graph(f"{argument} g = Sigmoid(a) y = Mul(x, g)"), AFTER)


def test_refuses_a_shared_inner_value() -> None:
    body = f"{ARGUMENTS[0]} {OUTER[0]}"
    check_refuses(GeluTanh(), graph(body, "float[N,4] y, float[N,4] t"), "is an output of the graph")


@pytest.mark.parametrize(
    "body",
    [
        f"{ARGUMENTS[0].replace('three', 'two')} {OUTER[0]}",
        f"{ARGUMENTS[0].replace('k)', 's)')} {OUTER[0]}",
        f"{ARGUMENTS[0].replace('Mul(i, s)', 'Mul(i, s2)')} {OUTER[0]}",
        f"{ARGUMENTS[0]} {OUTER[0].replace('half', 'two')}",
        f"{ARGUMENTS[0]} g = Sigmoid(a) y = Mul(x, g)",
    ],
)
def test_ignores_near_misses(body: str) -> None:
    check_ignores(GeluTanh(), graph(body))


def test_ignores_float64_and_a_constant_that_enlarges_the_rank() -> None:
    body = f"{ARGUMENTS[0]} {OUTER[0]}"
    check_ignores(GeluTanh(), graph(body).replace("float", "double"))
    check_ignores(GeluTanh(), graph(body, "float[1,N,4] y").replace("float one={", "float[1,1,1] one={"))
