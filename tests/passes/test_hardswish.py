"""HardSwish in the forms that Paddle, PyTorch and others write."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.hardswish import HardSwish
from graphopt.testing import check, check_ignores, check_refuses

CONSTANTS = "<float three={3}, float zero={0}, float six={6}, float sixth={0.16666667}>"
AFTER = "g (float[N,4] x) => (float[N,4] y) { y = HardSwish(x) }"


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, six)",
        "a = Add(three, x) b = Clip(a, zero, six) c = Div(b, six) y = Mul(c, x)",
        "a = Add(x, three) b = Clip(a, zero, six) c = Mul(b, x) y = Mul(c, sixth)",
        "a = Add(x, three) r = Relu(a) b = Min(r, six) c = Mul(b, sixth) y = Mul(x, c)",
        "a = Add(x, three) r = Min(a, six) b = Max(r, zero) c = Mul(x, b) y = Div(c, six)",
        "a = HardSigmoid<alpha=0.16666667, beta=0.5>(x) y = Mul(x, a)",
    ],
)
def test_fires(body: str) -> None:
    check(HardSwish(), f"g (float[N,4] x) => (float[N,4] y) {CONSTANTS} {{ {body} }}", AFTER)


def test_refuses_a_shared_inner_value() -> None:
    body = "a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, six)"
    check_refuses(
        HardSwish(),
        f"g (float[N,4] x) => (float[N,4] y, float[N,4] b) {CONSTANTS} {{ {body} }}",
        "is an output of the graph",
    )


@pytest.mark.parametrize(
    "body",
    [
        "a = Add(x, six) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, six)",
        "a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, three)",
        "a = HardSigmoid(x) y = Mul(x, a)",
    ],
)
def test_ignores_other_constants(body: str) -> None:
    check_ignores(HardSwish(), f"g (float[N,4] x) => (float[N,4] y) {CONSTANTS} {{ {body} }}")


def test_ignores_float64_and_a_constant_that_enlarges_the_rank() -> None:
    body = "a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, six)"
    before = f"g (float[N,4] x) => (float[N,4] y) {CONSTANTS} {{ {body} }}"
    check_ignores(HardSwish(), before.replace("float", "double"))
    wide = before.replace("float three", "float[1,1,1] three").replace("(float[N,4] y)", "(float[1,N,4] y)")
    check_ignores(HardSwish(), wide)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(shape=st.lists(st.integers(0, 4), max_size=4), scale=st.sampled_from([1e-3, 1.0, 10.0]))
def test_agrees_for_any_shape(shape: list[int], scale: float) -> None:
    body = "a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) y = Mul(c, sixth)"
    type_ = f"float[{','.join(map(str, shape))}]" if shape else "float"
    x = np.asarray(np.random.default_rng(0).standard_normal(shape) * scale, np.float32)
    check(HardSwish(), f"g ({type_} x) => ({type_} y) {CONSTANTS} {{ {body} }}", feeds={"x": x})
