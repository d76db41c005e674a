"""Neutral operands."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from graphopt.passes.no_op_arithmetic import AddZero, NoOpArithmetic
from graphopt.testing import (
    apply,
    assert_same_numbers,
    check,
    check_ignores,
    model_from_text,
    random_feeds,
    run,
)

CONSTANTS = """<float one={1}, float[1] ones={1}, float[3,1] column={1,1,1}, float zero={0}, float minus={-0.0},
    float[1,1,1] high={1}, float[5] wide={1,1,1,1,1}, float[2] mixed={1,2}>"""


@pytest.mark.parametrize(
    "call",
    [
        "Mul(p, one)",
        "Mul(one, p)",
        "Mul(p, ones)",
        "Mul(p, column)",
        "Div(p, one)",
        "Pow(p, one)",
        "Sub(p, zero)",
        "Add(p, minus)",
        "Add(minus, p)",
        "Sum(p)",
        "Max(p)",
        "Mean(p)",
    ],
)
def test_fires(call: str) -> None:
    check(
        NoOpArithmetic(),
        f"g (float[3,N] x) => (float[3,N] y) {CONSTANTS} {{ p = Neg(x) q = {call} y = Abs(q) }}",
        "g (float[3,N] x) => (float[3,N] y) { p = Neg(x) y = Abs(p) }",
        exact=True,
    )


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        ("int32", "Add(x, n)"),
        ("int64", "Mul(x, u)"),
        ("int64", "Sub(x, n)"),
        ("double", "Div(x, u)"),
        ("int64", "Div(x, u)"),
        ("bool", "And(x, u)"),
        ("bool", "Or(n, x)"),
        ("bool", "Xor(x, n)"),
    ],
)
def test_fires_for_each_type(kind: str, call: str) -> None:
    check(
        NoOpArithmetic(),
        f"g ({kind}[3] x) => ({kind}[3] y) <{kind} u={{1}}, {kind} n={{0}}> {{ y = {call} }}",
        f"g ({kind}[3] x) => ({kind}[3] y) {{ y = Identity(x) }}",
        exact=True,
    )


def test_fires_for_half_precision() -> None:
    check(
        NoOpArithmetic(),
        "g (float16[3] x) => (float16[3] y) <float16 u={15360}> { a = Mul(u, x) y = Neg(a) }",
        "g (float16[3] x) => (float16[3] y) { y = Neg(x) }",
        exact=True,
    )


def test_fires_for_double_negation() -> None:
    check(
        NoOpArithmetic(),
        "g (bool[3] x, float[3] z) => (bool[3] y, float[3] w) "
        "{ a = Not(x) b = Not(a) y = Xor(b, x) c = Neg(z) d = Neg(c) w = Abs(d) }",
        "g (bool[3] x, float[3] z) => (bool[3] y, float[3] w) { y = Xor(x, x) w = Abs(z) }",
        exact=True,
    )


@pytest.mark.parametrize(
    "call",
    [
        "Mul(x, high)",
        "Mul(x, wide)",
        "Mul(x, mixed)",
        "Div(one, x)",
        "Pow(one, x)",
        "Sub(zero, x)",
        "Add(x, zero)",
        "Sub(x, minus)",
        "Add(x, one)",
        "Max(x, one)",
        "Clip(x)",  # makes infinity the largest finite number
    ],
)
def test_ignores_what_changes_something(call: str) -> None:
    shape = "float[2,2]" if "mixed" in call else "float[3,N]"
    graph = f"g ({shape} x) => (float y) {CONSTANTS} {{ q = {call} y = ReduceMax<keepdims=0>(q) }}"
    check_ignores(NoOpArithmetic(), graph)


def test_ignores_an_initializer_that_a_caller_may_override() -> None:
    check_ignores(NoOpArithmetic(), "g (float[3] x, float one = {1}) => (float[3] y) { y = Mul(x, one) }")


def test_add_zero() -> None:
    for call in ("Add(x, zero)", "Add(zero, x)", "Sub(x, minus)"):
        check(
            AddZero(),
            f"g (float[3,N] x) => (float[3,N] y) {CONSTANTS} {{ q = {call} y = Relu(q) }}",
            "g (float[3,N] x) => (float[3,N] y) { y = Relu(x) }",
            exact=True,
        )
    for call in ("Sub(zero, x)", "Add(x, one)", "Sub(x, zero)"):
        check_ignores(AddZero(), f"g (float[3,N] x) => (float[3,N] y) {CONSTANTS} {{ y = {call} }}")


@hypothesis.settings(derandomize=True, deadline=None, max_examples=40)
@hypothesis.given(
    st.lists(st.sampled_from([1, 3]), max_size=3),
    st.lists(st.sampled_from([1, 3]), max_size=3),
    st.sampled_from(["Add", "Sub", "Mul", "Div", "Pow"]),
    st.sampled_from([0.0, -0.0, 1.0]),
    st.booleans(),
)
def test_bits_and_shapes_never_change(
    left: list[int], right: list[int], op: str, number: float, swap: bool
) -> None:
    shape = np.broadcast_shapes(tuple(left), tuple(right))
    values = ",".join([str(number)] * int(np.prod(right)))
    kind = f"float{right}" if right else "float"
    given = f"float{left}" if left else "float"
    made = f"float{list(shape)}" if shape else "float"
    operands = "c, x" if swap else "x, c"
    text = f"g ({given} x) => ({made} y) <{kind} c={{{values}}}> {{ y = {op}({operands}) }}"
    model, _ = apply(NoOpArithmetic(), text)
    feeds = random_feeds(model)
    feeds["x"] = np.where(feeds["x"] > 1, np.float32(-0.0), feeds["x"]).astype(np.float32)
    assert_same_numbers(model_from_text(text), model, feeds, exact=True)
    before, after = run(model_from_text(text), feeds)["y"], run(model, feeds)["y"]
    assert before.tobytes() == after.tobytes() or np.isnan(before).any()
