"""Clamps in a row."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from graphopt.passes.relu_chain import ReluChain
from graphopt.testing import apply, check, check_ignores, check_refuses, model_from_text, run

CONSTANTS = """<float zero={0}, float[1] six={6}, float one={1}, float two={2}, float[3] per={1,2,3},
    float[1,1,1] high={1}>"""


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ("a = Relu(x) y = Relu(a)", "y = Relu(x)"),
        ("a = Relu(x) y = Clip(a, zero, six)", "y = Clip(x, zero, six)"),
        ("a = Relu(x) y = Clip(a, , six)", "y = Clip(x, zero, six)"),
        ("a = Clip(x, zero, six) y = Relu(a)", "y = Clip(x, zero, six)"),
        ("a = Clip(x, one) y = Relu(a)", "y = Clip(x, one)"),
        ("a = Max(x, zero) y = Min(a, six)", "y = Clip(x, zero, six)"),
        ("a = Min(six, x) y = Max(zero, a)", "y = Clip(x, zero, six)"),
        ("a = Clip(x, zero, two) y = Clip(a, one, six)", "y = Clip(x, one, two)"),
        ("a = Clip(x, zero, one) y = Clip(a, two, six)", "y = Clip(x, two, two)"),
        ("a = Relu(x) b = Relu(a) c = Clip(b, , six) y = Min(c, two)", "y = Clip(x, zero, two)"),
        ("a = Max(x, zero) y = Max(a, zero)", "y = Relu(x)"),
        ("a = Max(x, one) y = Max(a, two)", "y = Max(x, two)"),
        ("a = Min(x, one) y = Min(a, two)", "y = Min(x, one)"),
        ("a = Max(x, one) y = Clip(a, two)", "y = Clip(x, two)"),
    ],
)
def test_fires(body: str, after: str) -> None:
    head = "g (float[N,3] x) => (float[N,3] y)"
    scalars = CONSTANTS.replace("float[1] six", "float six")
    check(ReluChain(), f"{head} {CONSTANTS} {{ {body} }}", f"{head} {scalars} {{ {after} }}", exact=True)


def test_integers_keep_all_their_bits() -> None:
    check(
        ReluChain(),
        """g (int64[N] x) => (int64[N] y) <int64 low={-9007199254740993}, int64 high={9007199254740993}>
        { a = Max(x, low) y = Min(a, high) }""",
        """g (int64[N] x) => (int64[N] y) <int64 low={-9007199254740993}, int64 high={9007199254740993}>
        { y = Clip(x, low, high) }""",
        exact=True,
    )


@pytest.mark.parametrize(
    "body",
    [
        "a = Max(x, per) y = Min(a, six)",
        "a = Max(x, high) y = Min(a, six)",
        "a = Max(x, zero) y = Min(a, x)",
        "a = Max(x, zero, one) y = Min(a, six)",
        "a = Neg(x) y = Relu(a)",
        "a = LeakyRelu(x) y = Relu(a)",
    ],
)
def test_ignores_other_bounds(body: str) -> None:
    check_ignores(ReluChain(), f"g (float[N,3] x) => (float[A,B] y) {CONSTANTS} {{ {body} }}")


def test_refuses_bounds_that_cross() -> None:
    graph = f"g (float[N,3] x) => (float[N,3] y) {CONSTANTS} {{ a = Relu(x) y = Clip(a, six, one) }}"
    check_refuses(ReluChain(), graph, "above the upper one")


NUMBER = st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0, 6.0])


@hypothesis.settings(derandomize=True, deadline=None, max_examples=25)
@hypothesis.given(
    st.lists(
        st.tuples(st.sampled_from(["Relu", "Max", "Min", "Clip"]), NUMBER, NUMBER), min_size=2, max_size=5
    )
)
def test_any_chain(steps: list[tuple[str, float, float]]) -> None:
    constants, body = ["float unused={0}"], []
    for index, (op, low, high) in enumerate(steps):
        constants += [f"float a{index}={{{low}}}", f"float b{index}={{{high}}}"]
        operands = {"Relu": "", "Max": f", a{index}", "Min": f", b{index}", "Clip": f", a{index}, b{index}"}[
            op
        ]
        body.append(f"v{index + 1} = {op}(v{index}{operands})")
    last = len(steps)
    text = f"g (float[N] v0) => (float[N] v{last}) <{', '.join(constants)}> {{ {' '.join(body)} }}"
    model, _ = apply(ReluChain(), text)
    if all(op != "Clip" or low <= high for op, low, high in steps):
        assert len(model.graph) == 1
    x = np.array([-np.inf, -3, -1, -0.25, 0, 0.1, 0.5, 2, 7, np.inf, np.nan], np.float32)
    before, after = run(model_from_text(text), {"v0": x}), run(model, {"v0": x})
    np.testing.assert_array_equal(after[f"v{last}"], before[f"v{last}"])
