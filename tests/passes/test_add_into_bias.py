"""A constant added after linear ops."""

import pytest

from graphopt.passes.add_into_bias import AddIntoBias
from graphopt.testing import check, check_ignores, check_refuses

CONV = "g (float[1,1,4,4] x) => (float[1,2,A,B] y)"
WEIGHT = "float[2,1,1,1] w={1,10}"


@pytest.mark.parametrize(
    ("constant", "body", "folded", "bias"),
    [
        ("float s={2}", "t = Conv(x, w) y = Add(t, s)", "{1,10}", "{2,2}"),
        ("float[2,1,1] s={2,3}", "t = Conv(x, w) y = Add(s, t)", "{1,10}", "{2,3}"),
        ("float[1,2,1,1] s={2,3}", "t = Conv(x, w) y = Sub(t, s)", "{1,10}", "{-2,-3}"),
        ("float[1,2,1,1] s={2,3}", "t = Conv(x, w) y = Sub(s, t)", "{-1,-10}", "{2,3}"),
        ("float[2] b={4,5}, float[1] s={1}", "t = Conv(x, w, b) y = Add(t, s)", "{1,10}", "{5,6}"),
    ],
)
def test_fires(constant: str, body: str, folded: str, bias: str) -> None:
    check(
        AddIntoBias(),
        f"{CONV} <{WEIGHT}, {constant}> {{ {body} }}",
        f"{CONV} <float[2,1,1,1] w={folded}, float[2] b={bias}> {{ y = Conv(x, w, b) }}",
    )


def test_fires_through_pools_and_transpose() -> None:
    check(
        AddIntoBias(),
        f"{CONV} <{WEIGHT}, float[2,1,1] s={{2,3}}> {{ t = Conv(x, w) "
        "p = MaxPool<kernel_shape=[2,2], pads=[1,1,1,1]>(t) y = Add(p, s) }",
        f"{CONV} <{WEIGHT}, float[2] b={{2,3}}> {{ t = Conv(x, w, b) "
        "y = MaxPool<kernel_shape=[2,2], pads=[1,1,1,1]>(t) }",
    )


@pytest.mark.parametrize("options", ["pads=[1,1,1,1]", "ceil_mode=1, strides=[3,3]", 'auto_pad="SAME_UPPER"'])
def test_ignores_an_average_that_counts_padding(options: str) -> None:
    body = (
        f"t = Conv(x, w) p = AveragePool<kernel_shape=[2,2], count_include_pad=1, {options}>(t) y = Add(p, s)"
    )
    check_ignores(AddIntoBias(), f"{CONV} <{WEIGHT}, float s={{2}}> {{ {body} }}")
    body = body.replace("count_include_pad=1", "count_include_pad=0")
    check(AddIntoBias(), f"{CONV} <{WEIGHT}, float s={{2}}> {{ {body} }}")


def test_keeps_a_large_weight_as_it_is() -> None:
    model = check(AddIntoBias(), f"{CONV} <{WEIGHT}, float s={{2}}> {{ t = Conv(x, w) y = Add(t, s) }}")
    assert "w" in model.graph.initializers


def test_merges_two_sums_after_matmul_but_leaves_one() -> None:
    head = "g (float[N,1] x) => (float[N,2] y)"
    check(
        AddIntoBias(),
        f"{head} <float[1,2] w={{1,2}}, float[2] b={{3,4}}, float[1,1] s={{1}}> "
        "{ t = MatMul(x, w) a = Add(t, b) y = Add(a, s) }",
        f"{head} <float[1,2] w={{1,2}}, float[2] b={{4,5}}> {{ t = MatMul(x, w) y = Add(t, b) }}",
    )
    check_ignores(
        AddIntoBias(),
        f"{head} <float[1,2] w={{1,2}}, float[2] b={{3,4}}> {{ t = MatMul(x, w) y = Add(t, b) }}",
    )


def test_refuses_an_inner_value_used_elsewhere() -> None:
    check_refuses(
        AddIntoBias(),
        f"g (float[1,1,4,4] x) => (float[1,2,4,4] y, float[1,2,4,4] t) <{WEIGHT}, float s={{2}}> "
        "{ t = Conv(x, w) y = Add(t, s) }",
        "is used elsewhere",
    )


@pytest.mark.parametrize(
    "constant", ["float[4] s={1,2,3,4}", "float[3,1,1,1,1] s={1,2,3}", "float[3,1,1,1] s={1,2,3}"]
)
def test_ignores_other_broadcasts(constant: str) -> None:
    check_ignores(
        AddIntoBias(),
        f"g (float[1,1,4,4] x) => (float y) <{WEIGHT}, {constant}> {{ t = Conv(x, w) y = Add(t, s) }}",
    )


def test_ignores_one_channel_that_the_constant_enlarges() -> None:
    check_ignores(
        AddIntoBias(),
        "g (float[1,1,4,4] x) => (float[1,3,4,4] y) <float[1,1,1,1] w={2}, float[3,1,1] s={1,2,3}> "
        "{ t = Conv(x, w) y = Add(t, s) }",
    )


def test_integers_are_left() -> None:
    check_ignores(
        AddIntoBias(),
        "g (int32[N,1] x) => (int32[N,2] y) <int32[1,2] w={1,2}, int32[2] b={3,4}, int32[2] c={1,1}> "
        "{ t = MatMul(x, w) a = Add(t, b) y = Add(a, c) }",
    )
