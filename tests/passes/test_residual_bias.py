"""Biases before residual additions to a normalised value."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.residual_bias import ResidualBias
from graphopt.testing import check, check_ignores

RNG = np.random.default_rng(0)


def constant(name: str, *shape: int) -> str:
    numbers = RNG.standard_normal(shape).round(2).reshape(-1)
    return f"float[{','.join(map(str, shape))}] {name} = {{{','.join(map(str, numbers))}}}"


CONSTANTS = ", ".join(
    [
        constant("g", 4),
        constant("t", 4),
        constant("w1", 4, 6),
        constant("b1", 6),
        constant("w2", 6, 4),
        constant("b2", 4),
        constant("w3", 4, 4),
        constant("b3", 4),
    ]
)
NORM = "h = LayerNormalization<axis=-1>(x, g, t)"
FEED = "m = MatMul(h, w1) a = Add(m, b1) r = Relu(a) n = MatMul(r, w2)"
HEAD = "g (float[N,L,4] x) => (float[N,L,4] y)"


def graph(body: str, head: str = HEAD) -> str:
    return f"{head} <{CONSTANTS}> {{ {body} }}"


def kinds(before: str) -> list[str]:
    return [node.op_type for node in check(ResidualBias(), before).graph]


@pytest.mark.parametrize("residual", ["Add(h, p)", "Add(p, h)"])
@pytest.mark.parametrize("bias", ["Add(n, b2)", "Add(b2, n)"])
def test_fires(residual: str, bias: str) -> None:
    before = graph(f"{NORM} {FEED} p = {bias} y = {residual}")
    assert kinds(before) == ["LayerNormalization", "MatMul", "Add", "Relu", "MatMul", "Add"]


def test_several_projections() -> None:
    body = f"{NORM} {FEED} c = MatMul(h, w3) d = Add(c, b3) e = Relu(d) n2 = Mul(n, e) p = Add(n, b2) s = Add(h, p) y = Mul(s, e)"
    body = body.replace("n2 = Mul(n, e) ", "")
    assert kinds(graph(body)).count("Add") == 3


def test_a_normalisation_without_bias() -> None:
    before = graph(f"{NORM.replace(', t', '')} {FEED} p = Add(n, b2) y = Add(h, p)")
    assert kinds(before).count("Add") == 2


def test_keys_of_an_attention_ignore_the_shift() -> None:
    body = f"""{NORM} q0 = MatMul(h, w3) q = Add(q0, b3) k = MatMul(h, wk) v0 = MatMul(h, wv) v = Add(v0, bv)
        a = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v) n = MatMul(a, wo) p = Add(n, b2) y = Add(h, p)"""
    extra = ", ".join([constant("wk", 4, 4), constant("wv", 4, 4), constant("bv", 4), constant("wo", 4, 4)])
    before = graph(body).replace("<float", f"<{extra}, float", 1)
    assert kinds(before).count("Add") == 3


@pytest.mark.parametrize(
    "body",
    [
        f"{NORM} {FEED} y = Add(h, n)",
        f"{NORM} {FEED} p = Add(n, b2) y = Add(x, p)",
        f"{NORM} m = MatMul(h, w1) r = Relu(m) n = MatMul(r, w2) p = Add(n, b2) y = Add(h, p)",
        f"{NORM} {FEED} p = Add(n, b2) q = Relu(p) s = Add(h, p) y = Mul(s, q)",
        f"{NORM} {FEED} p = Add(n, b2) s = Add(h, p) u = Relu(h) y = Mul(s, u)",
        f"{NORM} {FEED} p = Add(n, b2) s = Add(h, p) y = Add(s, h)",
        f"{NORM.replace('axis=-1', 'axis=1').replace('g, t', 'g2, t2')} {FEED} p = Add(n, b2) y = Add(h, p)",
    ],
)
def test_ignores_near_misses(body: str) -> None:
    text = graph(body, "g (float[2,5,4] x) => (float[2,5,4] y)")
    if "g2" in text:
        text = text.replace("<float", f"<{constant('g2', 5, 4)}, {constant('t2', 5, 4)}, float", 1)
    check_ignores(ResidualBias(), text)


def test_ignores_an_output_of_the_graph() -> None:
    head = "g (float[N,L,4] x) => (float[N,L,4] y, float[N,L,4] h)"
    check_ignores(ResidualBias(), graph(f"{NORM} {FEED} p = Add(n, b2) y = Add(h, p)", head))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    bias=st.sampled_from(["4", "1,4", "1,1,4", "1"]),
    reader=st.sampled_from(["6", "1,6", "1"]),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
)
def test_numbers_agree(bias: str, reader: str, scale: float) -> None:
    def vector(name: str, shape: str) -> str:
        size = int(shape.split(",")[-1])
        return f"float[{shape}] {name} = {{{','.join(str(scale * (index - 1.5)) for index in range(size))}}}"

    constants = f"{vector('b2x', bias)}, {vector('b1x', reader)}, {CONSTANTS}"
    body = f"{NORM} {FEED.replace('b1', 'b1x')} p = Add(n, b2x) y = Add(h, p)"
    model = check(ResidualBias(), f"{HEAD} <{constants}> {{ {body} }}")
    assert [node.op_type for node in model.graph].count("Add") == 2
