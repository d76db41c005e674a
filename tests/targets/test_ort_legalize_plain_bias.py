"""Biases that ONNX Runtime leaves next to their MatMul."""

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.targets.ort.legalize.plain_bias import PlainBias
from graphopt.testing import apply, check, check_ignores, model_from_text

HEAD = "g (float[2,N,3] x) => (float[2,N,4] y)"
CONSTANTS = "float[3,4] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float[4] b = {1,-2,3,-4}"


@pytest.mark.parametrize("addition", ["Add(m, b)", "Add(b, m)"])
def test_fires(addition: str) -> None:
    check(
        PlainBias(),
        f"{HEAD} <{CONSTANTS}> {{ m = MatMul(x, w) y = {addition} }}",
        f"{HEAD} <{CONSTANTS.replace('float[4] b', 'float[1,1,4] b')}> {{ m = MatMul(x, w) y = Add(m, b) }}",
        exact=True,
    )


def test_ignores_activations_of_rank_2() -> None:
    check_ignores(
        PlainBias(),
        f"g (float[N,3] x) => (float[N,4] y) <{CONSTANTS}> {{ m = MatMul(x, w) y = Add(m, b) }}",
    )


@pytest.mark.parametrize(
    "body",
    [
        "m = Relu(x) y = Add(m, c)",
        "m = MatMul(x, w) y = Add(m, d)",
        "m = MatMul(x, w) y = Mul(m, b)",
    ],
)
def test_ignores_other_additions(body: str) -> None:
    more = f"{CONSTANTS}, float[3] c = {{1,2,3}}, float[1,1,4] d = {{1,2,3,4}}"
    output = "float[2,N,3] y" if "Relu" in body else "float[2,N,4] y"
    check_ignores(PlainBias(), f"g (float[2,N,3] x) => ({output}) <{more}> {{ {body} }}")


def test_onnxruntime_keeps_the_addition(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """What the rewrite is for: with its default optimisations ONNX Runtime makes no Gemm of it."""
    import onnx
    import onnxruntime as ort

    text = f"{HEAD.replace('N', '5')} <{CONSTANTS}> {{ m = MatMul(x, w) a = Add(m, b) y = Relu(a) }}"
    kinds = []
    for model in (model_from_text(text), apply(PlainBias(), text)[0]):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        session = ort.InferenceSession(
            ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        session.run(None, {"x": np.zeros((2, 5, 3), np.float32)})
        kinds.append({node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node})
    assert "Gemm" in kinds[0] or "FusedGemm" in kinds[0], "ONNX Runtime no longer fuses: drop this rewrite"
    assert {"MatMul", "Add"} <= kinds[1]
