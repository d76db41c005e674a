"""Residual sums after convolutions."""

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.targets.ort.legalize.conv_sum import ConvSum
from graphopt.testing import apply, check, check_ignores, model_from_text

HEAD = "g (float[1,6,3,4] x) => (float[1,6,A,B] y)"
WEIGHT = "float[6,3,1,1] w={1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9}"
CONV = "Conv<group=2>"


@settings(derandomize=True, deadline=None, max_examples=10)
@given(total=st.sampled_from(["Sum(c, x)", "Sum(x, c)"]), tail=st.sampled_from(["Relu", "Exp", "HardSwish"]))
def test_fires(total: str, tail: str) -> None:
    check(
        ConvSum(),
        f"{HEAD} <{WEIGHT}> {{ c = {CONV}(x, w) s = {total} y = {tail}(s) }}",
        f"{HEAD} <{WEIGHT}> {{ c = {CONV}(x, w) s = {total.replace('Sum', 'Add')} y = {tail}(s) }}",
        exact=True,
    )


def test_fires_after_a_batchnorm() -> None:
    model = check(
        ConvSum(),
        f"{HEAD} <{WEIGHT}, float[6] e={{1,1,1,1,1,1}}> "
        f"{{ c = {CONV}(x, w) b = BatchNormalization(c, e, e, e, e) s = Sum(b, x) y = Relu(s) }}",
        exact=True,
    )
    assert [node.op_type for node in model.graph] == ["Conv", "BatchNormalization", "Add", "Relu"]


@pytest.mark.parametrize(
    "body",
    [
        "r = Relu(x) y = Sum(r, x)",
        "r = Relu(x) b = BatchNormalization(r, e, e, e, e) y = Sum(b, x)",
        f"c = {CONV}(x, w) y = Sum(c, x, c)",
        f"c = {CONV}(x, w) y = Sum(c)",
        f"c = {CONV}(x, w) y = Sum(c, c2)",
        f"c = {CONV}(x, w) r = Relu(c) s = Sum(c, x) y = Mul(s, r)",
        f"c = {CONV}(x, w) s = Sum(c, x) y = LayerNormalization(s, g)",
    ],
)
def test_ignores(body: str) -> None:
    constants = (
        f"{WEIGHT}, float[6,1,1] c2={{1,2,3,4,5,6}}, float[4] g={{1,1,1,1}}, float[6] e={{1,1,1,1,1,1}}"
    )
    check_ignores(ConvSum(), f"{HEAD} <{constants}> {{ {body} }}")


def test_onnxruntime_fuses_the_addition(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """What the rewrite is for: with its default optimisations ONNX Runtime leaves neither addition nor Relu."""
    import onnx
    import onnxruntime as ort

    text = (
        f"{HEAD} <{WEIGHT}, float[6] b={{1,2,3,4,5,6}}> {{ c = {CONV}(x, w, b) s = Sum(c, x) y = Relu(s) }}"
    )
    kinds = []
    for model in (model_from_text(text), apply(ConvSum(), text)[0]):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        ort.InferenceSession(
            ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        kinds.append([node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node])
    assert "Sum" in kinds[0], "ONNX Runtime fuses Sum too: drop this rewrite"
    assert kinds[1] == ["FusedConv"]
