"""MatMul and Add of matrices."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.matmul_add_to_gemm import MatMulAddToGemm
from graphopt.testing import apply, assert_same_numbers, check, check_ignores, check_refuses, model_from_text

HEAD = "g (float[N,2] x) => (float[N,3] y)"
WEIGHT = "float[2,3] w={1,2,3,4,5,6}"


@pytest.mark.parametrize(
    "bias", ["float[3] b={1,2,3}", "float[1,3] b={1,2,3}", "float[1] b={1}", "float b={1}"]
)
@pytest.mark.parametrize("sum_", ["Add(t, b)", "Add(b, t)"])
def test_fires(bias: str, sum_: str) -> None:
    check(
        MatMulAddToGemm(),
        f"{HEAD} <{WEIGHT}, {bias}> {{ t = MatMul(x, w) y = {sum_} }}",
        f"{HEAD} <{WEIGHT}, {bias}> {{ y = Gemm(x, w, b) }}",
    )


def test_refuses_a_product_used_elsewhere() -> None:
    check_refuses(
        MatMulAddToGemm(),
        f"g (float[N,2] x) => (float[N,3] y, float[N,3] t) <{WEIGHT}, float b={{1}}> "
        "{ t = MatMul(x, w) y = Add(t, b) }",
        "output of the graph",
    )


@pytest.mark.parametrize(
    "model",
    [
        "g (float[B,N,2] x) => (float[B,N,3] y) <float[2,3] w={1,2,3,4,5,6}, float b={1}> "
        "{ t = MatMul(x, w) y = Add(t, b) }",
        "g (float[2] x) => (float[3] y) <float[2,3] w={1,2,3,4,5,6}, float b={1}> { t = MatMul(x, w) y = Add(t, b) }",
        "g (float[2,2] x) => (float[2,3] y) <float[2,3] w={1,2,3,4,5,6}, float[2,1] b={1,2}> "
        "{ t = MatMul(x, w) y = Add(t, b) }",
        "g (float[2,2] x) => (float[1,2,3] y) <float[2,3] w={1,2,3,4,5,6}, float[1,1,3] b={1,2,3}> "
        "{ t = MatMul(x, w) y = Add(t, b) }",
        "g (float[2,2] x, float[K,3] b) => (float[A,3] y) <float[2,3] w={1,2,3,4,5,6}> "
        "{ t = MatMul(x, w) y = Add(t, b) }",
        "g (int32[2,2] x) => (int32[2,3] y) <int32[2,3] w={1,2,3,4,5,6}, int32 b={1}> "
        "{ t = MatMul(x, w) y = Add(t, b) }",
    ],
)
def test_ignores(model: str) -> None:
    check_ignores(MatMulAddToGemm(), model)


@given(st.lists(st.sampled_from([1, 2, 3]), max_size=3), st.booleans())
@settings(derandomize=True, deadline=None, max_examples=40)
def test_property(shape: list[int], flipped: bool) -> None:
    """Any shape of the constant that broadcasts."""
    count = 1
    for size in shape:
        count *= size
    if any(size not in (1, wanted) for size, wanted in zip(reversed(shape), (3, 2), strict=False)):
        return
    values = ",".join(str(value) for value in range(count))
    kind = f"float[{','.join(map(str, shape))}]" if shape else "float"
    text = (
        f"g (float[2,2] x) => (float y) <{WEIGHT}, {kind} b={{{values}}}> "
        f"{{ t = MatMul(x, w) y = Add({'b, t' if flipped else 't, b'}) }}"
    ).replace("float y", "float[" + ",".join(map(str, [*shape[:-2], 2, 3])) + "] y")
    after, log = apply(MatMulAddToGemm(), text)
    assert bool(log.applied) == (len(shape) < 3 and all(size == 1 for size in shape[:-1]))
    assert_same_numbers(model_from_text(text), after)
