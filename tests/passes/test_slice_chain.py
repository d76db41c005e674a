"""Slices in a row."""

import hypothesis
import pytest
from hypothesis import strategies as st

from graphopt.passes.slice_chain import SliceChain
from graphopt.testing import apply, assert_same_numbers, check, check_refuses, model_from_text, random_feeds

BOUNDS = """<int64[1] i0={0}, int64[1] i1={1}, int64[1] i2={2}, int64[1] i5={5}, int64[1] m1={-1},
    int64[1] max={9223372036854775807}, int64[1] i3={3}>"""


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (
            "a = Slice(x, i1, i5, i0) y = Slice(a, i1, i3, i1)",
            "<int64[2] s={1,1}, int64[2] e={5,3}, int64[2] a={0,1}, int64[2] t={1,1}> { y = Slice(x, s, e, a, t) }",
        ),
        (
            "a = Slice(x, i1, max) y = Slice(a, i1, i3)",
            "<int64[1] s={2}, int64[1] e={4}, int64[1] a={0}, int64[1] t={1}> { y = Slice(x, s, e, a, t) }",
        ),
        (
            "a = Slice(x, i1, i3) y = Slice(a, i1, i5)",
            "<int64[1] s={2}, int64[1] e={3}, int64[1] a={0}, int64[1] t={1}> { y = Slice(x, s, e, a, t) }",
        ),
        (
            "a = Slice(x, i1, max, m1) y = Slice(a, i0, m1, i1)",
            "<int64[1] s={1}, int64[1] e={6}, int64[1] a={1}, int64[1] t={1}> { y = Slice(x, s, e, a, t) }",
        ),
    ],
)
def test_fires(body: str, after: str) -> None:
    head = "g (float[N,7] x) => (float[A,B] y)"
    check(SliceChain(), f"{head} {BOUNDS} {{ {body} }}", f"{head} {after}", exact=True)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("a = Slice(x, s, i5) y = Slice(a, i1, i3)", "bounds are not constant"),
        ("a = Slice(x, i0, max, i0, m1) y = Slice(a, i1, i3)", "not clear"),
        ("a = Slice(x, i1, m1) y = Slice(a, i1, i3)", "dynamic dimension"),
        ("a = Slice(x, i0, max, i0, i2) y = Slice(a, i1, i3)", "dynamic dimension"),
    ],
)
def test_refuses(body: str, reason: str) -> None:
    graph = f"g (float[N,7] x, int64[1] s) => (float[A,B] y) {BOUNDS} {{ {body} }}"
    check_refuses(SliceChain(), graph, reason)


def test_refuses_a_shared_inner_value() -> None:
    graph = f"""g (float[N,7] x) => (float[A,B] y, float[C,D] z) {BOUNDS}
        {{ a = Slice(x, i1, i5) y = Slice(a, i1, i3) z = Relu(a) }}"""
    check_refuses(SliceChain(), graph, "used elsewhere")


BOUND = st.one_of(st.integers(-9, 9), st.sampled_from([2**63 - 1, -(2**63), 2**31 - 1]))
STEP = st.sampled_from([1, 1, 1, 2, 3, -1, -2])


@hypothesis.settings(derandomize=True, deadline=None, max_examples=40)
@hypothesis.given(
    st.lists(st.tuples(BOUND, BOUND, STEP, st.sampled_from([0, 1, -1])), min_size=2, max_size=3),
    st.booleans(),
)
def test_any_chain(slices: list[tuple[int, int, int, int]], static: bool) -> None:
    constants, body = [], []
    for index, parts in enumerate(slices):
        constants += [f"int64[1] {kind}{index}={{{part}}}" for kind, part in zip("seta", parts, strict=True)]
        operands = ", ".join(f"{kind}{index}" for kind in "seat")
        body.append(f"v{index + 1} = Slice(v{index}, {operands})")
    first = "7" if static else "N"
    text = (
        f"g (float[{first},6] v0) => (float[A,B] y) <{', '.join(constants)}> "
        f"{{ {' '.join(body)} y = Relu(v{len(slices)}) }}"
    )
    model, _ = apply(SliceChain(), text)
    if static and all(step > 0 or end < 2**31 - 1 for _, end, step, _ in slices):
        assert len(model.graph) == 2
    assert_same_numbers(model_from_text(text), model, random_feeds(model, {"N": 7}), exact=True)
