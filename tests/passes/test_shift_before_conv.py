"""A constant added before linear ops."""

import pytest

from graphopt.passes.shift_before_conv import ShiftBeforeConv
from graphopt.testing import check, check_ignores, check_refuses

CONV = "g (float[1,2,4,4] x) => (float[1,1,A,B] y)"
WEIGHT = "float[1,2,1,1] w={1,10}"


@pytest.mark.parametrize(
    ("constant", "body", "after"),
    [
        ("float s={2}", "t = Add(x, s) y = Conv(t, w)", "float[1,2,1,1] w={1,10}, float[1] b={22}"),
        ("float[2,1,1] s={2,3}", "t = Sub(x, s) y = Conv(t, w)", "float[1,2,1,1] w={1,10}, float[1] b={-32}"),
        (
            "float[2,1,1] s={2,3}",
            "t = Sub(s, x) y = Conv(t, w)",
            "float[1,2,1,1] w={-1,-10}, float[1] b={32}",
        ),
        (
            "float[1] s={2}, float[1] c={5}",
            "t = Add(s, x) y = Conv(t, w, c)",
            "float[1,2,1,1] w={1,10}, float[1] b={27}",
        ),
    ],
)
def test_fires(constant: str, body: str, after: str) -> None:
    check(
        ShiftBeforeConv(),
        f"{CONV} <{WEIGHT}, {constant}> {{ {body} }}",
        f"{CONV} <{after}> {{ y = Conv(x, w, b) }}",
    )


def test_fires_through_a_pool() -> None:
    check(
        ShiftBeforeConv(),
        f"{CONV} <{WEIGHT}, float s={{2}}> {{ t = Add(x, s) p = GlobalAveragePool(t) y = Conv(p, w) }}",
        f"{CONV} <{WEIGHT}, float[1] b={{22}}> {{ p = GlobalAveragePool(x) y = Conv(p, w, b) }}",
    )


def test_fires_before_matmul_with_a_bias_and_before_gemm() -> None:
    head = "g (float[N,2] x) => (float[N,3] y)"
    weight = "float[2,3] w={1,2,3,4,5,6}"
    check(
        ShiftBeforeConv(),
        f"{head} <{weight}, float[2] s={{1,2}}, float[3] b={{1,1,1}}> "
        "{ t = Add(x, s) m = MatMul(t, w) y = Add(m, b) }",
        f"{head} <{weight}, float[3] b={{10,13,16}}> {{ m = MatMul(x, w) y = Add(m, b) }}",
    )
    check(
        ShiftBeforeConv(),
        f"{head} <{weight}, float[2] s={{1,2}}, float[3] b={{1,1,1}}> "
        "{ t = Add(x, s) y = Gemm<alpha=2.0, beta=3.0>(t, w, b) }",
        f"{head} <{weight}, float[3] b={{21,27,33}}> {{ y = Gemm<alpha=2.0>(x, w, b) }}",
    )


def test_refuses_a_sum_that_would_grow() -> None:
    check_refuses(
        ShiftBeforeConv(),
        "g (float[N,2] x) => (float[N,3] y) <float[2,3] w={1,2,3,4,5,6}, float[2] s={1,2}> "
        "{ t = Add(x, s) y = MatMul(t, w) }",
        "larger tensor",
    )


@pytest.mark.parametrize("options", ["pads=[0,0,0,1]", 'auto_pad="SAME_LOWER"'])
def test_refuses_padding(options: str) -> None:
    check_refuses(
        ShiftBeforeConv(),
        f"{CONV} <float[1,2,1,2] w={{1,2,3,4}}, float s={{2}}> {{ t = Add(x, s) y = Conv<{options}>(t, w) }}",
        "pads with zeros",
    )


def test_refuses_another_reader() -> None:
    check_refuses(
        ShiftBeforeConv(),
        f"g (float[1,2,4,4] x) => (float[1,1,A,B] y, float[1,2,4,4] z) <{WEIGHT}, float s={{2}}> "
        "{ t = Add(x, s) y = Conv(t, w) z = Sigmoid(t) }",
        "keeps it alive",
    )


@pytest.mark.parametrize(
    "model",
    [
        "g (float[1,1,4,4] x) => (float[1,1,A,B] y) <float[1,2,1,1] w={1,10}, float[2,1,1] s={2,3}> "
        "{ t = Add(x, s) y = Conv(t, w) }",
        "g (float[1,C,4,4] x) => (float[1,1,A,B] y) <float[1,2,1,1] w={1,10}, float[2,1,1] s={2,3}> "
        "{ t = Add(x, s) y = Conv(t, w) }",
        "g (float[1,2,4,4] x) => (float[1,1,A,B] y) <float[1,2,1,1] w={1,10}, float s={2}> "
        "{ t = Add(x, s) r = Relu(t) y = Conv(r, w) }",
        "g (float[1,2,4,4] x) => (float[1,1,A,B] y) <float[2,1,1,1] w={1,10}, float s={2}> "
        "{ t = Add(x, s) y = ConvTranspose(t, w) }",
        "g (float[1,2,4,4] x) => (float[1,1,A,B] y) <float[1,2,1,1] w={1,10}, float s={2}> "
        "{ t = Add(x, s) p = AveragePool<kernel_shape=[2,2], pads=[1,1,1,1], count_include_pad=1>(t) y = Conv(p, w) }",
    ],
)
def test_ignores(model: str) -> None:
    check_ignores(ShiftBeforeConv(), model)
