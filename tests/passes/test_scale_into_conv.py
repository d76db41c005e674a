"""A constant factor after linear ops."""

import pytest

from graphopt.passes.scale_into_conv import ScaleIntoConv
from graphopt.testing import check, check_ignores, check_refuses

CONV = "g (float[1,1,4,4] x) => (float[1,2,A,B] y)"
WEIGHTS = "float[2,1,1,1] w={1,10}, float[2] b={3,4}"
SCALED = "<float[2,1,1,1] w={2,20}, float[2] b={6,8}>"


@pytest.mark.parametrize(
    ("constant", "body"),
    [
        ("float s={2}", "t = Conv(x, w, b) y = Mul(t, s)"),
        ("float[1] s={2}", "t = Conv(x, w, b) y = Mul(s, t)"),
        ("float[2,1,1] s={0.5,0.5}", "t = Conv(x, w, b) y = Div(t, s)"),
        ("float[1,2,1,1] s={2,2}", "t = Conv(x, w, b) y = Mul(t, s)"),
    ],
)
def test_fires(constant: str, body: str) -> None:
    check(
        ScaleIntoConv(),
        f"{CONV} <{WEIGHTS}, {constant}> {{ {body} }}",
        f"{CONV} {SCALED} {{ y = Conv(x, w, b) }}",
    )


def test_fires_for_neg() -> None:
    check(
        ScaleIntoConv(),
        f"{CONV} <{WEIGHTS}> {{ t = Conv(x, w, b) y = Neg(t) }}",
        f"{CONV} <float[2,1,1,1] w={{-1,-10}}, float[2] b={{-3,-4}}> {{ y = Conv(x, w, b) }}",
    )


def test_fires_after_matmul_and_add_through_a_reshape() -> None:
    head = "g (float[1,1,2] x) => (float[1,1,2,2] y)"
    rest = "int64[4] to={1,1,2,2}"
    check(
        ScaleIntoConv(),
        f"{head} <float[2,4] w={{1,2,3,4,5,6,7,8}}, float[4] b={{1,2,3,4}}, {rest}, float s={{0.5}}> "
        "{ t = MatMul(x, w) a = Add(b, t) r = Reshape(a, to) y = Mul(r, s) }",
        f"{head} <float[2,4] w={{0.5,1,1.5,2,2.5,3,3.5,4}}, float[4] b={{0.5,1,1.5,2}}, {rest}> "
        "{ t = MatMul(x, w) a = Add(t, b) y = Reshape(a, to) }",
    )


def test_fires_through_relu_and_the_add_of_a_constant() -> None:
    check(
        ScaleIntoConv(),
        f"{CONV} <{WEIGHTS}, float[1] s={{2}}, float[2,1,1] k={{5,6}}> "
        "{ t = Conv(x, w, b) r = Relu(t) a = Add(r, k) y = Mul(a, s) }",
        f"{CONV} <float[2,1,1,1] w={{2,20}}, float[2] b={{6,8}}, float[2,1,1] k={{10,12}}> "
        "{ t = Conv(x, w, b) r = Relu(t) y = Add(r, k) }",
    )


def test_follows_the_channels_through_a_transpose() -> None:
    head = "g (float[1,1,2,2] x) => (float[1,A,B,2] y)"
    check(
        ScaleIntoConv(),
        f"{head} <{WEIGHTS}, float[2] s={{2,3}}> "
        "{ t = Conv(x, w, b) p = Transpose<perm=[0,2,3,1]>(t) y = Mul(p, s) }",
        f"{head} <float[2,1,1,1] w={{2,30}}, float[2] b={{6,12}}> "
        "{ t = Conv(x, w, b) y = Transpose<perm=[0,2,3,1]>(t) }",
    )
    check_ignores(
        ScaleIntoConv(),
        f"g (float[1,1,2,2] x) => (float[1,A,2,B] y) <{WEIGHTS}, float[2] s={{2,3}}> "
        "{ t = Conv(x, w, b) p = Transpose<perm=[0,2,1,3]>(t) y = Mul(p, s) }",
    )


@pytest.mark.parametrize("pool", ["MaxPool", "Relu", "ReduceMax"])
def test_ignores_a_negative_factor_above_a_maximum(pool: str) -> None:
    op = {"MaxPool": "MaxPool<kernel_shape=[2,2]>(t)", "Relu": "Relu(t)", "ReduceMax": "ReduceMax(t, ax)"}[
        pool
    ]
    check_ignores(
        ScaleIntoConv(),
        f"{CONV} <{WEIGHTS}, int64[1] ax={{2}}, float[1] s={{-2}}> {{ t = Conv(x, w, b) r = {op} y = Mul(r, s) }}",
    )


def test_refuses_an_inner_value_used_elsewhere() -> None:
    check_refuses(
        ScaleIntoConv(),
        f"g (float[1,1,4,4] x) => (float[1,2,4,4] y, float[1,2,4,4] z) <{WEIGHTS}, float s={{2}}> "
        "{ t = Conv(x, w, b) y = Mul(t, s) z = Sigmoid(t) }",
        "is used elsewhere",
    )


def test_refuses_a_large_shared_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.passes._affine._SMALL_BYTES", 0)
    check_refuses(
        ScaleIntoConv(),
        f"g (float[1,1,4,4] x) => (float[1,2,4,4] y, float[1,2,4,4] z) <{WEIGHTS}, float s={{2}}> "
        "{ t = Conv(x, w, b) y = Mul(t, s) z = Conv(x, w) }",
        "is shared",
    )


def test_refuses_what_float16_cannot_hold() -> None:
    # The text syntax gives float16 by its bits: 1000 and 1000, 0.0001 and 0.01.
    head = "g (float16[1,1,4,4] x) => (float16[1,1,4,4] y)"
    for factor, weight, reason in ((25552, 25552, "overflow"), (1678, 8479, "subnormal")):
        check_refuses(
            ScaleIntoConv(),
            f"{head} <float16[1,1,1,1] w={{{weight}}}, float16 s={{{factor}}}> {{ t = Conv(x, w) y = Mul(t, s) }}",
            reason,
        )


@pytest.mark.parametrize(
    "constant",
    [
        "float[4] s={1,2,3,4}",
        "float[2,4,1] s={1,2,3,4,5,6,7,8}",
        "float[1,1,1,1,1] s={2}",
    ],
)
def test_ignores_other_constants(constant: str) -> None:
    check_ignores(
        ScaleIntoConv(),
        f"g (float[1,1,4,4] x) => (float y) <{WEIGHTS}, {constant}> {{ t = Conv(x, w, b) y = Mul(t, s) }}",
    )


def test_ignores_a_constant_that_is_divided() -> None:
    check_ignores(ScaleIntoConv(), f"{CONV} <{WEIGHTS}, float s={{2}}> {{ t = Conv(x, w, b) y = Div(s, t) }}")


def test_ignores_a_weight_that_is_not_constant() -> None:
    check_ignores(
        ScaleIntoConv(),
        "g (float[1,1,4,4] x, float[2,1,1,1] w) => (float[1,2,4,4] y) <float s={2}> { t = Conv(x, w) y = Mul(t, s) }",
    )


def test_ignores_an_infinite_factor() -> None:
    check_ignores(
        ScaleIntoConv(),
        "g (float16[1,1,4,4] x) => (float16[1,1,4,4] y) <float16[1,1,1,1] w={15360}, float16 s={31744}> "
        "{ t = Conv(x, w) y = Mul(t, s) }",
    )
