"""RMSNormalization from its decomposed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.rmsnorm import RmsNorm
from graphopt.testing import apply, check, check_ignores, check_refuses

CONSTANTS = (
    "<int64[1] ax={-1}, float two={2}, float one={1}, float half={0.5}, float mh={-0.5}, float eps={1e-5},"
    " float[4] gamma={1,2,3,4}, float[2,1] wide={1,2}>"
)
SQUARES = ["q = Pow(x, two) ", "q = Mul(x, x) "]
MEAN = "v = ReduceMean(q, ax) e = Add(v, eps) "
ROOTS = [
    "s = Sqrt(e) n = Div(x, s) ",
    "s = Sqrt(e) r = Reciprocal(s) n = Mul(x, r) ",
    "s = Sqrt(e) r = Div(one, s) n = Mul(r, x) ",
    "s = Pow(e, half) r = Reciprocal(s) n = Mul(x, r) ",
    "r = Pow(e, mh) n = Mul(x, r) ",
]
PLAIN = SQUARES[0] + MEAN + ROOTS[1]


def graph(body: str, outputs: str = "float[N,2,4] y", x: str = "float[N,2,4] x") -> str:
    return f"g ({x}) => ({outputs}) {CONSTANTS} {{ {body} }}"


def after(gamma: str = "1,2,3,4") -> str:
    return (
        f"g (float[N,2,4] x) => (float[N,2,4] y) <float[4] gamma={{{gamma}}}>"
        "{ y = RMSNormalization<axis=-1, epsilon=0.00001>(x, gamma) }"
    )


@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("root", ROOTS)
def test_fires(square: str, root: str) -> None:
    check(RmsNorm(), graph(square + MEAN + root + "y = Mul(gamma, n)"), after())


def test_without_gamma_and_with_a_scalar() -> None:
    check(RmsNorm(), graph(PLAIN.replace("n = Mul", "y = Mul")), after("1,1,1,1"))
    check(RmsNorm(), graph(PLAIN + "u = Mul(n, gamma) y = Mul(u, two)"), after("2,4,6,8"))


def test_float16_between_casts() -> None:
    # Llama: statistics in float32, gamma in float16
    inner = "w = Cast<to=1>(x) " + PLAIN.replace("(x,", "(w,")
    before = graph(inner + "u = Cast<to=10>(n) y = Mul(gamma, u)").replace("float[N,2,4]", "float16[N,2,4]")
    before = before.replace("float[4] gamma={1,2,3,4}", "float16[4] gamma={15360,16384,16896,17408}")
    model = check(RmsNorm(), before, rtol=2e-3)
    assert [node.op_type for node in model.graph] == ["RMSNormalization"]
    before = graph(inner + "u = Mul(n, gamma) y = Cast<to=10>(u)").replace("float[N,2,4]", "float16[N,2,4]")
    check(RmsNorm(), before, rtol=2e-3)
    _, log = apply(RmsNorm(), before.replace("{1,2,3,4}", "{1.0001,2,3,4}"))
    assert [refusal.reason for refusal in log.refused] == ["gamma is not made of float16 numbers"]


def test_refuses_axes_that_are_not_the_last() -> None:
    before = graph(PLAIN + "y = Neg(n)").replace("int64[1] ax={-1}", "int64[1] ax={1}")
    check_refuses(RmsNorm(), before, "not the last ones")


def test_refuses_an_unknown_size() -> None:
    check_refuses(RmsNorm(), graph(PLAIN + "y = Neg(n)", "float[N,2,M] y", "float[N,2,M] x"), "is not known")


def test_refuses_a_shared_inner_value() -> None:
    before = graph(PLAIN + "y = Mul(n, gamma)", "float[N,2,4] y, float[N,2,1] r")
    check_refuses(RmsNorm(), before, "is an output of the graph")


def test_a_factor_that_reaches_beyond_stays_outside() -> None:
    model = check(RmsNorm(), graph(PLAIN + "y = Mul(n, wide)"))
    assert [node.op_type for node in model.graph] == ["RMSNormalization", "Mul"]


@pytest.mark.parametrize(
    "body",
    [
        PLAIN.replace("Pow(x, two)", "Pow(x, one)"),
        PLAIN.replace("ReduceMean", "ReduceSum"),
        PLAIN.replace("Mul(x, r)", "Mul(q, r)"),
        PLAIN.replace("ReduceMean(q", "ReduceMean<keepdims=1>(x"),
    ],
)
def test_ignores_near_misses(body: str) -> None:
    check_ignores(RmsNorm(), graph(body + "y = Neg(n)"))


def test_ignores_float64_and_a_constant_that_enlarges_the_rank() -> None:
    check_ignores(RmsNorm(), graph(PLAIN + "y = Neg(n)").replace("float", "double"))
    wide = graph(PLAIN + "y = Neg(n)", "float[1,N,2,4] y").replace("float two={", "float[1,1,1,1] two={")
    check_ignores(RmsNorm(), wide)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(2, 4), min_size=1, max_size=4),
    count=st.integers(1, 4),
    gamma_rank=st.integers(0, 4),
    square=st.sampled_from(SQUARES),
    root=st.sampled_from(ROOTS),
)
def test_agrees_for_any_shape(shape: list[int], count: int, gamma_rank: int, square: str, root: str) -> None:
    rank = len(shape)
    axes = list(range(max(rank - count, 0), rank))
    gamma = shape[rank - min(gamma_rank, rank) :]
    numbers = ",".join(str(i + 1) for i in range(int(np.prod(gamma))))
    type_ = f"float[{','.join(map(str, gamma))}]" if gamma else "float"
    constants = (
        f"<int64[{len(axes)}] ax={{{','.join(map(str, axes))}}}, float two={{2}}, float one={{1}},"
        f" float half={{0.5}}, float mh={{-0.5}}, float eps={{0.001}}, {type_} gamma={{{numbers}}}>"
    )
    dims = ",".join(map(str, shape))
    body = square + MEAN + root + "y = Mul(n, gamma)"
    model = check(RmsNorm(), f"g (float[{dims}] x) => (float[{dims}] y) {constants} {{ {body} }}")
    assert ([node.op_type for node in model.graph] == ["RMSNormalization"]) == (len(gamma) <= len(axes))
