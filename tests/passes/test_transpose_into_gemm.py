"""Transposed operands of matrix products."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.transpose_into_gemm import TransposeIntoGemm
from graphopt.testing import check, check_ignores, check_refuses

ROLE = "g (float[2,N] x, float[3,2] z) => (float[N,3] y)"


def test_fires_for_matmul() -> None:
    check(
        TransposeIntoGemm(),
        f"{ROLE} {{ a = Transpose<perm=[1,0]>(x) b = Transpose(z) y = MatMul(a, b) }}",
        f"{ROLE} {{ y = Gemm<transA=1, transB=1>(x, z) }}",
    )


def test_a_transposed_operand_that_is_transposed_again() -> None:
    check(
        TransposeIntoGemm(),
        "g (float[2,3] x, float[2,4] z) => (float[3,4] y) "
        "{ a = Transpose<perm=[1,0]>(z) y = Gemm<transA=1, transB=1, alpha=2.0, beta=0.5>(x, a) }",
        "g (float[2,3] x, float[2,4] z) => (float[3,4] y) { y = Gemm<transA=1, alpha=2.0, beta=0.5>(x, z) }",
    )


def test_refuses_a_transpose_read_elsewhere() -> None:
    check_refuses(
        TransposeIntoGemm(),
        "g (float[2,N] x, float[2,3] z) => (float[N,3] y, float[N,2] a) "
        "{ a = Transpose<perm=[1,0]>(x) y = MatMul(a, z) }",
        "something else reads",
    )


@pytest.mark.parametrize(
    "model",
    [
        "g (float[5,2,4] x, float[2,3] z) => (float[5,4,3] y) { a = Transpose<perm=[0,2,1]>(x) y = MatMul(a, z) }",
        "g (int32[2,4] x, int32[2,3] z) => (int32[4,3] y) { a = Transpose<perm=[1,0]>(x) y = MatMul(a, z) }",
        "g (float[2,4] x, float[7,2,3] z) => (float[7,4,3] y) { a = Transpose<perm=[1,0]>(x) y = MatMul(a, z) }",
    ],
)
def test_ignores(model: str) -> None:
    check_ignores(TransposeIntoGemm(), model)


@given(*[st.booleans()] * 5, st.sampled_from(["float", "float16", "double"]))
@settings(derandomize=True, deadline=None, max_examples=30)
def test_property(a: bool, b: bool, ta: bool, tb: bool, bias: bool, kind: str) -> None:
    left = "2,4" if a != ta else "4,2"
    right = "3,2" if b != tb else "2,3"
    body = ("p = Transpose(x) " if a else "p = Identity(x) ") + (
        "q = Transpose(z) " if b else "q = Identity(z) "
    )
    text = (
        f"g ({kind}[{left}] x, {kind}[{right}] z, {kind}[3] c) => ({kind}[4,3] y) "
        f"{{ {body} y = Gemm<transA={int(ta)}, transB={int(tb)}>(p, q{', c' if bias else ''}) }}"
    )
    if a or b:
        model = check(TransposeIntoGemm(), text, rtol=2e-3 if kind == "float16" else 2e-5)
        assert "Transpose" not in [node.op_type for node in model.graph]
    else:
        check_ignores(TransposeIntoGemm(), text)
