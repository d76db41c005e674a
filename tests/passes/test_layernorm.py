"""LayerNormalization from its decomposed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.layernorm import LayerNorm
from graphopt.testing import apply, check, check_ignores, check_refuses

CONSTANTS = (
    "<int64[1] ax={-1}, int64[1] last={2}, float two={2}, float one={1}, float half={0.5}, float mh={-0.5},"
    " float eps={1e-5}, float[4] gamma={1,2,3,4}, float[4] beta={5,6,7,8}, float[2,1] wide={1,2},"
    " float[1,1,1,1] deep={2}>"
)
MEAN = "m = ReduceMean(x, ax) d = Sub(x, m) "
SQUARES = ["q = Pow(d, two) ", "q = Mul(d, d) "]
VARIANCE = "v = ReduceMean(q, ax) e = Add(v, eps) "
ROOTS = [
    "s = Sqrt(e) n = Div(d, s) ",
    "s = Pow(e, half) n = Div(d, s) ",
    "s = Sqrt(e) r = Reciprocal(s) n = Mul(d, r) ",
    "s = Sqrt(e) r = Div(one, s) n = Mul(r, d) ",
    "r = Pow(e, mh) n = Mul(d, r) ",
]
AFFINE = "u = Mul(n, gamma) y = Add(u, beta)"
PLAIN = MEAN + SQUARES[0] + VARIANCE + ROOTS[0]


def graph(body: str, outputs: str = "float[N,2,4] y", x: str = "float[N,2,4] x") -> str:
    return f"g ({x}) => ({outputs}) {CONSTANTS} {{ {body} }}"


def after(operands: str = "gamma, beta", gamma: str = "1,2,3,4", beta: str = "5,6,7,8") -> str:
    return (
        f"g (float[N,2,4] x) => (float[N,2,4] y) <float[4] gamma={{{gamma}}}, float[4] beta={{{beta}}}>"
        f"{{ y = LayerNormalization<axis=-1, epsilon=0.00001>(x, {operands}) }}"
    )


@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("root", ROOTS)
def test_fires(square: str, root: str) -> None:
    check(LayerNorm(), graph(MEAN + square + VARIANCE + root + AFFINE), after())


def test_without_gamma_or_beta() -> None:
    check(LayerNorm(), graph(PLAIN.replace("n = Div", "y = Div")), after("gamma", gamma="1,1,1,1"))
    check(LayerNorm(), graph(PLAIN + "y = Mul(gamma, n)"), after("gamma"))
    check(LayerNorm(), graph(PLAIN + "y = Add(n, beta)"), after(gamma="1,1,1,1"))


def test_a_variance_with_a_mean_of_its_own() -> None:
    # torch.var, as torch.onnx writes it
    body = (
        MEAN + "m2 = ReduceMean(x, last) d2 = Sub(x, m2) q = Mul(d2, d2) w = ReduceMean<keepdims=0>(q, last) "
        "v = Reshape(w, shape) e = Add(v, eps) " + ROOTS[0] + AFFINE
    )
    before = graph(body, "float[3,2,4] y", "float[3,2,4] x").replace(
        "<int64[1] ax", "<int64[3] shape={3,2,1}, int64[1] ax"
    )
    check(LayerNorm(), before, after().replace("[N,", "[3,"))
    square = before.replace("3,2,4", "2,2,2").replace("float[4] ", "float[2] ")
    square = square.replace("{1,2,3,4}", "{1,2}").replace("{5,6,7,8}", "{5,6}")
    check(LayerNorm(), square.replace("{3,2,1}", "{2,2,1}"))
    check_ignores(LayerNorm(), square.replace("{3,2,1}", "{2,1,2}"))
    dynamic = body.replace("v = Reshape(w, shape)", "v = Unsqueeze(w, ax)")
    check(LayerNorm(), graph(dynamic), after())


@pytest.mark.parametrize("gain", ["g = Mul(r, gamma) ", ""])
def test_the_form_of_tensorflow(gain: str) -> None:
    factor = "g" if gain else "r"
    body = (
        MEAN + SQUARES[1] + VARIANCE + f"s = Sqrt(e) r = Reciprocal(s) {gain}a = Mul(x, {factor}) "
        f"b = Mul(m, {factor}) c = Sub(beta, b) y = Add(a, c)"
    )
    check(LayerNorm(), graph(body), after() if gain else after(gamma="1,1,1,1"))


def test_scalars_and_second_affine_maps_join() -> None:
    body = PLAIN + "u = Mul(n, gamma) w = Add(u, beta) y = Mul(w, two)"
    check(LayerNorm(), graph(body), after(gamma="2,4,6,8", beta="10,12,14,16"))


def test_two_axes() -> None:
    body = PLAIN.replace("n = Div", "y = Div")
    before = graph(body).replace("int64[1] ax={-1}", "int64[2] ax={-1,1}")
    expected = (
        "g (float[N,2,4] x) => (float[N,2,4] y) <float[2,4] ones={1,1,1,1,1,1,1,1}>"
        "{ y = LayerNormalization<axis=-2, epsilon=0.00001>(x, ones) }"
    )
    check(LayerNorm(), before, expected)


def test_float16_between_casts() -> None:
    inner = PLAIN.replace("(x,", "(w,")
    before = graph("w = Cast<to=1>(x) " + inner + "u = Mul(n, gamma) t = Add(u, beta) y = Cast<to=10>(t)")
    before = before.replace("float[N,2,4]", "float16[N,2,4]")
    model = check(LayerNorm(), before, rtol=2e-3)
    assert [node.op_type for node in model.graph] == ["LayerNormalization"]
    _, log = apply(LayerNorm(), before.replace("{1,2,3,4}", "{1.0001,2,3,4}"))
    assert [refusal.reason for refusal in log.refused] == ["gamma or beta are not float16 numbers"]
    # Half of the model is float16: gamma comes behind the Cast.
    halves = "u = Cast<to=10>(n) y = Mul(u, gamma)"
    before = graph("w = Cast<to=1>(x) " + inner + halves).replace("float[N,2,4]", "float16[N,2,4]")
    before = before.replace("float[4] gamma={1,2,3,4}", "float16[4] gamma={15360,16384,16896,17408}")
    model = check(LayerNorm(), before, rtol=2e-3)
    assert [node.op_type for node in model.graph] == ["LayerNormalization"]


def test_refuses_axes_that_are_not_the_last() -> None:
    before = graph(PLAIN + "y = Neg(n)").replace("int64[1] ax={-1}", "int64[1] ax={1}")
    check_refuses(LayerNorm(), before, "not the last ones")


def test_refuses_an_unknown_size() -> None:
    check_refuses(
        LayerNorm(), graph(PLAIN + "y = Neg(n)", "float[N,2,M] y", "float[N,2,M] x"), "is not known"
    )


def test_refuses_a_gamma_that_reaches_beyond() -> None:
    body = (
        MEAN + SQUARES[1] + VARIANCE + "s = Sqrt(e) r = Reciprocal(s) g = Mul(r, wide) a = Mul(x, g) "
        "b = Mul(m, g) c = Sub(beta, b) y = Add(a, c)"
    )
    check_refuses(LayerNorm(), graph(body), "reach beyond")


def test_refuses_a_shared_inner_value() -> None:
    check_refuses(
        LayerNorm(), graph(PLAIN + AFFINE, "float[N,2,4] y, float[N,2,1] v"), "is an output of the graph"
    )


def test_a_factor_that_reaches_beyond_or_is_shared_stays_outside() -> None:
    for rest, outputs in (
        ("y = Mul(n, wide)", "float[N,2,4] y"),
        ("y = Mul(n, deep)", "float[1,N,2,4] y"),
        ("y = Mul(n, gamma)", "float[N,2,4] y, float[N,2,4] n"),
    ):
        model = check(LayerNorm(), graph(PLAIN + rest, outputs))
        assert [node.op_type for node in model.graph] == ["LayerNormalization", "Mul"]


@pytest.mark.parametrize(
    "body",
    [
        PLAIN.replace("Pow(d, two)", "Pow(d, one)"),
        PLAIN.replace("Mul(d, d)", "Mul(d, x)").replace("Pow(d, two)", "Mul(d, x)"),
        PLAIN.replace("ReduceMean(q, ax)", "ReduceSum(q, ax)"),
        PLAIN.replace("ReduceMean(q, ax)", "ReduceMean(q, last)").replace(
            "ReduceMean(x, ax)", "ReduceMean(x, two0)"
        ),
        PLAIN.replace("s = Sqrt(e)", "t = Sqrt(v) s = Add(t, eps)"),
        PLAIN.replace("Pow(d, two)", "Pow(d, deep)"),
    ],
)
def test_ignores_near_misses(body: str) -> None:
    before = graph(body + "y = Neg(n)").replace("<int64[1] ax", "<int64[1] two0={1}, int64[1] ax")
    if "deep" in body:
        before = before.replace("float[N,2,4] y", "float[1,N,2,4] y")
    check_ignores(LayerNorm(), before)


def test_ignores_axes_that_differ() -> None:
    body = PLAIN.replace("ReduceMean(q, ax)", "ReduceMean(q, more)") + "y = Neg(n)"
    check_ignores(LayerNorm(), graph(body).replace("<int64[1] ax", "<int64[2] more={1,2}, int64[1] ax"))
    check_ignores(LayerNorm(), graph(body).replace("<int64[1] ax", "<int64[1] more={1}, int64[1] ax"))


def test_ignores_float64() -> None:
    check_ignores(LayerNorm(), graph(PLAIN + AFFINE).replace("float", "double"))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(2, 4), min_size=1, max_size=4),
    count=st.integers(1, 4),
    negative=st.booleans(),
    gamma_rank=st.integers(0, 4),
    ones=st.integers(0, 15),
    beta_first=st.booleans(),
    square=st.sampled_from(SQUARES),
    root=st.sampled_from(ROOTS),
)
def test_agrees_for_any_shape(
    shape: list[int],
    count: int,
    negative: bool,
    gamma_rank: int,
    ones: int,
    beta_first: bool,
    square: str,
    root: str,
) -> None:
    rank = len(shape)
    axes = list(range(max(rank - count, 0), rank))
    gamma_rank = min(gamma_rank, rank)
    gamma = [1 if ones >> i & 1 else dim for i, dim in enumerate(shape[rank - gamma_rank :])]
    size = int(np.prod(gamma))
    numbers = ",".join(str(i + 1) for i in range(size))
    type_ = f"float[{','.join(map(str, gamma))}]" if gamma else "float"
    constants = (
        f"<int64[{len(axes)}] ax={{{','.join(str(a - rank if negative else a) for a in axes)}}}, float two={{2}},"
        " float one={1}, float half={0.5}, float mh={-0.5}, float eps={0.001},"
        f" {type_} gamma={{{numbers}}}, {type_} beta={{{numbers}}}>"
    )
    affine = "u = Add(n, beta) y = Mul(u, gamma)" if beta_first else AFFINE
    dims = ",".join(map(str, shape))
    body = MEAN + square + VARIANCE + root + affine
    model = check(LayerNorm(), f"g (float[{dims}] x) => (float[{dims}] y) {constants} {{ {body} }}")
    reach = gamma[: max(len(gamma) - len(axes), 0)]
    alone = [node.op_type for node in model.graph] == ["LayerNormalization"]
    assert alone == all(dim == 1 for dim in reach)
