"""Transposes in a row."""

import hypothesis
import pytest
from hypothesis import strategies as st

from graphopt.passes.transpose_chain import TransposeChain
from graphopt.testing import apply, assert_same_numbers, check, check_ignores, check_refuses, model_from_text


def test_fires() -> None:
    check(
        TransposeChain(),
        "g (float[A,B,C] x) => (float[D,E,F] y) { a = Transpose<perm=[1,2,0]>(x) y = Transpose<perm=[1,0,2]>(a) }",
        "g (float[A,B,C] x) => (float[D,E,F] y) { y = Transpose<perm=[2,1,0]>(x) }",
        exact=True,
    )


@pytest.mark.parametrize(
    "body",
    [
        "a = Transpose<perm=[0,2,3,1]>(x) b = Transpose<perm=[0,3,1,2]>(a) y = Relu(b)",
        "a = Transpose(x) b = Transpose(a) y = Relu(b)",
        "a = Transpose(x) b = Transpose<perm=[3,2,1,0]>(a) y = Relu(b)",
    ],
)
def test_cancels(body: str) -> None:
    check(
        TransposeChain(),
        f"g (float[N,3,H,W] x) => (float[N,3,H,W] y) {{ {body} }}",
        "g (float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu(x) }",
        exact=True,
    )


def test_cancels_though_the_inner_value_is_read_elsewhere() -> None:
    check(
        TransposeChain(),
        """g (float[N,3,H,W] x) => (float[N,3,H,W] y, float[N,H,W,3] z)
        { a = Transpose<perm=[0,2,3,1]>(x) b = Transpose<perm=[0,3,1,2]>(a) y = Relu(b) z = Relu(a) }""",
        """g (float[N,3,H,W] x) => (float[N,3,H,W] y, float[N,H,W,3] z)
        { a = Transpose<perm=[0,2,3,1]>(x) y = Relu(x) z = Relu(a) }""",
        exact=True,
    )


@pytest.mark.parametrize("reader", ["z = Relu(a)", "z = Identity(a)"])
def test_refuses_a_shared_inner_value(reader: str) -> None:
    check_refuses(
        TransposeChain(),
        f"""g (float[N,3,H] x) => (float[3,H,N] y, float[H,N,3] z)
        {{ a = Transpose<perm=[2,0,1]>(x) y = Transpose<perm=[2,0,1]>(a) {reader} }}""",
        "is used elsewhere",
    )


def test_ignores_one() -> None:
    check_ignores(TransposeChain(), "g (float[A,B] x) => (float[B,A] y) { a = Relu(x) y = Transpose(a) }")


@hypothesis.settings(derandomize=True, deadline=None, max_examples=30)
@hypothesis.given(st.lists(st.permutations([0, 1, 2, 3]), min_size=2, max_size=5))
def test_any_chain(perms: list[list[int]]) -> None:
    body = " ".join(f"v{i + 1} = Transpose<perm={perm}>(v{i})" for i, perm in enumerate(perms))
    text = f"g (float[2,3,4,5] v0) => (float[A,B,C,D] y) {{ {body} y = Relu(v{len(perms)}) }}"
    model, _ = apply(TransposeChain(), text)
    assert len(model.graph) <= 2
    assert_same_numbers(model_from_text(text), model, exact=True)
