"""Signed integers that ONNX Runtime would carry past a layout operator, and QuantizeLinear with a stated type."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from graphopt.ir import model as ir_model
from graphopt.targets.ort.legalize.quantize_type import QuantizeType
from graphopt.targets.ort.legalize.signed_qdq import SignedQdq
from graphopt.testing import apply, check, check_ignores, model_from_text

FEEDS = {"x": (np.random.default_rng(0).standard_normal((1, 4, 6, 6)) * 10).astype(np.float32)}
HEAD = """
g (float[1,4,6,6] x) => (float[] y)
<float s={0.05}, TYPE z={3}, int64[2] flat={1, -1}, int64[1] zero={0}, int64[1] two={2}, int64[1] one={1}>
{
"""
BODY = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "
LAYOUT = {
    "MaxPool": "p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(d)",
    "Reshape": "p = Reshape(d, flat)",
    "Slice": "p = Slice(d, zero, two, one)",
    "Squeeze": "p = Squeeze(d, zero)",
    "Transpose": "p = Transpose<perm=[0,2,3,1]>(d)",
    "Unsqueeze": "p = Unsqueeze(d, zero)",
}


def graph(body: str, dtype: str = "int8") -> str:
    return HEAD.replace("TYPE", dtype) + body + " r = Sin(p) y = ReduceSum<keepdims=0>(r) }"


def loads(model: str | ir.Model) -> bool:
    """Whether ONNX Runtime takes it with all its optimisations."""
    built = model_from_text(model) if isinstance(model, str) else model
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        content = ir.to_proto(built).SerializeToString()
        ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception:
        return False
    return True


@pytest.mark.parametrize("op_type", sorted(LAYOUT))
def test_an_unsigned_pair_is_put_behind_and_the_numbers_stay(op_type: str) -> None:
    changed = check(SignedQdq(), graph(BODY + LAYOUT[op_type]), feeds=FEEDS, exact=True)
    counts = ir_model.op_counts(changed)
    assert counts["QuantizeLinear"] == counts["DequantizeLinear"] == 2
    assert loads(changed)


def test_every_signed_integer_keeps_its_value() -> None:
    """All 256 of them, through the pair, at scales of very different sizes."""
    for scale in (1e-30, 3e-7, 0.05, 1.0, 7.3, 1e30):
        text = (
            f"g (int8[1,256] q) => (float[256] y) <float s={{{scale}}}, int8 z={{-5}}, int64[1] flat={{-1}}>"
            "{ d = DequantizeLinear(q, s, z) y = Reshape(d, flat) }"
        )
        feeds = {"q": np.arange(-128, 128, dtype=np.int8).reshape(1, 256)}
        check(SignedQdq(), text, feeds=feeds, exact=True)


def test_the_second_of_two_layout_operators_needs_nothing() -> None:
    body = BODY + "m = Unsqueeze(d, zero) p = Transpose<perm=[1,0,2,3,4]>(m)"
    changed, log = apply(SignedQdq(), graph(body))
    assert len(log.applied) == 1 and loads(changed)


@pytest.mark.parametrize(
    ("body", "dtype"),
    [
        (BODY + LAYOUT["Reshape"], "uint8"),
        (BODY + "p = Relu(d)", "int8"),
        (BODY + "t = Reshape(d, flat) o = QuantizeLinear(t, s, z) p = DequantizeLinear(o, s, z)", "int8"),
        ("d = DequantizeLinear(z, s, z) t = Reshape(d, flat) p = Add(x, t)", "int8"),
    ],
    ids=["unsigned", "another operator", "read by Q only", "a weight"],
)
def test_ignores(body: str, dtype: str) -> None:
    check_ignores(SignedQdq(), graph(body, dtype))
    assert loads(graph(body, dtype))


def test_a_stated_type_goes_where_the_zero_point_tells() -> None:
    body = "q = QuantizeLinear<output_dtype=3>(x, s, z) p = DequantizeLinear(q, s, z)"
    plain = "q = QuantizeLinear(x, s, z) p = DequantizeLinear(q, s, z)"
    changed = check(QuantizeType(), graph(body), graph(plain), feeds=FEEDS, exact=True)
    assert loads(changed)
    check_ignores(
        QuantizeType(), graph("q = QuantizeLinear<output_dtype=3>(x, s) p = DequantizeLinear(q, s)")
    )
