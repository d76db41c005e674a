"""Softmax and LogSoftmax written out."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.softmax import Softmax
from graphopt.testing import check, check_ignores, check_refuses

EXP = "m = ReduceMax(x, ax) d = Sub(x, m) e = Exp(d) s = ReduceSum(e, ax2) "
ROOTS = ["y = Div(e, s)", "r = Reciprocal(s) y = Mul(e, r)", "r = Div(one, s) y = Mul(r, e)"]
LOG = EXP + "l = Log(s) y = Sub(d, l)"


def graph(body: str, ax: str = "-1", ax2: str = "2", outputs: str = "float[N,3,4] y") -> str:
    count = ax.count(",") + 1
    constants = f"<int64[{count}] ax={{{ax}}}, int64[{count}] ax2={{{ax2}}}, float one={{1}}>"
    return f"g (float[N,3,4] x) => ({outputs}) {constants} {{ {body} }}"


@pytest.mark.parametrize("root", ROOTS)
def test_fires(root: str) -> None:
    after = "g (float[N,3,4] x) => (float[N,3,4] y) { y = Softmax<axis=-1>(x) }"
    check(Softmax(), graph(EXP + root), after)


def test_the_logarithm() -> None:
    after = "g (float[N,3,4] x) => (float[N,3,4] y) { y = LogSoftmax<axis=1>(x) }"
    check(Softmax(), graph(LOG, "1", "1"), after)


def test_refuses_two_axes() -> None:
    check_refuses(Softmax(), graph(EXP + ROOTS[0], "1,2", "1,2"), "more than one axis")


def test_refuses_a_shared_inner_value() -> None:
    before = graph(EXP + ROOTS[0], outputs="float[N,3,4] y, float[N,3,4] e")
    check_refuses(Softmax(), before, "is an output of the graph")


@pytest.mark.parametrize(
    "body",
    [
        "e = Exp(x) s = ReduceSum(e, ax) y = Div(e, s)",
        EXP.replace("ReduceMax", "ReduceMin") + ROOTS[0],
        EXP.replace("ReduceSum", "ReduceMean") + ROOTS[0],
        EXP + "y = Div(s, e)",
        EXP + "l = Log(s) y = Sub(x, l)",
    ],
)
def test_ignores_near_misses(body: str) -> None:
    check_ignores(Softmax(), graph(body))


def test_ignores_differing_axes_dropped_axes_and_float64() -> None:
    check_ignores(Softmax(), graph(EXP + ROOTS[0], "1", "2"))
    check_ignores(Softmax(), graph(EXP + ROOTS[0]).replace("float", "double"))
    dropped = EXP.replace("ReduceSum(", "ReduceSum<keepdims=0>(") + ROOTS[0]
    check_ignores(Softmax(), graph(dropped).replace("N,3,4", "4,4,4"))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    axis=st.integers(0, 3),
    negative=st.booleans(),
    body=st.sampled_from([*(EXP + root for root in ROOTS), LOG]),
)
def test_agrees_for_any_axis(shape: list[int], axis: int, negative: bool, body: str) -> None:
    axis %= len(shape)
    first = str(axis - len(shape) if negative else axis)
    check(Softmax(), graph(body, first, str(axis)).replace("N,3,4", ",".join(map(str, shape))))
