"""Mish."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.mish import Mish
from graphopt.testing import check, check_ignores, check_refuses

BODY = "s = Softplus(x) t = Tanh(s) y = Mul(x, t)"


def graph(body: str, outputs: str = "float[N,4] y") -> str:
    return f"g (float[N,4] x) => ({outputs}) <float one={{1}}> {{ {body} }}"


@pytest.mark.parametrize("body", [BODY, BODY.replace("(x, t)", "(t, x)")])
def test_fires(body: str) -> None:
    check(Mish(), graph(body), "g (float[N,4] x) => (float[N,4] y) { y = Mish(x) }")


def test_refuses_a_shared_inner_value() -> None:
    check_refuses(Mish(), graph(BODY, "float[N,4] y, float[N,4] s"), "is an output of the graph")


@pytest.mark.parametrize(
    "body",
    [
        "s = Softplus(x) t = Tanh(s) y = Mul(s, t)",
        "s = Softplus(x) t = Sigmoid(s) y = Mul(x, t)",
        "e = Exp(x) a = Add(e, one) l = Log(a) t = Tanh(l) y = Mul(x, t)",
    ],
)
def test_ignores_near_misses(body: str) -> None:
    check_ignores(Mish(), graph(body))


def test_ignores_float64() -> None:
    check_ignores(Mish(), graph(BODY).replace("float", "double"))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(shape=st.lists(st.integers(0, 4), max_size=4), scale=st.sampled_from([1e-3, 1.0, 30.0, 1e30]))
def test_agrees_for_any_shape(shape: list[int], scale: float) -> None:
    type_ = f"float[{','.join(map(str, shape))}]" if shape else "float"
    x = np.asarray(np.random.default_rng(0).standard_normal(shape) * scale, np.float32)
    check(Mish(), f"g ({type_} x) => ({type_} y) {{ {BODY} }}", feeds={"x": x})
