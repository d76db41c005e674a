"""A constant factor before linear ops."""

import pytest

from graphopt.passes.scale_before_conv import ScaleBeforeConv
from graphopt.testing import check, check_ignores, check_refuses

CONV = "g (float[1,2,4,4] x) => (float[1,1,A,B] y)"


@pytest.mark.parametrize(
    ("constant", "body", "folded"),
    [
        ("float s={2}", "t = Mul(x, s)", "{2,20}"),
        ("float[1] s={2}", "t = Div(x, s)", "{0.5,5}"),
        ("float[2,1,1] s={2,3}", "t = Mul(s, x)", "{2,30}"),
        ("float s={2}", "t = Neg(x)", "{-1,-10}"),
    ],
)
def test_fires_even_with_padding(constant: str, body: str, folded: str) -> None:
    check(
        ScaleBeforeConv(),
        f"{CONV} <float[1,2,1,1] w={{1,10}}, float[1] b={{3}}, {constant}> "
        f"{{ {body} y = Conv<pads=[1,1,1,1]>(t, w, b) }}",
        f"{CONV} <float[1,2,1,1] w={folded}, float[1] b={{3}}> {{ y = Conv<pads=[1,1,1,1]>(x, w, b) }}",
    )


def test_a_sum_between_is_rescaled() -> None:
    """PP-OCRv4's learnable affine block before a padded depthwise convolution."""
    head = "g (float[1,2,4,4] x) => (float[1,2,A,B] y)"
    conv = "Conv<group=2, pads=[1,1,1,1]>"
    check(
        ScaleBeforeConv(),
        f"{head} <float[2,1,1,1] w={{1,10}}, float[1] s={{2}}, float[1] b={{6}}> "
        f"{{ h = HardSwish(x) t = Mul(s, h) a = Add(t, b) y = {conv}(a, w) }}",
        f"{head} <float[2,1,1,1] w={{2,20}}, float[1] b={{3}}> {{ h = HardSwish(x) a = Add(h, b) y = {conv}(a, w) }}",
    )


def test_squeeze_and_excitation_takes_one_factor_on_each_way() -> None:
    head = "g (float[1,2,4,4] x) => (float[1,1,A,B] y)"
    weights = "float[2,2,1,1] u={1,2,3,4}, float[1,2,1,1] w={1,10}"
    body = "p = GlobalAveragePool(t) q = Conv(p, u) k = Sigmoid(q) m = Mul(t, k) y = Conv(m, w)"
    check(
        ScaleBeforeConv(),
        f"{head} <{weights}, float s={{2}}> {{ t = Mul(x, s) {body} }}",
        f"{head} <float[2,2,1,1] u={{2,4,6,8}}, float[1,2,1,1] w={{2,20}}> {{ {body.replace('(t', '(x')} }}",
    )


def test_concat_scales_its_part_of_the_channels() -> None:
    head = "g (float[1,1,4,4] x, float[1,1,4,4] z) => (float[1,1,A,B] y)"
    check(
        ScaleBeforeConv(),
        f"{head} <float[1,2,1,1] w={{1,10}}, float s={{2}}> "
        "{ t = Mul(x, s) k = Concat<axis=1>(z, t) y = Conv(k, w) }",
        f"{head} <float[1,2,1,1] w={{1,20}}> {{ k = Concat<axis=1>(z, x) y = Conv(k, w) }}",
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "<float[1,2] w={1,10}, float[2] s={2,3}> { t = Mul(x, s) y = Gemm<transB=1, alpha=2.0>(t, w) }",
            "<float[1,2] w={2,30}> { y = Gemm<transB=1, alpha=2.0>(x, w) }",
        ),
        (
            "<float[2,1] w={1,10}, float[1,2] s={2,3}, float[1] b={1}> "
            "{ t = Mul(x, s) m = MatMul(t, w) y = Add(m, b) }",
            "<float[2,1] w={2,30}, float[1] b={1}> { m = MatMul(x, w) y = Add(m, b) }",
        ),
    ],
)
def test_fires_before_products(before: str, after: str) -> None:
    head = "g (float[N,2] x) => (float[N,1] y)"
    check(ScaleBeforeConv(), f"{head} {before}", f"{head} {after}")


def test_fires_before_batchnorm() -> None:
    head = "g (float[N,2] x) => (float[N,2] y)"
    check(
        ScaleBeforeConv(),
        f"{head} <float[2] g={{1,2}}, float[2] b={{0,1}}, float[2] m={{4,6}}, float[2] v={{1,2}}, float s={{2}}> "
        "{ t = Mul(x, s) y = BatchNormalization(t, g, b, m, v) }",
        f"{head} <float[2] g={{2,4}}, float[2] b={{0,1}}, float[2] m={{2,3}}, float[2] v={{1,2}}> "
        "{ y = BatchNormalization(x, g, b, m, v) }",
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = Conv(t, w) z = Relu(t)", "is an output"),
        ("y = Conv(t, w) z = Sigmoid(t)", "Sigmoid 'z' cannot take the factor in"),
        ("y = Conv(t, w) z = Conv(x, w)", "is shared"),
        (
            "r = Relu(t) a = Add(t, r) h = Conv(t, w) y = Conv(a, v) z = Sigmoid(h)",
            "cannot take the factor in",
        ),
        ("r = Relu(t) m = Mul(t, r) y = Conv(m, w) z = Sigmoid(x)", "in two ways"),
        ("m = Mul(t, t) y = Conv(m, w) z = Sigmoid(x)", "in two ways"),
        ("a = Add(t, k) y = Conv(a, w) z = Add(x, k)", "is shared"),
    ],
)
def test_refuses(body: str, reason: str) -> None:
    model = (
        "g (float[1,2,4,4] x) => (float[1,C,A,B] y, float[1,D,E,F] z) "
        f"<float[1,2,1,1] w={{1,10}}, float[1,2,1,1] v={{1,2}}, float s={{2}}, float[1] k={{1}}> "
        f"{{ t = Mul(x, s) {body} }}"
    )
    check_refuses(ScaleBeforeConv(), model, reason)


def test_ignores_a_zero_factor_before_a_sum() -> None:
    check_ignores(
        ScaleBeforeConv(),
        f"{CONV} <float[1,2,1,1] w={{1,10}}, float[1] s={{0}}, float[1] b={{3}}> "
        "{ t = Mul(x, s) a = Add(t, b) y = Conv(a, w) }",
    )


@pytest.mark.parametrize(
    "model",
    [
        "g (float[1,1,4,4] x) => (float[1,1,A,B] y) <float[1,2,1,1] w={1,10}, float[2,1,1] s={2,3}> "
        "{ t = Mul(x, s) y = Conv(t, w) }",
        "g (float[1,C,4,4] x) => (float[1,1,A,B] y) <float[1,2,1,1] w={1,10}, float[2,1,1] s={2,3}> "
        "{ t = Mul(x, s) y = Conv(t, w) }",
        "g (float[1,2,4,4] x) => (float[1,1,A,B] y) <float[1,2,1,1] w={1,10}, float[4] s={2,3,4,5}> "
        "{ t = Mul(x, s) y = Conv(t, w) }",
        "g (float[1,2,4,4] x) => (float[1,1,A,B] y) <float[1,2,1,1] w={1,10}, float s={-2}> "
        "{ t = Mul(x, s) r = Relu(t) y = Conv(r, w) }",
        "g (float[2,N] x) => (float[N,1] y) <float[2,1] w={1,10}, float[2,1] s={2,3}> "
        "{ t = Mul(x, s) y = Gemm<transA=1>(t, w) }",
    ],
)
def test_ignores(model: str) -> None:
    check_ignores(ScaleBeforeConv(), model)
