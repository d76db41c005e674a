"""Biases of keys and values around attention."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.attention_bias import AttentionBias
from graphopt.testing import check, check_ignores

RNG = np.random.default_rng(0)


def constant(name: str, *shape: int) -> str:
    numbers = RNG.standard_normal(shape).round(2).reshape(-1)
    return f"float[{','.join(map(str, shape))}] {name} = {{{','.join(map(str, numbers))}}}"


CONSTANTS = ", ".join(
    [
        constant("wk", 3, 4),
        constant("wv", 3, 4),
        constant("wo", 4, 3),
        constant("bk", 4),
        constant("bv", 4),
        constant("bo", 3),
    ]
)
LAYERS = "km = MatMul(x, wk) k = Add(km, bk) vm = MatMul(x, wv) v = Add(vm, bv)"
HEADS = "q_num_heads=2, kv_num_heads=2"


def graph(
    body: str, *, inputs: str = "float[N,L,4] q, float[N,L,3] x", output: str = "float[N,L,3] y"
) -> str:
    return f"g ({inputs}) => ({output}) <{CONSTANTS}> {{ {body} }}"


def kinds(before: str) -> list[str]:
    return [node.op_type for node in check(AttentionBias(), before).graph]


def test_keys_and_values() -> None:
    body = f"{LAYERS} a = Attention<{HEADS}>(q, k, v) o = MatMul(a, wo) y = Add(o, bo)"
    assert kinds(graph(body)) == ["MatMul", "MatMul", "Attention", "MatMul", "Add"]


@pytest.mark.parametrize("mask", ["float[N,1,L,L] m", "bool[N,1,L,L] m"])
def test_only_keys_where_a_row_may_be_closed(mask: str) -> None:
    body = f"{LAYERS} a = Attention<{HEADS}>(q, k, v, m) o = MatMul(a, wo) y = Add(o, bo)"
    before = graph(body, inputs=f"float[N,L,4] q, float[N,L,3] x, {mask}")
    assert kinds(before) == ["MatMul", "MatMul", "Add", "Attention", "MatMul", "Add"]


def test_values_under_a_mask_that_closes_no_row() -> None:
    body = f"""{LAYERS} m = Where(c, zero, low) a = Attention<{HEADS}>(q, k, v, m) o = MatMul(a, wo) y = Add(o, bo)"""
    before = graph(body, inputs="float[N,L,4] q, float[N,L,3] x, bool[N,1,L,L] c")
    before = before.replace("<float", "<float zero = {0}, float low = {-1e9}, float", 1)
    assert kinds(before).count("Add") == 1


@pytest.mark.parametrize(
    "end",
    [
        "y = MatMul(a, wo)",
        "o = MatMul(a, wo) y = Mul(o, bo)",
        "o = MatMul(a, wo) z = Relu(o) y = Add(o, bo)",
        "r = Relu(a) o = MatMul(r, wo) y = Add(o, bo)",
    ],
)
def test_values_keep_their_bias_without_a_taker(end: str) -> None:
    output = "float[N,L,3] y, float[N,L,3] z" if "z =" in end else "float[N,L,3] y"
    found = kinds(graph(f"{LAYERS} a = Attention<{HEADS}>(q, k, v) {end}", output=output))
    assert found[:4] == ["MatMul", "MatMul", "Add", "Attention"]


@pytest.mark.parametrize(
    "attention",
    [
        f"a = Attention<{HEADS}, softcap=3.0>(q, k, v)",
        f"a, p1, p2 = Attention<{HEADS}>(q, k, v, , past, past)",
    ],
)
def test_ignores_softcap_and_a_past(attention: str) -> None:
    inputs = "float[2,5,4] q, float[2,5,3] x, float[2,2,7,2] past"
    body = f"{LAYERS} {attention} o = MatMul(a, wo) y = Add(o, bo)"
    check_ignores(AttentionBias(), graph(body, inputs=inputs, output="float[2,5,3] y"))


def test_ignores_heads_first() -> None:
    body = f"""{LAYERS} k3 = Reshape(k, s) k4 = Transpose<perm=[0,2,1,3]>(k3) v3 = Reshape(v, s)
        v4 = Transpose<perm=[0,2,1,3]>(v3) y = Attention(q, k4, v4)"""
    before = graph(body, inputs="float[2,2,5,2] q, float[2,5,3] x", output="float[2,2,5,2] y")
    check_ignores(AttentionBias(), before.replace("<float", "<int64[4] s = {0,0,2,2}, float", 1))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    groups=st.sampled_from([1, 2]), causal=st.integers(0, 1), key_bias=st.booleans(), value_bias=st.booleans()
)
def test_numbers_agree(groups: int, causal: int, key_bias: bool, value_bias: bool) -> None:
    key, value = (
        "Add(km, bk)" if key_bias else "Identity(km)",
        "Add(bv, vm)" if value_bias else "Identity(vm)",
    )
    body = f"""km = MatMul(x, wk) k = {key} vm = MatMul(x, wv) v = {value}
        a = Attention<q_num_heads={2 * groups}, kv_num_heads=2, is_causal={causal}>(q, k, v) o = MatMul(a, w2) y = Add(o, bo)"""
    before = graph(body, inputs=f"float[N,L,{4 * groups}] q, float[N,L,3] x")
    before = before.replace("<float", f"<{constant('w2', 4 * groups, 3)}, float", 1)
    if key_bias or value_bias:
        assert kinds(before).count("Add") == 1
    else:
        check_ignores(AttentionBias(), before)
