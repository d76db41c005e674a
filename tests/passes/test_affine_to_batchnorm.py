"""Leftover factors and shifts between convolutions."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.affine_to_batchnorm import AffineToBatchNorm
from graphopt.testing import check, check_ignores

HEAD = "g (float[1,2,4,4] x) => (float[1,2,A,B] y)"
WEIGHT = "float[2,1,3,3] w={1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9}"
CONV = "Conv<group=2, pads=[1,1,1,1]>"
ONES = "float[2] m={0,0}, float[2] v={1,1}"


@pytest.mark.parametrize(
    ("op", "scale", "shift"),
    [
        ("Add(h, s)", "{1,1}", "{2,2}"),
        ("Sub(h, s)", "{1,1}", "{-2,-2}"),
        ("Sub(s, h)", "{-1,-1}", "{2,2}"),
        ("Mul(s, h)", "{2,2}", "{0,0}"),
        ("Div(h, s)", "{0.5,0.5}", "{0,0}"),
    ],
)
def test_fires(op: str, scale: str, shift: str) -> None:
    check(
        AffineToBatchNorm(),
        f"{HEAD} <{WEIGHT}, float[1] s={{2}}> {{ c = {CONV}(x, w) h = HardSwish(c) a = {op} y = {CONV}(a, w) }}",
        f"{HEAD} <{WEIGHT}, float[2] g={scale}, float[2] b={shift}, {ONES}> {{ c = {CONV}(x, w) h = HardSwish(c) "
        f"a = BatchNormalization<epsilon=0.0>(h, g, b, m, v) y = {CONV}(a, w) }}",
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    "body",
    [
        f"h = HardSwish(x) a = Add(h, s) y = {CONV}(a, w)",
        f"c = {CONV}(x, w) a = Add(c, s) y = Softmax(a)",
        f"c = {CONV}(x, w) a = Add(c, rows) y = {CONV}(a, w)",
        f"c = {CONV}(x, w) a = Add(c, x) y = {CONV}(a, w)",
        f"c = {CONV}(x, w) a = Div(s, c) y = {CONV}(a, w)",
    ],
)
def test_ignores(body: str) -> None:
    check_ignores(
        AffineToBatchNorm(), f"{HEAD} <{WEIGHT}, float[1] s={{2}}, float[4,1] rows={{1,2,3,4}}> {{ {body} }}"
    )


def test_ignores_half_precision_and_other_ranks() -> None:
    check_ignores(
        AffineToBatchNorm(),
        "g (float[1,1,4] x) => (float[1,1,A] y) <float[1,1,1] w={2}, float s={2}> "
        "{ c = Conv(x, w) a = Add(c, s) y = Conv(a, w) }",
    )
    check_ignores(
        AffineToBatchNorm(),
        "g (float16[1,1,4,4] x) => (float16[1,1,A,B] y) <float16[1,1,1,1] w={15360}, float16 s={15360}> "
        "{ c = Conv(x, w) a = Add(c, s) y = Conv(a, w) }",
    )


@given(
    st.sampled_from(["Add", "Sub", "Mul", "Div"]),
    st.sampled_from(
        ["float s={3}", "float[1,2,1,1] s={3,4}", "float[2,1,1] s={3,4}", "float[1,1,1,1] s={3}"]
    ),
    st.sampled_from(["Relu", "Sigmoid", "HardSwish", "HardSigmoid", "Tanh"]),
)
@settings(derandomize=True, deadline=None, max_examples=30)
def test_property(op: str, constant: str, activation: str) -> None:
    model = check(
        AffineToBatchNorm(),
        f"{HEAD} <{WEIGHT}, {constant}> {{ c = {CONV}(x, w) h = {activation}(c) a = {op}(h, s) y = {CONV}(a, w) }}",
        rtol=1e-6,
    )
    assert [node.op_type for node in model.graph] == ["Conv", activation, "BatchNormalization", "Conv"]
