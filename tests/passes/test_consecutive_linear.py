"""Two linear ops in a row."""

import pytest

from graphopt.passes.consecutive_linear import ConsecutiveLinear
from graphopt.testing import check, check_ignores, check_refuses


def test_fires_for_matmul_with_biases() -> None:
    head = "g (float[B,S,1] x) => (float[B,S,1] y)"
    check(
        ConsecutiveLinear(),
        f"{head} <float[1,2] w={{1,2}}, float[2] b={{3,4}}, float[2,1] u={{5,6}}, float[1] c={{7}}> "
        "{ t = MatMul(x, w) a = Add(t, b) m = MatMul(a, u) y = Add(m, c) }",
        f"{head} <float[1,1] w={{17}}, float[1] b={{46}}> {{ t = MatMul(x, w) y = Add(t, b) }}",
    )


def test_fires_for_gemm() -> None:
    head = "g (float[N,1] x) => (float[N,1] y)"
    check(
        ConsecutiveLinear(),
        f"{head} <float[2,1] w={{1,2}}, float[2] b={{3,4}}, float[2,1] u={{5,6}}> "
        "{ t = Gemm<transB=1, alpha=2.0>(x, w, b) y = Gemm(t, u) }",
        f"{head} <float[1,1] w={{34}}, float[1] b={{39}}> {{ y = Gemm<transB=1>(x, w, b) }}",
    )


def test_fires_for_a_pointwise_convolution_after_another() -> None:
    head = "g (float[1,1,4,4] x) => (float[1,1,A,B] y)"
    check(
        ConsecutiveLinear(),
        f"{head} <float[2,1,1,2] w={{1,2,3,4}}, float[2] b={{5,6}}, float[1,2,1,1] u={{7,8}}> "
        "{ t = Conv<pads=[0,1,0,0], strides=[2,1]>(x, w, b) y = Conv(t, u) }",
        f"{head} <float[1,1,1,2] w={{31,46}}, float[1] b={{83}}> "
        "{ y = Conv<pads=[0,1,0,0], strides=[2,1]>(x, w, b) }",
    )


def test_fires_for_a_pointwise_convolution_before_another() -> None:
    head = "g (float[1,1,4,4] x) => (float[1,1,A,B] y)"
    model = f"{head} <float[2,1,1,1] w={{1,2}}, BIASfloat[1,2,1,2] u={{1,2,3,4}}> "
    body = "{ t = Conv(x, wBIAS) y = Conv<pads=[0,1,0,0]>(t, u) }"
    check(
        ConsecutiveLinear(),
        (model + body).replace("BIAS", ""),
        f"{head} <float[1,1,1,2] w={{7,10}}> {{ y = Conv<pads=[0,1,0,0]>(x, w) }}",
    )
    biased = model.replace("BIAS", "float[2] b={1,1}, ") + body.replace("BIAS", ", b")
    check_refuses(ConsecutiveLinear(), biased, "pads with zeros")
    check(
        ConsecutiveLinear(),
        biased.replace("pads=[0,1,0,0]", "strides=[1,1]"),
        f"{head} <float[1,1,1,2] w={{7,10}}, float[1] b={{10}}> {{ y = Conv<strides=[1,1]>(x, w, b) }}",
    )


def test_refuses_a_bottleneck() -> None:
    check_refuses(
        ConsecutiveLinear(),
        "g (float[N,2] x) => (float[N,2] y) <float[2,1] w={1,2}, float[1,2] u={1,2}> "
        "{ t = MatMul(x, w) y = MatMul(t, u) }",
        "no smaller",
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = MatMul(t, u) z = Relu(t)", "is used elsewhere"),
        ("y = MatMul(t, u) z = MatMul(x, w)", "is shared"),
    ],
)
def test_refuses_sharing(body: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.passes._affine._SMALL_BYTES", 0)
    check_refuses(
        ConsecutiveLinear(),
        "g (float[N,1] x) => (float[N,1] y, float[N,2] z) <float[1,2] w={1,2}, float[2,1] u={1,2}> "
        f"{{ t = MatMul(x, w) {body} }}",
        reason,
    )


@pytest.mark.parametrize(
    "body",
    [
        "t = Conv(x, w) r = Relu(t) y = Conv(r, u)",
        "t = Conv(x, k) y = Conv<strides=[2,2]>(t, u)",
        "t = Conv<strides=[2,2]>(x, w) y = Conv(t, l)",
        "t = Conv(x, w) y = Conv<group=2>(t, v)",
    ],
)
def test_ignores(body: str) -> None:
    weights = (
        "float[2,1,1,1] w={1,2}, float[1,2,1,1] u={3,4}, float[2,1,1,1] v={5,6}, "
        "float[2,1,1,2] k={1,2,3,4}, float[1,2,1,2] l={1,2,3,4}"
    )
    check_ignores(ConsecutiveLinear(), f"g (float[1,1,4,4] x) => (float[1,C,A,B] y) <{weights}> {{ {body} }}")
