"""Transposed convolutions without overlap."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.targets.legalize.convtranspose_to_depth import ConvTransposeToDepth
from graphopt.testing import check, check_ignores, check_refuses

HEAD = "g (float[1,4,3,H] x) => (float[1,1,A,B] y)"
FIRST = "float[4,1,1,1] u={1,2,3,4}"
SECOND = "float[1,1,2,2] w={1,2,3,4}"
UP = "ConvTranspose<strides=[2,2]>"


def test_fires() -> None:
    check(
        ConvTransposeToDepth(),
        f"{HEAD} <{FIRST}, float[1] a={{5}}, {SECOND}, float[1] b={{6}}> "
        f"{{ t = ConvTranspose(x, u, a) r = Relu(t) y = {UP}(r, w, b) }}",
        f"{HEAD} <float[1,4,1,1] u={{1,2,3,4}}, float[1] a={{5}}, float[4,1,1,1] w={{1,2,3,4}}, "
        "float[4] b={6,6,6,6}> "
        '{ t = Conv(x, u, a) r = Relu(t) c = Conv(r, w, b) y = DepthToSpace<blocksize=2, mode="CRD">(c) }',
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"t = ConvTranspose(x, u) r = Relu(t) y = {UP}(r, w) z = Sigmoid(t)", "is used elsewhere"),
        (
            f"t = ConvTranspose(x, u) r = Relu(t) y = {UP}(r, w) q = Slice(x, o, i, i) z = {UP}(q, w)",
            "is shared",
        ),
        (f"t = ConvTranspose(x, u) r = Relu(t) y = {UP}(r, v) z = Sigmoid(x)", "would cost more"),
    ],
)
def test_refuses(body: str, reason: str) -> None:
    check_refuses(
        ConvTransposeToDepth(),
        f"g (float[1,4,3,3] x) => (float[1,C,A,B] y, float[1,D,E,F] z) <{FIRST}, {SECOND}, int64[1] o={{0}}, "
        f"int64[1] i={{1}}, float[1,2,2,2] v={{1,2,3,4,5,6,7,8}}> {{ {body} }}",
        reason,
    )


@pytest.mark.parametrize(
    "options",
    [
        "strides=[1,1]",
        "strides=[2,1]",
        "strides=[2,2], pads=[0,1,0,0]",
        "strides=[2,2], output_padding=[1,0]",
        "strides=[2,2], dilations=[2,2]",
        'strides=[2,2], auto_pad="SAME_UPPER"',
        "strides=[2,2], output_shape=[6,6]",
    ],
)
def test_ignores_overlap_and_padding(options: str) -> None:
    body = f"t = ConvTranspose(x, u) y = ConvTranspose<{options}>(t, w)"
    check_ignores(
        ConvTransposeToDepth(), f"g (float[1,4,3,3] x) => (float[1,1,A,B] y) <{FIRST}, {SECOND}> {{ {body} }}"
    )


@pytest.mark.parametrize(
    "body",
    [
        "t = Softmax(x) y = ConvTranspose<strides=[2,2]>(t, u)",
        "t = ConvTranspose(x, u) s = Softmax(t) y = ConvTranspose<strides=[2,2]>(s, w)",
        "t = ConvTranspose<group=2>(x, g2) y = ConvTranspose(t, v)",
        "t = ConvTranspose(x, d) y = ConvTranspose<strides=[2,2]>(t, w)",
    ],
)
def test_ignores(body: str) -> None:
    weights = f"{FIRST}, {SECOND}, float[4,1,1,1] g2={{1,2,3,4}}, float[2,1,1,1] v={{1,2}}"
    check_ignores(
        ConvTransposeToDepth(),
        f"g (float[1,4,3,3] x, float[4,1,1,1] d) => (float[1,1,A,B] y) <{weights}> {{ {body} }}",
    )


@given(
    st.integers(1, 2),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 2),
    st.booleans(),
    st.sampled_from(["Relu", "Sigmoid", "LeakyRelu<alpha=0.3>", ""]),
)
@settings(derandomize=True, deadline=None, max_examples=40)
def test_property(middle: int, outputs: int, first: int, second: int, bias: bool, activation: str) -> None:
    inputs = (first * second) ** 2 * outputs
    one = _values(inputs * middle * first * first)
    two = _values(middle * outputs * second * second)
    extra = ", b" if bias else ""
    step = f"r = {activation}(t)" if activation else ""
    text = (
        f"g (float[N,{inputs},2,3] x) => (float[N,{outputs},A,B] y) "
        f"<float[{inputs},{middle},{first},{first}] u={{{one}}}, float[{middle}] a={{{_values(middle)}}}, "
        f"float[{middle},{outputs},{second},{second}] w={{{two}}}, float[{outputs}] b={{{_values(outputs)}}}> "
        f"{{ t = ConvTranspose<strides=[{first},{first}]>(x, u, a) {step} "
        f"y = ConvTranspose<strides=[{second},{second}]>({'r' if activation else 't'}, w{extra}) }}"
    )
    model = check(ConvTransposeToDepth(), text)
    assert "ConvTranspose" not in [node.op_type for node in model.graph]


def _values(count: int) -> str:
    return ",".join(str(0.125 * (value * 7 % 19 - 8)) for value in range(count))
