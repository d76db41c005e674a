"""The structural verifier: each rule broken once, and the text that shows where."""

from __future__ import annotations

import time
from collections.abc import Callable

import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from graphopt.errors import InvalidGraphError
from graphopt.ir import model as ir_model
from graphopt.ir.check import check, find_cycle, neighbourhood
from graphopt.ir.shapes import infer
from graphopt.models import builders
from graphopt.testing import OPSET, model_from_text

CHAIN = "g (float[2] x) => (float[2] y) <float[2] w={1,2}> { a = Add(x, w) b = Relu(a) y = Neg(b) }"


def chain() -> ir.Model:
    model = model_from_text(CHAIN)
    for index, node in enumerate(model.graph):
        node.name = f"node{index}"
    return model


@pytest.mark.parametrize(
    "build",
    [
        builders.conv_net,
        builders.mlp,
        builders.transformer_block,
        builders.dynamic_net,
        builders.branch_and_loop,
        lambda: builders.long_chain(2000),
    ],
)
def test_valid_models_pass(build: Callable[[], object]) -> None:
    check(ir_model.from_proto(build()))  # type: ignore[arg-type]


def fails(model: ir.Model, message: str) -> InvalidGraphError:
    with pytest.raises(InvalidGraphError, match=message) as caught:
        check(model)
    return caught.value


def test_an_undefined_input_is_named_with_its_neighbourhood() -> None:
    model = chain()
    middle = model.graph[1]
    middle.replace_input_with(0, ir.Value(name="ghost"))
    error = fails(model, r"nothing defines 'ghost', its input 0\n  in b = Relu\(ghost\)   # node1")
    assert error.neighbourhood == "  > b = Relu(ghost)   # node1\n    y = Neg(b: float[2])   # node2"


def test_a_cycle_is_spelt_out() -> None:
    model = chain()
    model.graph[0].replace_input_with(1, model.graph[1].outputs[0])
    fails(model, r"cycle: node\d \(\w+\) -> node\d \(\w+\) -> node\d")
    assert {node.name for node in find_cycle(model.graph)} == {"node0", "node1"}


def test_a_node_that_reads_itself() -> None:
    model = chain()
    model.graph[1].replace_input_with(0, model.graph[1].outputs[0])
    fails(model, "cycle: the node reads its own output 'b'")


def test_no_cycle_in_a_long_chain() -> None:
    assert find_cycle(ir_model.from_proto(builders.long_chain(5000)).graph) == []


def test_a_node_before_its_producer() -> None:
    model = chain()
    last = model.graph[2]
    model.graph.remove(last)
    model.graph.insert_before(model.graph[0], last)
    fails(model, "not in topological order: input 'b' is computed by a later node")


def test_two_values_of_one_name() -> None:
    model = chain()
    model.graph[1].outputs[0].name = "a"
    fails(model, "two values have the name 'a'")


def test_a_value_of_a_subgraph_may_not_hide_an_outer_one() -> None:
    model = ir_model.from_proto(builders.branch_and_loop())
    branch = next(iter(model.graph)).attributes["then_branch"].as_graph()
    branch[0].outputs[0].name = "x"
    fails(model, "two values have the name 'x'")


def test_branches_may_use_the_same_names() -> None:
    model = ir_model.from_proto(builders.branch_and_loop())
    node = next(iter(model.graph))
    for name in ("then_branch", "else_branch"):
        for inner in node.attributes[name].as_graph():
            inner.outputs[0].name = (
                f"same_{inner.op_type}" if inner.op_type == "Constant" else inner.outputs[0].name
            )
    check(model, unique_node_names=False)


def test_two_nodes_of_one_name() -> None:
    model = chain()
    model.graph[1].name = "node0"
    fails(model, "two nodes have the name 'node0'")
    check(model, unique_node_names=False)


def test_an_output_that_nothing_computes() -> None:
    model = chain()
    model.graph.outputs.append(ir.Value(name="lost"))
    fails(model, "nothing computes the output 'lost' of graph 'g'")


def test_a_value_of_a_removed_node() -> None:
    model = chain()
    first = model.graph[0]
    model.graph.remove(first)
    fails(model, "its input 'a' is computed in a graph that it cannot see, or was removed")


def test_an_inner_value_read_from_outside() -> None:
    model = ir_model.from_proto(builders.branch_and_loop())
    branch = next(iter(model.graph)).attributes["then_branch"].as_graph()
    model.graph[1].replace_input_with(2, branch[1].outputs[0])
    fails(model, "its input 'then_m' is computed in a graph that it cannot see")


def test_an_outer_value_returned_by_a_subgraph() -> None:
    model = ir_model.from_proto(builders.branch_and_loop())
    branch = next(iter(model.graph)).attributes["then_branch"].as_graph()
    outer = ir.Value(name="outer")
    branch.outputs[0] = outer
    fails(model, "nothing computes the output 'outer'")


def test_an_initializer_without_content() -> None:
    model = chain()
    model.graph.initializers["w"].const_value = None
    fails(model, "initializer 'w' has no content")


def test_an_initializer_of_another_type_than_declared() -> None:
    model = chain()
    model.graph.initializers["w"].type = ir.TensorType(ir.DataType.DOUBLE)
    fails(model, "initializer 'w' is declared DOUBLE, but its content is FLOAT")


def test_a_missing_opset() -> None:
    model = chain()
    model.graph.opset_imports.clear()
    fails(model, "the model imports no opset for domain 'ai.onnx'")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("y = Frobnicate(x)", f"opset {OPSET} of domain 'ai.onnx' has no operator 'Frobnicate'"),
        ("y = acme.Op(x)", "the model imports no opset for domain 'acme'"),
        ("y = Relu(x, x)", "Relu takes 1 inputs, not 2"),
        ("y = Add(x)", "Add takes 2 inputs, not 1"),
        ("y = Concat<axis=0>()", "Concat takes at least 1 inputs, not 0"),
        ("y, z = Relu(x)", "Relu gives 1 outputs, not 2"),
        ("y = Relu<alpha=1>(x)", "Relu has no attribute 'alpha'"),
        ("y = LeakyRelu<alpha=1>(x)", "attribute 'alpha' of LeakyRelu must be FLOAT, not INT"),
        ("y = Cast(x)", "Cast needs the attribute 'to'"),
        ("y = Upsample(x, x)", "Upsample was withdrawn from ONNX in opset 10"),
        (
            "y = Add(x, i)",
            r"type clash: Add wants one type for 'x' \(tensor\(float\)\) and 'i' \(tensor\(int64\)\)",
        ),
        (
            'y = BitShift<direction="LEFT">(x, x)',
            r"type clash: BitShift takes no tensor\(float\) as input 'X'",
        ),
        ("y = Gather(x, x)", r"type clash: Gather takes no tensor\(float\) as input 'indices' \('x'\)"),
        ("b = IsNaN(x) y = Neg(b)", r"type clash: Neg takes no tensor\(bool\)"),
    ],
)
def test_operators_against_their_schema(body: str, message: str) -> None:
    model = model_from_text(f"g (float[2] x, int64[2] i) => (y) {{ {body} }}")
    infer(model)
    fails(model, message)


def test_an_output_of_another_type_than_its_input() -> None:
    model = chain()
    model.graph[1].outputs[0].type = ir.TensorType(ir.DataType.INT64)
    fails(model, r"type clash: Relu wants one type for 'a' \(tensor\(float\)\) and 'b' \(tensor\(int64\)\)")


def test_sequences_have_types_too() -> None:
    model = model_from_text("g (seq(float[2]) x) => (y) { y = Relu(x) }")
    fails(model, r"type clash: Relu takes no seq\(tensor\(float\)\) as input 'X'")


def test_other_domains_must_be_allowed() -> None:
    model = model_from_text("g (float[2] x) => (float[2] y) { y = com.microsoft.FastGelu(x) }")
    fails(model, "unknown domain 'com.microsoft' of operator 'FastGelu'")
    check(model, allow_domains={"com.microsoft"})


def test_functions_of_the_model_are_known() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
    g (float[2] x) => (float[2] y) { y = own.Twice(x) }
    <domain: "own", opset_import: ["" : 21]> Twice (a) => (b) { b = Add(a, a) }"""
    check(model_from_text(text))


def test_a_broken_function_is_found() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
    g (float[2] x) => (float[2] y) { y = own.Twice(x) }
    <domain: "own", opset_import: ["" : 21]> Twice (a) => (b) { b = Add(a) }"""
    fails(model_from_text(text), "Add takes 2 inputs, not 1")


def test_an_optional_input_may_be_left_out_but_a_required_one_may_not() -> None:
    check(model_from_text("g (float[2] x, float m) => (float[2] y) { y = Clip(x, , m) }"))
    fails(model_from_text("g (float[2] x) => (float[2] y) { y = Add(, x) }"), "Add needs its input 'A'")


def test_the_neighbourhood_is_short_and_as_wide_as_asked() -> None:
    model = model_from_text(
        "g (float[2] x) => (float[2] y) { a = Relu(x) b = Neg(a) c = Neg(a) d = Neg(a) e = Neg(a) f = Neg(a) "
        "y = Sum(b, c, d, e, f) }"
    )
    near = neighbourhood(model.graph[0]).splitlines()
    assert near[0].startswith("  > a = Relu(x: float[2])") and near[-1] == "    ... and 1 more"
    far = neighbourhood(model.graph[1], radius=2)
    assert far.splitlines()[0].startswith("    a = Relu(x")


def test_the_cost_is_linear() -> None:
    """Ten times the nodes take at most some twenty times as long (a generous bound for a busy machine)."""
    seconds = []
    for nodes in (2_000, 20_000):
        model = ir_model.from_proto(builders.long_chain(nodes))
        check(model)
        started = time.perf_counter()
        check(model)
        seconds.append(time.perf_counter() - started)
    assert seconds[1] < 25 * seconds[0] + 0.2


def test_a_bool_condition_is_not_mistaken() -> None:
    node = helper.make_node("Where", ["x", "x", "x"], ["y"])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    proto = helper.make_model(
        helper.make_graph([node], "g", [x], [y]), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    fails(ir_model.from_proto(proto), r"type clash: Where takes no tensor\(float\) as input 'condition'")
