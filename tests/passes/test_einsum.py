"""Einsum as the operators that it consists of."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.einsum import Einsum
from graphopt.testing import check, check_ignores, check_refuses

SIZES = {label: 2 + index % 4 for index, label in enumerate("abcdehijkmnoq")}


def graph(equation: str, *, rename: dict[str, str] | None = None, kind: str = "float") -> str:
    terms, _, output = equation.partition("->")
    sizes = {label: str(size) for label, size in SIZES.items()} | (rename or {})
    shapes = [f"{kind}[{','.join(sizes[label] for label in term)}]" for term in [*terms.split(","), output]]
    inputs = ", ".join(f"{shape} x{index}" for index, shape in enumerate(shapes[:-1]))
    operands = ", ".join(f"x{index}" for index in range(len(shapes) - 1))
    return f'g ({inputs}) => ({shapes[-1]} y) {{ y = Einsum<equation="{equation}">({operands}) }}'


@pytest.mark.parametrize(
    ("equation", "kinds"),
    [
        (
            "abc,cde->abde",
            ["Reshape", "MatMul", "Reshape"],
        ),  # EinsumDense, query of Keras' MultiHeadAttention
        ("abde,deo->abo", ["Reshape", "Reshape", "MatMul"]),  # its output projection
        ("aecd,abcd->acbe", ["Transpose", "Transpose", "MatMul"]),  # its scores
        ("acbe,aecd->abcd", ["Transpose", "MatMul", "Transpose"]),  # its values
        ("bqhd,bkhd->bhqk", ["Transpose", "Transpose", "MatMul"]),
        ("bhqk,bkhd->bqhd", ["Transpose", "MatMul", "Transpose"]),
        ("ij,jk->ik", ["MatMul"]),
        ("bij,bjk->bik", ["MatMul"]),
        ("ij,kj->ik", ["Transpose", "MatMul"]),
        ("ijk,k->ij", ["MatMul"]),
        ("bi,bi->b", ["Reshape", "Reshape", "MatMul", "Reshape"]),
        ("i,j->ij", ["Unsqueeze", "Mul"]),
        ("bhi,bhj->bhij", ["Unsqueeze", "Unsqueeze", "Mul"]),
        ("ij,ij->ij", ["Mul"]),
        ("ij->ji", ["Transpose"]),
        ("ij->i", ["ReduceSum"]),
        ("abc,abd->cd", ["Transpose", "Reshape", "Reshape", "MatMul"]),
        ("ab,cb->", ["ReduceSum", "ReduceSum", "MatMul"]),
    ],
)
def test_fires(equation: str, kinds: list[str]) -> None:
    assert [node.op_type for node in check(Einsum(), graph(equation)).graph] == kinds


def test_weights_are_laid_out_at_once() -> None:
    before = """g (float[N,L,3] x) => (float[N,L,2,2] y) <float[2,2,3] w = {1,2,3,4,5,6,7,8,9,10,11,12}>
        { y = Einsum<equation="abc,dec->abde">(x, w) }"""
    after = """g (float[N,L,3] x) => (float[N,L,2,2] y) <float[3,4] w = {1,4,7,10,2,5,8,11,3,6,9,12}, int64[4] s = {0,0,2,2}>
        { m = MatMul(x, w) y = Reshape(m, s) }"""
    check(Einsum(), before, after)


def test_ellipsis() -> None:
    before = 'g (float[N,3,4] x, float[N,4,5] z) => (float[N,3,5] y) { y = Einsum<equation="...ij,...jk->...ik">(x, z) }'
    check(Einsum(), before, "g (float[N,3,4] x, float[N,4,5] z) => (float[N,3,5] y) { y = MatMul(x, z) }")


def test_implicit_output() -> None:
    before = 'g (float[3,4] x, float[4,5] z) => (float[3,5] y) { y = Einsum<equation="ij, jk">(x, z) }'
    check(Einsum(), before, "g (float[3,4] x, float[4,5] z) => (float[3,5] y) { y = MatMul(x, z) }")


def test_refuses_three_operands() -> None:
    check_refuses(Einsum(), graph("ij,jk,km->im"), "more than two")


def test_refuses_a_diagonal() -> None:
    check_refuses(Einsum(), graph("ii->i"), "repeated")


def test_refuses_integers() -> None:
    check_refuses(Einsum(), graph("ij,jk->ik", kind="int32"), "floating-point")


def test_refuses_sizes_that_may_broadcast() -> None:
    before = 'g (float[3,A] x, float[B,5] z) => (float[3,5] y) { y = Einsum<equation="ij,jk->ik">(x, z) }'
    check_refuses(Einsum(), before, "shared label")


def test_refuses_to_merge_unknown_sizes() -> None:
    check_refuses(
        Einsum(), graph("nabc,ncd->nabd", rename={label: label.upper() for label in "nabc"}), "merge"
    )


def test_ignores_ellipses_of_unequal_rank() -> None:
    before = 'g (float[2,3,4] x, float[4,5] z) => (float[2,3,5] y) { y = Einsum<equation="...ij,...jk->...ik">(x, z) }'
    check_ignores(Einsum(), before)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_numbers_agree(data: st.DataObject) -> None:
    """Any two operands with any output labels, in any order."""
    labels = st.lists(st.sampled_from("abcde"), min_size=1, max_size=4, unique=True)
    left, right = data.draw(labels), data.draw(labels)
    union = sorted(set(left) | set(right))
    output = data.draw(st.permutations(data.draw(st.lists(st.sampled_from(union), unique=True, max_size=4))))
    result = check(Einsum(), graph(f"{''.join(left)},{''.join(right)}->{''.join(output)}"))
    assert not any(node.op_type == "Einsum" for node in result.graph)
