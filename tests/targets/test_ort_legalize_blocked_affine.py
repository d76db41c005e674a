"""Factors and shifts between convolutions in ONNX Runtime's blocked layout."""

import collections

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.targets.ort.legalize.blocked_affine import BlockedAffine
from graphopt.testing import apply, check, check_ignores, check_refuses, model_from_text

HEAD = "g (float[N,4,5,5] x) => (float[N,4,A,B] y)"
WEIGHT = "float[4,1,3,3] w={" + ",".join(str(value % 7 - 3) for value in range(36)) + "}"
CONV = "Conv<group=4, pads=[1,1,1,1]>"
STILL = "float[4] m={0,0,0,0}, float[4] v={1,1,1,1}"
NORM = "BatchNormalization<epsilon=0.0>"


@pytest.mark.parametrize(
    ("body", "scale", "shift"),
    [
        ("a = Add(h, s)", "1,1,1,1", "2,2,2,2"),
        ("a = Sub(s, h)", "-1,-1,-1,-1", "2,2,2,2"),
        ("a = Sub(h, s)", "1,1,1,1", "-2,-2,-2,-2"),
        ("a = Mul(s, h)", "2,2,2,2", "0,0,0,0"),
        ("a = Div(h, k)", "1,0.5,0.25,0.125", "0,0,0,0"),
        ("b = Mul(h, k) a = Add(b, s)", "1,2,4,8", "2,2,2,2"),
        ("b = Add(h, s) a = Mul(b, k)", "1,2,4,8", "2,4,8,16"),
    ],
)
def test_fires(body: str, scale: str, shift: str) -> None:
    check(
        BlockedAffine(),
        f"{HEAD} <{WEIGHT}, float[1] s={{2}}, float[4,1,1] k={{1,2,4,8}}> "
        f"{{ c = {CONV}(x, w) h = HardSwish(c) {body} y = {CONV}(a, w) }}",
        f"{HEAD} <{WEIGHT}, float[4] g={{{scale}}}, float[4] b={{{shift}}}, {STILL}> "
        f"{{ c = {CONV}(x, w) h = HardSwish(c) a = {NORM}(h, g, b, m, v) y = {CONV}(a, w) }}",
    )


def test_fires_with_a_batchnorm_wherever_it_stands() -> None:
    """Fewer ops, whatever is around them."""
    parts = "float[4] e={1,2,1,2}, float[4] f={1,1,0,0}, float[4] p={0,0,1,1}, float[4] q={3,3,3,3}"
    check(
        BlockedAffine(),
        f"{HEAD} <{parts}, float[1] s={{2}}, float[4,1,1] k={{1,2,4,8}}> "
        "{ n = BatchNormalization<epsilon=1.0>(x, e, f, p, q) b = Mul(n, k) a = Add(b, s) y = Exp(a) }",
        f"{HEAD} <float[4] g={{0.5,2,2,8}}, float[4] h={{3,4,0,-6}}, {STILL}> "
        f"{{ a = {NORM}(x, g, h, m, v) y = Exp(a) }}",
    )


@pytest.mark.parametrize(
    "body",
    [
        f"h = HardSwish(x) a = Add(h, s) y = {CONV}(a, w)",
        f"c = {CONV}(x, w) a = Add(c, s) y = Softmax(a)",
        f"c = {CONV}(x, w) t = Exp(c) a = Add(t, s) y = {CONV}(a, w)",
        f"c = {CONV}(x, w) a = Add(c, rows) y = {CONV}(a, w)",
        f"c = {CONV}(x, w) a = Add(c, x) y = {CONV}(a, w)",
        f"c = {CONV}(x, w) a = Div(s, c) y = {CONV}(a, w)",
        f"c = {CONV}(x, w) a = Div(c, none) y = {CONV}(a, w)",
        f"c = {CONV}(x, w) g = GlobalAveragePool(c) p = Mul(c, g) a = Add(p, s) y = {CONV}(a, w)",
        f"y = {NORM}(x, e, e, e, e)",
    ],
)
def test_ignores(body: str) -> None:
    constants = "float[1] s={2}, float[5,1] rows={1,2,3,4,5}, float none={0}, float[4] e={1,1,1,1}"
    check_ignores(BlockedAffine(), f"{HEAD} <{WEIGHT}, {constants}> {{ {body} }}")


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,C,5,5] x) => (float[N,C,A,B] y) <float s={2}> { c = Relu(x) a = Add(c, s) y = MaxPool"
        "<kernel_shape=[2,2]>(a) }",
        "g (float[1,1,4] x) => (float[1,1,A] y) <float[1,1,1] w={2}, float s={2}> "
        "{ c = Conv(x, w) a = Add(c, s) y = Conv(a, w) }",
        "g (float16[1,1,4,4] x) => (float16[1,1,A,B] y) <float16[1,1,1,1] w={1}, float16 s={2}> "
        "{ c = Conv(x, w) a = Add(c, s) y = Conv(a, w) }",
    ],
)
def test_ignores_unknown_channels_other_ranks_and_types(text: str) -> None:
    check_ignores(BlockedAffine(), text)


def test_refuses_overflow() -> None:
    check_refuses(
        BlockedAffine(),
        f"{HEAD} <{WEIGHT}, float s={{1e30}}> {{ c = {CONV}(x, w) b = Mul(c, s) a = Mul(b, s) y = {CONV}(a, w) }}",
        "would overflow",
    )


@given(
    st.lists(st.sampled_from(["Add", "Sub", "Mul", "Div"]), min_size=1, max_size=4),
    st.sampled_from(
        ["float s={3}", "float[1,4,1,1] s={3,4,0.5,-2}", "float[4,1,1] s={3,4,-1,1}", "float[1,1] s={3}"]
    ),
    st.sampled_from(["Relu", "Sigmoid", "HardSwish", "HardSigmoid", "Tanh"]),
)
@settings(derandomize=True, deadline=None, max_examples=30)
def test_property(ops: list[str], constant: str, activation: str) -> None:
    steps = " ".join(f"a{index + 1} = {op}(a{index}, s)" for index, op in enumerate(ops))
    model = check(
        BlockedAffine(),
        f"{HEAD} <{WEIGHT}, {constant}> {{ c = {CONV}(x, w) a0 = {activation}(c) {steps} y = {CONV}(a{len(ops)}, w) }}",
    )
    assert [node.op_type for node in model.graph] == ["Conv", activation, "BatchNormalization", "Conv"]


@pytest.mark.onnxruntime("1.25", "keeps BatchNormalization of opset 15 and newer in the blocked layout")
def test_onnxruntime_stays_in_the_blocked_layout(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """What the rewrite is for: with its default optimisations ONNX Runtime makes no reorders around the map."""
    import onnx
    import onnxruntime as ort

    text = (
        f"{HEAD.replace('N', '1')} <{WEIGHT}, float s={{2}}> "
        f"{{ c = {CONV}(x, w) h = HardSwish(c) a = Add(h, s) y = {CONV}(a, w) }}"
    )
    reorders = []
    for model in (model_from_text(text), apply(BlockedAffine(), text)[0]):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        ort.InferenceSession(
            ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        kinds = collections.Counter(
            node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node
        )
        reorders.append(kinds["ReorderOutput"] + kinds["ReorderInput"])
    if not reorders[0]:
        pytest.skip("this machine has no blocked layout")
    assert reorders[1] < reorders[0], "ONNX Runtime keeps the layout by itself: drop this rewrite"
