"""BatchNormalization before linear ops."""

import pytest

from graphopt.passes.batchnorm_before_conv import BatchNormBeforeConv
from graphopt.testing import check, check_ignores, check_refuses

# x -> [2 x - 1, 4 x - 14]
BN = "<float[2] s={1,3}, float[2] b={1,-2}, float[2] m={1,3}, float[2] v={0.24,0.5525}, "
NORM = "BatchNormalization<epsilon=0.01>(x, s, b, m, v)"
HEAD = "g (float[1,2,4,4] x) => (float[1,1,A,B] y)"


def test_fires_before_a_convolution_without_padding() -> None:
    check(
        BatchNormBeforeConv(),
        f"{HEAD} {BN}float[1,2,1,1] w={{1,10}}> {{ t = {NORM} y = Conv(t, w) }}",
        f"{HEAD} <float[1,2,1,1] w={{2,40}}, float[1] c={{-141}}> {{ y = Conv(x, w, c) }}",
    )


def test_fires_before_gemm_and_matmul() -> None:
    head = "g (float[N,2] x) => (float[N,1] y)"
    check(
        BatchNormBeforeConv(),
        f"{head} {BN}float[1,2] w={{1,10}}> {{ t = {NORM} y = Gemm<transB=1>(t, w) }}",
        f"{head} <float[1,2] w={{2,40}}, float[1] c={{-141}}> {{ y = Gemm<transB=1>(x, w, c) }}",
    )
    check(
        BatchNormBeforeConv(),
        f"{head} {BN}float[2,1] w={{1,10}}> {{ t = {NORM} y = MatMul(t, w) }}",
        f"{head} <float[2,1] w={{2,40}}, float[1] c={{-141}}> {{ t = MatMul(x, w) y = Add(t, c) }}",
    )


def test_fires_for_all_readers_at_once() -> None:
    head = "g (float[1,2,4,4] x) => (float[1,1,A,B] y, float[1,1,A,B] z)"
    check(
        BatchNormBeforeConv(),
        f"{head} {BN}float[1,2,1,1] w={{1,10}}, float[1,2,1,1] u={{1,1}}> "
        f"{{ t = {NORM} y = Conv(t, w) z = Conv(t, u) }}",
        f"{head} <float[1,2,1,1] w={{2,40}}, float[1] c={{-141}}, float[1,2,1,1] u={{2,4}}, float[1] d={{-15}}> "
        "{ y = Conv(x, w, c) z = Conv(x, u, d) }",
    )


def test_refuses_padding() -> None:
    for pads in ("pads=[0,0,1,0]", 'auto_pad="SAME_UPPER"'):
        check_refuses(
            BatchNormBeforeConv(),
            f"{HEAD} {BN}float[1,2,2,2] w={{1,1,1,1,1,1,1,1}}> {{ t = {NORM} y = Conv<{pads}>(t, w) }}",
            "pads with zeros",
        )


def test_refuses_another_reader() -> None:
    check_refuses(
        BatchNormBeforeConv(),
        "g (float[1,2,4,4] x) => (float[1,1,A,B] y, float[1,2,4,4] z) "
        f"{BN}float[1,2,1,1] w={{1,10}}> {{ t = {NORM} y = Conv(t, w) z = Relu(t) }}",
        "keeps it alive",
    )


def test_refuses_a_large_shared_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.passes._affine._SMALL_BYTES", 0)
    check_refuses(
        BatchNormBeforeConv(),
        "g (float[1,2,4,4] x) => (float[1,1,A,B] y, float[1,1,A,B] z) "
        f"{BN}float[1,2,1,1] w={{1,10}}> {{ t = {NORM} y = Conv(t, w) z = Conv(x, w) }}",
        "is shared",
    )


def test_ignores_an_activation_between() -> None:
    check_ignores(
        BatchNormBeforeConv(),
        f"{HEAD} {BN}float[1,2,1,1] w={{1,10}}> {{ t = {NORM} r = Relu(t) y = Conv(r, w) }}",
    )
