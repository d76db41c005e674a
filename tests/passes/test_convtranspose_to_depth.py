"""Transposed convolutions without overlap."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.convtranspose_to_depth import ConvTransposeToDepth
from graphopt.testing import check, check_ignores, check_refuses

HEAD = "g (float[1,1,3,H] x) => (float[1,2,A,B] y)"
WEIGHT = "float[1,2,2,2] w={1,2,3,4,5,6,7,8}"


def test_fires() -> None:
    check(
        ConvTransposeToDepth(),
        f"{HEAD} <{WEIGHT}, float[2] b={{1,2}}> {{ y = ConvTranspose<strides=[2,2]>(x, w, b) }}",
        f"{HEAD} <float[8,1,1,1] w={{1,2,3,4,5,6,7,8}}, float[8] b={{1,1,1,1,2,2,2,2}}> "
        '{ t = Conv(x, w, b) y = DepthToSpace<blocksize=2, mode="CRD">(t) }',
    )


def test_refuses_a_shared_weight() -> None:
    check_refuses(
        ConvTransposeToDepth(),
        f"g (float[1,1,3,3] x) => (float[1,2,A,B] y, float[1,2,C,D] z) <{WEIGHT}> "
        "{ y = ConvTranspose<strides=[2,2]>(x, w) z = ConvTranspose(x, w) }",
        "is shared",
    )


@pytest.mark.parametrize(
    "options",
    [
        "strides=[1,1]",
        "strides=[2,1]",
        "strides=[2,2], pads=[0,1,0,0]",
        "strides=[2,2], output_padding=[1,0]",
        "strides=[2,2], dilations=[2,2]",
        'strides=[2,2], auto_pad="SAME_UPPER"',
        "strides=[2,2], output_shape=[6,6]",
    ],
)
def test_ignores(options: str) -> None:
    check_ignores(
        ConvTransposeToDepth(),
        f"g (float[1,1,3,3] x) => (float[1,2,A,B] y) <{WEIGHT}> {{ y = ConvTranspose<{options}>(x, w) }}",
    )


def test_ignores_groups_and_weights_that_are_not_constant() -> None:
    check_ignores(
        ConvTransposeToDepth(),
        "g (float[1,2,3,3] x) => (float[1,2,A,B] y) <float[2,1,2,2] w={1,2,3,4,5,6,7,8}> "
        "{ y = ConvTranspose<strides=[2,2], group=2>(x, w) }",
    )
    check_ignores(
        ConvTransposeToDepth(),
        "g (float[1,1,3,3] x, float[1,2,2,2] w) => (float[1,2,A,B] y) { y = ConvTranspose<strides=[2,2]>(x, w) }",
    )


@given(st.integers(1, 3), st.integers(1, 3), st.integers(2, 3), st.booleans(), st.integers(1, 4))
@settings(derandomize=True, deadline=None, max_examples=40)
def test_property(inputs: int, outputs: int, size: int, bias: bool, rows: int) -> None:
    count = inputs * outputs * size * size
    values = ",".join(str(value % 17 - 8) for value in range(count))
    biases = ",".join(str(value + 1) for value in range(outputs))
    check(
        ConvTransposeToDepth(),
        f"g (float[N,{inputs},{rows},2] x) => (float[N,{outputs},A,B] y) "
        f"<float[{inputs},{outputs},{size},{size}] w={{{values}}}, float[{outputs}] b={{{biases}}}> "
        f"{{ y = ConvTranspose<strides=[{size},{size}]>(x, w{', b' if bias else ''}) }}",
    )
