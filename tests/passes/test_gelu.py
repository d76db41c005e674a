"""Gelu in the orders that exporters write."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.gelu import Gelu
from graphopt.testing import apply, assert_same_numbers, check, check_ignores, check_refuses, model_from_text

CONSTANTS = (
    "<float one={1}, float two={2}, float half={0.5}, float root={1.4142135}, float inverse={0.70710677}>"
)
AFTER = 'g (float[N,4] x) => (float[N,4] y) { y = Gelu<approximate="none">(x) }'
BODIES = [
    # torch.onnx.export(dynamo=False), and x * 0.5 * (1 + erf(x / sqrt(2))) as it stands
    "a = Div(x, root) e = Erf(a) b = Add(e, one) c = Mul(x, b) y = Mul(c, half)",
    "h = Mul(x, half) a = Div(x, root) e = Erf(a) b = Add(e, one) y = Mul(h, b)",
    # Keras, PaddlePaddle
    "a = Mul(x, inverse) e = Erf(a) b = Add(one, e) c = Mul(half, b) y = Mul(x, c)",
    "a = Mul(inverse, x) e = Erf(a) b = Add(one, e) c = Mul(b, x) y = Div(c, two)",
    "a = Div(x, root) e = Erf(a) d = Mul(e, half) b = Add(d, half) y = Mul(b, x)",
    "a = Div(x, root) e = Erf(a) b = Add(e, one) h = Div(x, two) y = Mul(b, h)",
]


def graph(body: str, constants: str = CONSTANTS, outputs: str = "float[N,4] y") -> str:
    return f"g (float[N,4] x) => ({outputs}) {constants} {{ {body} }}"


@pytest.mark.parametrize("body", BODIES)
def test_fires(body: str) -> None:
    check(Gelu(), graph(body), AFTER)


@pytest.mark.parametrize("casts", [True, False])
def test_float16(casts: bool) -> None:
    erf = "w = Cast<to=1>(a) f = Erf(w) e = Cast<to=10>(f)" if casts else "e = Erf(a)"
    # ONNX text takes float16 numbers by their bits: 0.7071, 1 and 2.
    constants = "<float16 inverse={14760}, float16 one={15360}, float16 two={16384}>"
    body = f"a = Mul(x, inverse) {erf} b = Add(e, one) c = Mul(x, b) y = Div(c, two)"
    before = f"g (float16[N,4] x) => (float16[N,4] y) {constants} {{ {body} }}"
    check(Gelu(), before, AFTER.replace("float[", "float16["), rtol=2e-3)


def test_ignores_a_cast_to_an_integer() -> None:
    body = "a = Div(x, root) w = Cast<to=6>(a) f = Erf(w) e = Cast<to=1>(f) b = Add(e, one) c = Mul(x, b)"
    check_ignores(Gelu(), graph(f"{body} y = Mul(c, half)"))


def test_inside_a_subgraph_with_constants_outside() -> None:
    branch = f"inner () => (float[3,4] t) {{ {BODIES[0].replace(' y = ', ' t = ')} }}"
    other = "other () => (float[3,4] i) { i = Neg(x) }"
    body = f"y = If(on) <then_branch = {branch}, else_branch = {other}>"
    before = f"g (float[3,4] x, bool on) => (float[3,4] y) {CONSTANTS} {{ {body} }}"
    model, log = apply(Gelu(), before)
    assert log.counts() == {"gelu": 1}
    feeds = {"x": np.ones((3, 4), np.float32), "on": np.array(True)}
    assert_same_numbers(model_from_text(before), model, feeds)


def test_refuses_a_shared_inner_value() -> None:
    check_refuses(Gelu(), graph(BODIES[0], outputs="float[N,4] y, float[N,4] e"), "is an output of the graph")


@pytest.mark.parametrize(
    "body",
    [
        "a = Div(x, two) e = Erf(a) b = Add(e, one) c = Mul(x, b) y = Mul(c, half)",
        "a = Div(x, root) e = Erf(a) b = Add(e, half) c = Mul(x, b) y = Mul(c, half)",
        "a = Div(x, root) e = Erf(a) b = Add(e, one) c = Mul(a, b) y = Mul(c, half)",
        "a = Div(x, root) e = Tanh(a) b = Add(e, one) c = Mul(x, b) y = Mul(c, half)",
    ],
)
def test_ignores_near_misses(body: str) -> None:
    check_ignores(Gelu(), graph(body))


def test_ignores_a_constant_that_enlarges_the_rank() -> None:
    constants = CONSTANTS.replace("float one={1}", "float[1,1,1] one={1}")
    check_ignores(Gelu(), graph(BODIES[0], constants, "float[1,N,4] y"))


def test_ignores_float64() -> None:
    body = "a = Div(x, root) e = Erf(a) b = Add(e, one) c = Mul(x, b) y = Mul(c, half)"
    check_ignores(Gelu(), graph(body).replace("float", "double"))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    body=st.sampled_from(BODIES),
    ranks=st.lists(st.integers(0, 3), min_size=5, max_size=5),
)
def test_agrees_for_any_shape_of_the_constants(shape: list[int], body: str, ranks: list[int]) -> None:
    constants = CONSTANTS
    for name, rank in zip(("one", "two", "half", "root", "inverse"), ranks, strict=True):
        ones = ",".join(["1"] * rank)
        constants = constants.replace(
            f"float {name}=", f"float[{ones}] {name}=" if rank else f"float {name}="
        )
    used = [
        rank
        for name, rank in zip(("one", "two", "half", "root", "inverse"), ranks, strict=True)
        if name in body
    ]
    wide = max([len(shape), *used])
    dims = ",".join(map(str, shape))
    result = ",".join(map(str, [1] * (wide - len(shape)) + shape))
    before = f"g (float[{dims}] x) => (float[{result}] y) {constants} {{ {body} }}"
    if wide > len(shape):
        check_ignores(Gelu(), before)
    else:
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32) * 3
        check(
            Gelu(),
            before,
            f'g (float[{dims}] x) => (float[{dims}] y) {{ y = Gelu<approximate="none">(x) }}',
            feeds={"x": x},
        )
