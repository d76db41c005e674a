"""Residual additions that ONNX Runtime leaves next to their normalisation."""

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.targets.ort.legalize.plain_residual import PlainResidual
from graphopt.testing import apply, check, check_ignores, model_from_text

HEAD = "g (float[2,N,4] a, float[2,N,4] b) => (float[2,N,4] y)"
CONSTANTS = "<float[4] s = {1,2,3,4}, float[4] t = {1,-2,3,-4}>"
NORM = "y = LayerNormalization<axis=-1>(x, s, t)"


def test_fires() -> None:
    check(
        PlainResidual(),
        f"{HEAD} {CONSTANTS} {{ x = Add(a, b) {NORM} }}",
        f"{HEAD} {CONSTANTS} {{ x = Sum(a, b) {NORM} }}",
        exact=True,
    )


@pytest.mark.parametrize(
    "body",
    [
        f"x = Add(a, t) {NORM}",
        "x = Add(a, b) y = Relu(x)",
        "x = Add(a, b) y = RMSNormalization<axis=-1>(x, s)",
        f"x = Mul(a, b) {NORM}",
        "x = Add(s, t) y = LayerNormalization<axis=-1>(a, x, t)",
    ],
)
def test_ignores_other_additions(body: str) -> None:
    check_ignores(PlainResidual(), f"{HEAD} {CONSTANTS} {{ {body} }}")


def test_onnxruntime_keeps_the_addition(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """What the rewrite is for: with its default optimisations ONNX Runtime makes no SkipLayerNormalization of it."""
    import onnx
    import onnxruntime as ort

    text = f"{HEAD.replace('N', '5')} {CONSTANTS} {{ x = Add(a, b) {NORM} }}"
    kinds = []
    for model in (model_from_text(text), apply(PlainResidual(), text)[0]):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        session = ort.InferenceSession(
            ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        feed = np.zeros((2, 5, 4), np.float32)
        session.run(None, {"a": feed, "b": feed})
        kinds.append({node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node})
    assert "SkipLayerNormalization" in kinds[0], "ONNX Runtime no longer fuses: drop this rewrite"
    assert {"Sum", "LayerNormalization"} <= kinds[1]
