"""Where with a condition that is the same everywhere."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from graphopt.passes.where_constant import WhereConstant
from graphopt.testing import apply, assert_same_numbers, check, check_ignores, check_refuses, model_from_text

CONSTANTS = """<bool yes={1}, bool[1] no={0}, bool[3] all={1,1,1}, bool[3] some={1,0,1}, float one={1},
    float[2,1,1] high={1,2}>"""


@pytest.mark.parametrize(
    "call", ["Where(yes, x, one)", "Where(no, one, x)", "Where(all, x, one)", "Where(c, x, x)"]
)
def test_fires(call: str) -> None:
    check(
        WhereConstant(),
        f"g (float[N,3] x, bool[N,3] c) => (float[N,3] y) {CONSTANTS} {{ a = {call} y = Relu(a) }}",
        "g (float[N,3] x, bool[N,3] c) => (float[N,3] y) { y = Relu(x) }",
        exact=True,
    )


def test_a_smaller_side_is_expanded() -> None:
    check(
        WhereConstant(),
        f"g (float[2,3] x, float[3] z) => (float[2,3] y) {CONSTANTS} {{ y = Where(no, x, z) }}",
        "g (float[2,3] x, float[3] z) => (float[2,3] y) <int64[2] s={2,3}> { y = Expand(z, s) }",
        exact=True,
    )


def test_refuses_an_unknown_shape() -> None:
    check_refuses(
        WhereConstant(),
        f"g (float[N,3] x, float[M,3] z) => (float[A,B] y) {CONSTANTS} {{ y = Where(yes, x, z) }}",
        "not known",
    )


@pytest.mark.parametrize("call", ["Where(some, x, one)", "Where(c, x, one)"])
def test_ignores(call: str) -> None:
    graph = f"g (float[N,3] x, bool[N,3] c) => (float[N,3] y) {CONSTANTS} {{ y = {call} }}"
    check_ignores(WhereConstant(), graph)


@hypothesis.settings(derandomize=True, deadline=None, max_examples=30)
@hypothesis.given(
    st.lists(st.lists(st.sampled_from([1, 3]), max_size=3), min_size=3, max_size=3), st.booleans()
)
def test_any_shapes(shapes: list[list[int]], truth: bool) -> None:
    left, right, condition = shapes
    kinds = [f"float{shape}" if shape else "float" for shape in (left, right)]
    kind = f"bool{condition}" if condition else "bool"
    out = list(np.broadcast_shapes(*map(tuple, shapes)))
    content = ",".join([str(int(truth))] * int(np.prod(condition)))
    made = f"float{out}" if out else "float"
    text = f"g ({kinds[0]} x, {kinds[1]} z) => ({made} y) <{kind} c={{{content}}}> {{ a = Where(c, x, z) y = Neg(a) }}"
    model, log = apply(WhereConstant(), text)
    assert log.applied
    assert_same_numbers(model_from_text(text), model, exact=True)
