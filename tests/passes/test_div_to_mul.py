"""Division by a constant."""

import hypothesis
import pytest
from hypothesis import strategies as st

from graphopt.passes.div_to_mul import DivToMul
from graphopt.testing import check, check_ignores, check_refuses


def test_powers_of_two_are_exact() -> None:
    check(
        DivToMul(),
        "g (float[N,2] x) => (float[N,2] y) <float[2] c={2,-0.25}> { y = Div(x, c) }",
        "g (float[N,2] x) => (float[N,2] y) <float[2] c={0.5,-4}> { y = Mul(x, c) }",
        exact=True,
    )


@hypothesis.settings(derandomize=True, deadline=None, max_examples=15)
@hypothesis.given(st.floats(2.0**-20, 2.0**20, width=32), st.sampled_from(["float", "double"]), st.booleans())
def test_within_one_rounding(divisor: float, kind: str, negative: bool) -> None:
    number = -divisor if negative else divisor
    text = f"g ({kind}[N] x) => ({kind}[N] y) <{kind} c={{{number!r}}}> {{ y = Div(x, c) }}"
    check(DivToMul(), text, rtol=1.3e-7 if kind == "float" else 3e-16)


@pytest.mark.parametrize("number", ["0", "1e-39", "2e38"])
def test_refuses(number: str) -> None:
    text = f"g (float[N] x) => (float[N] y) <float c={{{number}}}> {{ y = Div(x, c) }}"
    check_refuses(DivToMul(), text, "leaves the range")


@pytest.mark.parametrize("call", ["Div(c, x)", "Div(x, x)"])
def test_ignores(call: str) -> None:
    check_ignores(DivToMul(), f"g (float[N] x) => (float[N] y) <float c={{2}}> {{ y = {call} }}")


def test_ignores_integers() -> None:
    check_ignores(DivToMul(), "g (int64[N] x) => (int64[N] y) <int64 c={2}> { y = Div(x, c) }")
