"""The inputs that two models both take."""

from __future__ import annotations

import pytest

from graphopt.data.interface import TensorSpec
from graphopt.data.intersection import differences, intersection


def x(*dims: int | str | None, name: str = "x", dtype: str = "float") -> TensorSpec:
    return TensorSpec(name, dtype, dims)


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        ((x("n", 8),), (x("n", 8),), (x("n", 8),)),
        ((x(None, 3, None, None),), (x(1, 3, 48, 192),), (x(1, 3, 48, 192),)),
        ((x(1, None),), (x(None, 8),), (x(1, 8),)),
        # The name of a dimension carries its size to where else it occurs, on either side.
        ((x("n", 8), x("n", 4, name="y")), (x(2, 8), x("m", 4, name="y")), (x(2, 8), x(2, 4, name="y"))),
        # n = a by x, a = b by y: the size that z fixes for b reaches all of them.
        (
            (x("n"), x("k", name="y"), x("k", name="z")),
            (x("a"), x("a", name="y"), x(7, name="z")),
            (x(7), x(7, name="y"), x(7, name="z")),
        ),
        ((TensorSpec("x", "float", None),), (x("n", 8),), (x("n", 8),)),
        ((x("n", 8),), (TensorSpec("x", "float", None),), (x("n", 8),)),
    ],
)
def test_sizes_of_either_side_are_kept(
    first: tuple[TensorSpec, ...], second: tuple[TensorSpec, ...], wanted: tuple[TensorSpec, ...]
) -> None:
    assert differences(first, second, ("a", "b")) == []
    assert intersection(first, second) == wanted


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ((x("n"),), (), "'x' (float[n]) is only in a"),
        ((), (x(None),), "'x' (float[?]) is only in b"),
        ((x(2),), (x(3),), "'x' is float[2] in a and float[3] in b"),
        ((x(2),), (x(2, 2),), "'x' is float[2] in a and float[2,2] in b"),
        ((x(2),), (x(2, dtype="int64"),), "'x' is float[2] in a and int64[2] in b"),
    ],
)
def test_differences_are_named(
    first: tuple[TensorSpec, ...], second: tuple[TensorSpec, ...], says: str
) -> None:
    assert differences(first, second, ("a", "b")) == [says]


def test_shapes_of_outputs_may_differ_where_asked() -> None:
    assert differences((x(2),), (x(3, 4),), ("a", "b"), shapes=False) == []
    assert differences((x(2),), (x(2, dtype="int64"),), ("a", "b"), shapes=False) != []
