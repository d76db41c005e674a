"""InstanceNormalization, and group normalisation, from decomposed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.instancenorm import InstanceNorm
from graphopt.passes.layernorm import LayerNorm
from graphopt.pipeline.base import RewritePass
from graphopt.testing import check, check_ignores, check_refuses

CONSTANTS = (
    "<int64[2] ax={2,3}, float two={2}, float eps={1e-5}, float[2,1,1] gamma={1,2}, float[1,2,1,1] beta={3,4},"
    " float[4] wide={1,2,3,4}, int64[3] flat={0,2,-1}, int64[4] back={0,2,3,4}, int64[1] last={2}>"
)
PLAIN = (
    "m = ReduceMean(x, ax) d = Sub(x, m) q = Mul(d, d) v = ReduceMean(q, ax) e = Add(v, eps) s = Sqrt(e) "
    "n = Div(d, s) "
)
AFFINE = "u = Mul(n, gamma) y = Add(u, beta)"


def graph(body: str, outputs: str = "float[N,2,3,4] y", x: str = "float[N,2,3,4] x") -> str:
    return f"g ({x}) => ({outputs}) {CONSTANTS} {{ {body} }}"


def after(gamma: str = "1,2", beta: str = "3,4") -> str:
    return (
        f"g (float[N,2,3,4] x) => (float[N,2,3,4] y) <float[2] gamma={{{gamma}}}, float[2] beta={{{beta}}}>"
        "{ y = InstanceNormalization<epsilon=0.00001>(x, gamma, beta) }"
    )


def test_fires() -> None:
    check(InstanceNorm(), graph(PLAIN + AFFINE), after())
    check(InstanceNorm(), graph(PLAIN.replace("n = Div", "y = Div")), after("1,1", "0,0"))
    check(InstanceNorm(), graph(PLAIN + "y = Mul(n, two)"), after("2,2", "0,0"))


def test_joins_an_affine_map_behind_the_operator() -> None:
    before = graph("n = InstanceNormalization<epsilon=0.00001>(x, g, b) u = Add(n, beta) y = Mul(u, gamma)")
    before = before.replace("<int64[2] ax", "<float[2] g={5,6}, float[2] b={7,8}, int64[2] ax")
    check(InstanceNorm(), before, after("5,12", "10,24"))


@pytest.mark.parametrize("gain", ["g = Mul(r, gamma) ", ""])
def test_the_form_of_tensorflow(gain: str) -> None:
    factor = "g" if gain else "r"
    body = PLAIN.replace("n = Div(d, s)", "r = Reciprocal(s)") + gain
    body += f"a = Mul(x, {factor}) b = Mul(m, {factor}) c = Sub(beta, b) y = Add(a, c)"
    check(InstanceNorm(), graph(body), after() if gain else after("1,1"))
    if gain:
        body = body.replace("gamma", "wide")
        check_refuses(InstanceNorm(), graph(body), "differ within a channel")


def test_group_normalisation_between_reshapes() -> None:
    inner = PLAIN.replace("(x,", "(f,").replace("ax)", "last)")
    before = graph(
        "f = Reshape(x, flat) " + inner + "k = Reshape(n, back) u = Mul(k, gamma) y = Add(u, beta)"
    )
    model = check(RewritePass("both", [InstanceNorm(), LayerNorm()]), before)
    assert [node.op_type for node in model.graph] == [
        "Reshape",
        "InstanceNormalization",
        "Reshape",
        "Mul",
        "Add",
    ]


def test_leaves_layer_normalisation() -> None:
    inner = PLAIN.replace("(x,", "(f,").replace("ax)", "last)")
    check_ignores(
        InstanceNorm(), graph("f = Reshape(x, flat) " + inner + "y = Mul(n, two)", "float[N,2,12] y")
    )
    sequence = graph(PLAIN.replace("ax)", "last)") + "y = Neg(n)", "float[N,2,4] y", "float[N,2,4] x")
    check_ignores(InstanceNorm(), sequence)


def test_refuses_an_unknown_number_of_channels() -> None:
    before = graph(PLAIN + "y = Neg(n)", "float[N,C,3,4] y", "float[N,C,3,4] x")
    check_refuses(InstanceNorm(), before, "channels is not known")


def test_refuses_a_shared_inner_value() -> None:
    before = graph(PLAIN + AFFINE, "float[N,2,3,4] y, float[N,2,1,1] m")
    check_refuses(InstanceNorm(), before, "is an output of the graph")


def test_a_factor_within_a_channel_stays_outside() -> None:
    model = check(InstanceNorm(), graph(PLAIN + "y = Mul(n, wide)"))
    assert [node.op_type for node in model.graph] == ["InstanceNormalization", "Mul"]


def test_ignores_other_axes_and_float64() -> None:
    check_ignores(InstanceNorm(), graph(PLAIN + "y = Neg(n)").replace("ax={2,3}", "ax={1,2}"))
    check_ignores(InstanceNorm(), graph(PLAIN + "y = Neg(n)").replace("float", "double"))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(2, 4), min_size=4, max_size=5),
    gamma=st.sampled_from(["scalar", "channel", "full", "within"]),
    beta_first=st.booleans(),
)
def test_agrees_for_any_shape(shape: list[int], gamma: str, beta_first: bool) -> None:
    rank, channels = len(shape), shape[1]
    dims = {
        "scalar": [],
        "channel": [channels] + [1] * (rank - 2),
        "full": [1, channels] + [1] * (rank - 2),
        "within": [shape[-1]],
    }[gamma]
    numbers = ",".join(str(i + 1) for i in range(int(np.prod(dims))))
    type_ = f"float[{','.join(map(str, dims))}]" if dims else "float"
    axes = ",".join(map(str, range(2, rank)))
    constants = (
        f"<int64[{rank - 2}] ax={{{axes}}}, float two={{2}}, float eps={{0.001}}, {type_} gamma={{{numbers}}},"
        f" {type_} beta={{{numbers}}}>"
    )
    affine = "u = Add(n, beta) y = Mul(u, gamma)" if beta_first else AFFINE
    type_ = f"float[{','.join(map(str, shape))}]"
    model = check(InstanceNorm(), f"g ({type_} x) => ({type_} y) {constants} {{ {PLAIN} {affine} }}")
    alone = [node.op_type for node in model.graph] == ["InstanceNormalization"]
    assert alone == (gamma != "within")


def test_leaves_an_empty_tensor() -> None:
    text = graph(PLAIN.replace("n = Div", "y = Div"), x="float[N,2,0,4] x", outputs="float[N,2,0,4] y")
    check_ignores(InstanceNorm(), text)
