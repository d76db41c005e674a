"""Text form: there and back."""

from __future__ import annotations

import pytest

from graphopt.errors import SpecError
from graphopt.ir import model as ir_model
from graphopt.ir.hash import content_hash
from graphopt.ir.text import from_text, to_text
from graphopt.models import builders


@pytest.mark.parametrize("build", [builders.mlp, builders.branch_and_loop, builders.dynamic_net])
def test_there_and_back(build: object) -> None:
    assert callable(build)
    model = ir_model.from_proto(build())
    text = to_text(model, small_bytes=1 << 20)
    assert content_hash(from_text(text)) == content_hash(model)


def test_large_constants_are_left_out_and_listed() -> None:
    text = to_text(ir_model.from_proto(builders.mlp(width=64)))
    assert "# w0: float[64,64], 16,384 bytes left out" in text
    assert len(text) < 8000
    with pytest.raises(SpecError, match="written without its large constants"):
        from_text(text)


def test_large_constants_that_are_nodes_are_left_out_too() -> None:
    values = ", ".join(["1"] * 100)
    text = to_text(
        from_text(
            f"""<ir_version: 10, opset_import: ["" : 21]> g (float[100] x, bool c) => (float[100] y) {{
                w = Constant <value = float[100] {{{values}}}> ()
                small = Constant <value = float[1] {{7}}> ()
                a = Mul(x, small)
                b = If (c) <then_branch = g1 () => (float[100] t) {{
                    v = Constant <value = float[100] {{{values}}}> ()
                    t = Add(a, v)
                }}, else_branch = g2 () => (float[100] e) {{ e = Neg(a) }}>
                y = Add(b, w)
            }}"""
        )
    )
    assert "# w: float[100], 400 bytes left out" in text and "# v: float[100], 400 bytes left out" in text
    assert "1,1,1" not in text and "small = Constant" in text


def test_unknown_sizes_are_written_as_question_marks() -> None:
    proto = builders.mlp()
    del proto.graph.input[0].type.tensor_type.shape.dim[:]
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    dims.add(dim_value=-1)
    dims.add(dim_param="None")
    dims.add(dim_param="?")
    dims.add()
    dims.add(dim_param="batch")
    assert "(float[?,?,?,?,batch] x)" in to_text(ir_model.from_proto(proto))


def test_what_cannot_be_parsed() -> None:
    with pytest.raises(SpecError, match="cannot parse the text of a model"):
        from_text('<ir_version: 10, opset_import: ["" : 21]> g (float[2] x) => (float[2] y) { y = = }')
