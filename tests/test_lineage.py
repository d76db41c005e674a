"""Where the nodes of a model went."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import pytest

from graphopt import catalog
from graphopt.artifact import Made, Origin
from graphopt.capture import Captured, capture
from graphopt.ir import model as ir_model
from graphopt.lineage import CAPTURE, Lineage
from graphopt.models import builders
from graphopt.pipeline.manager import PassManager
from graphopt.pipeline.spec import parse
from graphopt.testing import model_from_text


def followed(captured: Captured, passes: str = "fuse") -> tuple[list[Origin], list[Made], ir.Model]:
    lineage = Lineage(captured)
    manager = PassManager(catalog.expand(parse(passes)), listeners=(lineage,))
    final, _ = manager.run(captured.model)
    return *lineage.finish(final, "ort-cpu"), final


@pytest.mark.parametrize(
    "build", [builders.conv_net, builders.mlp, builders.transformer_block, builders.branch_and_loop, builders.dynamic_net]
)  # fmt: skip
def test_both_directions_say_the_same(build: Callable[[], Any]) -> None:
    captured = capture(build())
    origins, nodes, final = followed(captured)
    assert [node.name for node in nodes] == [node.name for node in final.graph.all_nodes()]
    assert len({origin.name for origin in origins}) == len(origins)
    now = {origin.name: origin.steps[-1].nodes if origin.steps else [origin.name] for origin in origins}
    forward = {(name, node) for name, stands in now.items() for node in stands}
    backward = {(name, node.name) for node in nodes for name in node.origins}
    assert forward == backward
    there = {node.name for node in nodes}
    for origin in origins:
        if not origin.steps:
            assert origin.name in there, "what is as it was is there"


def test_names_are_those_of_the_original() -> None:
    """Nodes without a name are called by their outputs; constants and copies of them are gone from the start."""
    import onnx
    from onnx import helper

    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["three"], value_float=3.0),
            helper.make_node("Add", ["x", "three"], ["a"]),
            helper.make_node("Relu", ["a"], ["y"], name="last"),
        ],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2])],
    )
    origins, nodes, _ = followed(
        capture(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    )
    by_name = {origin.name: origin for origin in origins}
    assert list(by_name) == ["three", "a", "last"]
    assert [step.stage for step in by_name["three"].steps] == [CAPTURE] and not by_name["three"].steps[
        0
    ].nodes
    assert by_name["a"].op == "Add" and not by_name["a"].steps
    assert [node.origins for node in nodes] == [["a"], ["last"]]


def test_a_node_that_goes_away_is_gone_with_the_pass_that_took_it() -> None:
    model = model_from_text(
        "g (float[2,3] x) => (float[2,3] y) { a = Identity(x) b = Relu(x) c = Relu(x) d = Add(b, c) y = Add(d, a) }"
    )
    for node in model.graph:
        node.name = f"node_{node.outputs[0].name}"
    origins, nodes, _ = followed(capture(model), "identity,cse")
    gone = {
        origin.name: origin.steps[-1] for origin in origins if origin.steps and not origin.steps[-1].nodes
    }
    assert gone["node_a"].stage == "identity" and gone["node_a"].by == ["identity"]
    assert {step.stage for name, step in gone.items() if name != "node_a"} == {"cse"}
    assert {name for node in nodes for name in node.origins}.isdisjoint(gone)


def test_the_original_itself_stands_for_itself() -> None:
    captured = capture(builders.mlp())
    lineage = Lineage(captured)
    PassManager(catalog.expand(parse("fuse")), listeners=(lineage,)).run(captured.model)
    origins, nodes = lineage.finish(captured.original_model, "ort-cpu")
    assert all(not origin.steps for origin in origins)
    assert [node.origins for node in nodes] == [[origin.name] for origin in origins]
    assert len(nodes) == sum(ir_model.op_counts(captured.original_model).values())
