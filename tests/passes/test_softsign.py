"""Softsign."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.softsign import Softsign
from graphopt.testing import check, check_ignores, check_refuses

BODY = "a = Abs(x) d = Add(a, one) y = Div(x, d)"


def graph(body: str, outputs: str = "float[N,4] y") -> str:
    return f"g (float[N,4] x) => ({outputs}) <float one={{1}}, float two={{2}}> {{ {body} }}"


@pytest.mark.parametrize("body", [BODY, BODY.replace("(a, one)", "(one, a)")])
def test_fires(body: str) -> None:
    check(Softsign(), graph(body), "g (float[N,4] x) => (float[N,4] y) { y = Softsign(x) }")


def test_refuses_a_shared_inner_value() -> None:
    check_refuses(Softsign(), graph(BODY, "float[N,4] y, float[N,4] a"), "is an output of the graph")


@pytest.mark.parametrize(
    "body", [BODY.replace("one", "two"), BODY.replace("Div(x, d)", "Div(a, d)"), BODY.replace("Abs", "Relu")]
)
def test_ignores_near_misses(body: str) -> None:
    check_ignores(Softsign(), graph(body))


def test_ignores_float64_and_a_constant_that_enlarges_the_rank() -> None:
    check_ignores(Softsign(), graph(BODY).replace("float", "double"))
    check_ignores(Softsign(), graph(BODY, "float[1,N,4] y").replace("float one", "float[1,1,1] one"))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(shape=st.lists(st.integers(0, 4), max_size=4), scale=st.sampled_from([1e-3, 1.0, 1e4]))
def test_agrees_for_any_shape(shape: list[int], scale: float) -> None:
    type_ = f"float[{','.join(map(str, shape))}]" if shape else "float"
    x = np.asarray(np.random.default_rng(0).standard_normal(shape) * scale, np.float32)
    check(Softsign(), f"g ({type_} x) => ({type_} y) <float one={{1}}> {{ {BODY} }}", feeds={"x": x})
