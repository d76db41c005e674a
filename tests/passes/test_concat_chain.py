"""Concats of Concats."""

import hypothesis
import pytest
from hypothesis import strategies as st

from graphopt.passes.concat_chain import ConcatChain
from graphopt.testing import apply, assert_same_numbers, check, check_ignores, check_refuses, model_from_text

HEAD = "g (float[N,2] p, float[N,3] q, float[N,4] r) => (float[N,A] y)"


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ("a = Concat<axis=1>(p, q) y = Concat<axis=1>(a, r)", "y = Concat<axis=1>(p, q, r)"),
        ("a = Concat<axis=-1>(p, q) y = Concat<axis=1>(r, a, p)", "y = Concat<axis=1>(r, p, q, p)"),
        ("a = Concat<axis=1>(p, q) y = Concat<axis=-1>(a, r, a)", "y = Concat<axis=1>(p, q, r, p, q)"),
        (
            "a = Concat<axis=1>(p, q) b = Concat<axis=1>(r, r) y = Concat<axis=1>(a, b)",
            "y = Concat<axis=1>(p, q, r, r)",
        ),
    ],
)
def test_fires(body: str, after: str) -> None:
    check(ConcatChain(), f"{HEAD} {{ {body} }}", f"{HEAD} {{ {after} }}", exact=True)


def test_ignores_another_axis() -> None:
    check_ignores(
        ConcatChain(),
        f"{HEAD} {{ a = Concat<axis=0>(p, p, p) b = Concat<axis=0>(q, q, q) y = Concat<axis=1>(a, b) }}",
    )


def test_refuses_a_shared_inner_concat() -> None:
    graph = """g (float[N,2] p, float[N,3] q) => (float[N,A] y, float[N,5] z)
        { a = Concat<axis=1>(p, q) y = Concat<axis=1>(a, p) z = Relu(a) }"""
    check_refuses(ConcatChain(), graph, "used elsewhere")


def test_refuses_very_long_lists() -> None:
    many = ", ".join(["p"] * 200)
    graph = f"{HEAD} {{ a = Concat<axis=1>({many}) b = Concat<axis=1>({many}) y = Concat<axis=1>(a, b) }}"
    check_refuses(ConcatChain(), graph, "more than 256")


@hypothesis.settings(derandomize=True, deadline=None, max_examples=25)
@hypothesis.given(st.lists(st.tuples(st.sampled_from([0, 1, -1, -2]), st.booleans()), min_size=1, max_size=5))
def test_any_nest(levels: list[tuple[int, bool]]) -> None:
    body, current = [], "x"
    for index, (axis, first) in enumerate(levels):
        other = f"n{index}"
        body.append(f"{other} = Neg({current})")
        operands = f"{current}, {other}" if first else f"{other}, {current}"
        body.append(f"c{index} = Concat<axis={axis}>({operands})")
        body.append(f"d{index} = Concat<axis={axis}>(c{index}, c{index})")
        current = f"d{index}"
    text = f"g (float[N,2] x) => (float[A,B] y) {{ {' '.join(body)} y = Relu({current}) }}"
    model, _ = apply(ConcatChain(), text)
    assert_same_numbers(model_from_text(text), model, exact=True)
