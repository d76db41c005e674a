"""Expand in front of operators that broadcast."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.mask_expand import MaskExpand
from graphopt.testing import check, check_ignores

SHAPE = "int64[4] shape = {2,3,4,5}, int64[4] partial = {1,1,4,1}"


@pytest.mark.parametrize(
    "operation", ["Add(x, e)", "Mul(e, x)", "Where(c, e, x)", "Where(c, x, e)", "Max(x, e)"]
)
def test_goes_where_another_operand_has_the_shape(operation: str) -> None:
    head = f"g (float[2,3,4,5] x, float[2,1,1,5] m, bool[5] c) => (float[2,3,4,5] y) <{SHAPE}>"
    check(
        MaskExpand(),
        f"{head} {{ e = Expand(m, shape) y = {operation} }}",
        f"{head} {{ y = {operation.replace('e', 'm').replace('Whmrm', 'Where')} }}",
        exact=True,
    )


def test_dynamic_shape() -> None:
    head = "g (float[B,H,L,L] x, float[B,1,1,L] m) => (float[B,H,L,L] y)"
    check(
        MaskExpand(),
        f"{head} {{ s = Shape(x) e = Expand(m, s) y = Add(x, e) }}",
        f"{head} {{ y = Add(x, m) }}",
        exact=True,
    )


def test_moves_behind_and_goes_at_the_reader() -> None:
    head = "g (float[2,3,4,5] x, bool[2,1,1,5] c) => (float[2,3,4,5] y)"
    constants = f"<{SHAPE}, float zero = {{0}}, float low = {{-1e9}}>"
    check(
        MaskExpand(),
        f"{head} {constants} {{ e = Expand(c, shape) m = Where(e, zero, low) y = Add(x, m) }}",
        f"{head} {constants} {{ m = Where(c, zero, low) y = Add(x, m) }}",
        exact=True,
    )


def test_two_masks() -> None:
    """The product of a row and a column has the whole shape without either Expand."""
    head = "g (bool[2,1,4,1] a, bool[1,1,1,5] b) => (bool[2,1,4,5] y)"
    constants = "<int64[4] shape = {2,1,4,5}>"
    check(
        MaskExpand(),
        f"{head} {constants} {{ e = Expand(a, shape) f = Expand(b, shape) y = And(e, f) }}",
        f"{head} {constants} {{ y = And(a, b) }}",
        exact=True,
    )


@pytest.mark.parametrize(
    "body",
    [
        "e = Expand(m, shape) y = Add(e, n) z = Relu(e)",
        "e = Expand(m, t) y = Add(e, n) z = Relu(x)",
        "e = Expand(m, shape) y = Softmax(e) z = Relu(x)",
    ],
)
def test_ignores(body: str) -> None:
    inputs = "float[2,3,4,5] x, float[2,1,1,5] m, float[1,1,4,1] n, int64[4] t"
    check_ignores(
        MaskExpand(), f"g ({inputs}) => (float[2,3,4,5] y, float[2,3,4,5] z) <{SHAPE}> {{ {body} }}"
    )


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    small=st.lists(st.booleans(), min_size=1, max_size=3),
    other=st.lists(st.booleans(), min_size=1, max_size=3),
    operation=st.sampled_from(["Add", "Mul", "Sub", "Max"]),
    first=st.booleans(),
)
def test_numbers_agree(small: list[bool], other: list[bool], operation: str, first: bool) -> None:
    full = [2, 3, 4]
    left = [size if keep else 1 for size, keep in zip(full[-len(small) :], small, strict=True)]
    right = [size if keep else 1 for size, keep in zip(full[-len(other) :], other, strict=True)]
    operands = "(e, x)" if first else "(x, e)"
    text = (
        f"g (float[{','.join(map(str, left))}] m, float[{','.join(map(str, right))}] x) => (float[2,3,4] y) "
        f"<int64[3] shape = {{2,3,4}}> {{ e = Expand(m, shape) y = {operation}{operands} }}"
    )
    if left != full:
        try:
            check(MaskExpand(), text, exact=True)
        except AssertionError as error:
            assert "nothing changed" in str(error)
