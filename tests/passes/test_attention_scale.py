"""Constant factors behind projections."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.attention_scale import AttentionScale
from graphopt.testing import check, check_ignores, check_refuses

CONSTANTS = (
    "float[2,4] w = {1,2,3,4,5,6,7,8}, float[4] b = {1,-2,3,-4}, float c = {2.0}, int64[4] s = {0,0,2,2}"
)
CHAIN = "r = Reshape(a, s) t = Transpose<perm=[0,2,1,3]>(r)"
SCALED = "float[2,4] w = {2,4,6,8,10,12,14,16}, float[4] b = {2,-4,6,-8}, int64[4] s = {0,0,2,2}"


def graph(body: str, constants: str = CONSTANTS, *, output: str = "float[N,2,L,2] y") -> str:
    return f"g (float[N,L,2] x) => ({output}) <{constants}> {{ {body} }}"


@pytest.mark.parametrize("factor", ["Mul(t, c)", "Mul(c, t)", "Div(t, half)"])
def test_fires_through_layout(factor: str) -> None:
    before = graph(
        f"m = MatMul(x, w) a = Add(m, b) {CHAIN} y = {factor}", f"{CONSTANTS}, float half = {{0.5}}"
    )
    check(
        AttentionScale(),
        before,
        graph(f"m = MatMul(x, w) a = Add(b, m) {CHAIN.replace('t =', 'y =')}", SCALED).replace(
            "b, m", "m, b"
        ),
    )


def test_fires_on_scores() -> None:
    body = f"m = MatMul(x, w) a = Add(m, b) {CHAIN} k = Transpose<perm=[0,1,3,2]>(z) d = MatMul(t, k) y = Mul(d, c)"
    text = graph(body, output="float[N,2,L,M] y").replace(
        "float[N,L,2] x", "float[N,L,2] x, float[N,2,M,2] z"
    )
    model = check(AttentionScale(), text)
    assert "Mul" not in [node.op_type for node in model.graph]


def test_fires_on_gemm_and_conv() -> None:
    gemm = (
        f"g (float[N,2] x) => (float[N,4] y) <{CONSTANTS}> {{ m = Gemm<alpha=0.5>(x, w, b) y = Mul(m, c) }}"
    )
    after = gemm.replace(CONSTANTS, SCALED.removesuffix(", int64[4] s = {0,0,2,2}")).replace(
        "m = Gemm<alpha=0.5>(x, w, b) y = Mul(m, c)", "y = Gemm<alpha=0.5>(x, w, b)"
    )
    check(AttentionScale(), gemm, after)
    conv = "g (float[N,1,5] x) => (float[N,2,4] y) <float[2,1,2] w = {1,2,3,4}, float c = {3}> { m = Conv(x, w) y = Mul(m, c) }"
    model = check(AttentionScale(), conv)
    assert [node.op_type for node in model.graph] == ["Conv"]


def test_refuses_shared_weights() -> None:
    body = "m = MatMul(x, w) m2 = MatMul(x, w) y = Mul(m, c)"
    before = graph(body, output="float[N,L,4] y, float[N,L,4] m2")
    check_refuses(AttentionScale(), before, "weights")


def test_refuses_a_shared_inner_value() -> None:
    before = graph("m = MatMul(x, w) y = Mul(m, c) z = Relu(m)", output="float[N,L,4] y, float[N,L,4] z")
    check_refuses(AttentionScale(), before, "used elsewhere")


def test_refuses_an_inner_output() -> None:
    before = graph("m = MatMul(x, w) y = Mul(m, c)", output="float[N,L,4] y, float[N,L,4] m")
    check_refuses(AttentionScale(), before, "output of the graph")


@pytest.mark.parametrize("factor", ["0.0", "inf"])
def test_refuses_zero_and_infinity(factor: str) -> None:
    before = graph(
        "m = MatMul(x, w) y = Mul(m, c)", CONSTANTS.replace("2.0", factor), output="float[N,L,4] y"
    )
    check_refuses(AttentionScale(), before, "zero or not finite")


def test_refuses_an_overflow() -> None:
    constants = CONSTANTS.replace("2.0", "1e38")
    check_refuses(
        AttentionScale(),
        graph("m = MatMul(x, w) y = Mul(m, c)", constants, output="float[N,L,4] y"),
        "overflow",
    )


@pytest.mark.parametrize(
    "body",
    [
        "m = MatMul(x, w) r = Relu(m) y = Mul(r, c)",
        "m = MatMul(x, w) y = Mul(m, b)",
        "m = MatMul(x, w) y = Div(c, m)",
        "m = MatMul(x, w) a = Add(m, m) y = Mul(a, c)",
    ],
)
def test_ignores_near_misses(body: str) -> None:
    check_ignores(AttentionScale(), graph(body, output="float[N,L,4] y"))


def test_ignores_a_factor_that_adds_dimensions() -> None:
    constants = CONSTANTS.replace("float c", "float[1,1,1,1] c")
    check_ignores(
        AttentionScale(), graph("m = MatMul(x, w) y = Mul(m, c)", constants, output="float[1,N,L,4] y")
    )


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    factor=st.floats(-4, 4).filter(lambda number: abs(number) > 1e-3),
    divides=st.booleans(),
    bias=st.sampled_from(["", "4", "1,4", "1,1,4", "1"]),
    layout=st.booleans(),
)
def test_numbers_agree(factor: float, divides: bool, bias: str, layout: bool) -> None:
    constants = CONSTANTS.replace("{2.0}", f"{{{factor}}}")
    body = "m = MatMul(x, w)"
    if bias:
        size = 1 if bias == "1" else 4
        numbers = ",".join(str(number) for number in range(1, size + 1))
        constants = constants.replace("float[4] b = {1,-2,3,-4}", f"float[{bias}] b = {{{numbers}}}")
        body += " a = Add(m, b)"
    else:
        body += " a = Identity(m)"
    body += f" {CHAIN}" if layout else ""
    body += f" y = {'Div' if divides else 'Mul'}({'t' if layout else 'a'}, c)"
    output = "float[N,2,L,2] y" if layout else "float[N,L,4] y"
    kinds = [node.op_type for node in check(AttentionScale(), graph(body, constants, output=output)).graph]
    assert not {"Mul", "Div"} & set(kinds)
