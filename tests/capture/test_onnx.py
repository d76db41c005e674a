"""ONNX models brought into the internal form: the form itself, and that nothing the user sees changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from graphopt.capture import capture
from graphopt.capture.upgrade import INTERNAL_OPSET
from graphopt.errors import InvalidGraphError
from graphopt.ir import facts, kernels, opset
from graphopt.ir import model as ir_model
from graphopt.ir.check import check
from graphopt.ir.hash import content_hash
from graphopt.models import builders
from graphopt.testing import assert_same_numbers, model_from_text, random_feeds, run


def proto_of(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(text)


HEAD = '<ir_version: 10, opset_import: ["" : 21]> '

BUILT: dict[str, Callable[[], onnx.ModelProto]] = {
    "conv_net": builders.conv_net,
    "mlp": builders.mlp,
    "transformer_block": builders.transformer_block,
    "dynamic_net": builders.dynamic_net,
}


@pytest.mark.parametrize("name", BUILT)
def test_the_internal_form(name: str) -> None:
    proto = BUILT[name]()
    before = proto.SerializeToString()
    captured = capture(proto)
    assert proto.SerializeToString() == before
    model = captured.model
    assert (captured.kind, captured.source_opset, captured.original) == ("onnx", 21, None)
    ends = kernels.preferred_opsets()
    newest = min(ends.get(node.op_type, INTERNAL_OPSET) for node in model.graph.all_nodes())
    assert model.graph.opset_imports[""] == newest and model.ir_version == opset.limits().ir_version
    assert not model.functions
    assert "Constant" not in ir_model.op_counts(model)
    names = [value.name for node in model.graph.all_nodes() for value in node.outputs]
    assert len(set(names)) == len(names) and all(names)
    nodes = [node.name for node in model.graph.all_nodes()]
    assert len(set(nodes)) == len(nodes) and all(nodes)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            assert value.dtype is not None and value.shape is not None, value
    check(model)
    assert_same_numbers(
        captured.original_model, model, exact=True, feeds=random_feeds(model, {"s": 6, "n": 2})
    )


def test_weights_are_shared_between_the_two_models() -> None:
    captured = capture(builders.mlp())
    for name, value in captured.original_model.graph.initializers.items():
        assert captured.model.graph.initializers[name].const_value is value.const_value


def test_stack_traces_of_the_exporter_are_left_behind() -> None:
    model = model_from_text(
        "g (bool c, float[2] x) => (float[2] y) "
        "{ y = If (c) <then_branch = t () => (a) { a = Relu(x) }, else_branch = e () => (b) { b = Abs(x) }> }"
    )
    for node in model.graph.all_nodes():
        node.metadata_props.update({"pkg.torch.onnx.stack_trace": "File ...", "namespace": "Net"})
    found = capture(model)
    kept = [set(node.metadata_props) for node in found.model.graph.all_nodes()]
    assert kept == [{"namespace"}] * 3
    assert all(len(node.metadata_props) == 2 for node in found.original_model.graph.all_nodes())


def test_the_original_keeps_its_form() -> None:
    captured = capture(
        proto_of(
            '<ir_version: 8, opset_import: ["" : 11]> g (float[2] x) => (y) { y = Unsqueeze<axes=[0]>(x) }'
        )
    )
    original = captured.original_model
    assert original.graph.opset_imports[""] == 11 and captured.source_opset == 11
    assert "axes" in original.graph[0].attributes
    assert "axes" not in captured.model.graph[0].attributes


def test_capture_is_deterministic() -> None:
    first, second = (capture(builders.branch_and_loop()).model for _ in range(2))
    assert content_hash(first) == content_hash(second)
    assert [node.name for node in first.graph.all_nodes()] == [node.name for node in second.graph.all_nodes()]
    assert list(first.graph.initializers) == list(second.graph.initializers)


def test_capturing_the_internal_form_again_changes_nothing() -> None:
    once = capture(builders.transformer_block()).model
    assert content_hash(capture(once).model) == content_hash(once)


def test_a_file_is_named_after_its_stem(tmp_path: Path) -> None:
    path = ir_model.save(ir_model.from_proto(builders.mlp()), tmp_path / "my-net.onnx")
    captured = capture(str(path))
    assert (captured.name, captured.original) == ("my-net", path)


def test_a_model_of_the_ir_is_not_changed() -> None:
    model = ir_model.from_proto(builders.branch_and_loop())
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    capture(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_an_unsorted_model_of_the_ir() -> None:
    model = model_from_text("g (float[2] x) => (float[2] y) { a = Relu(x) y = Neg(a) }")
    first = model.graph[0]
    model.graph.remove(first)
    model.graph.append(first)
    assert [node.op_type for node in capture(model).model.graph] == ["Relu", "Neg"]
    assert [node.op_type for node in model.graph] == ["Neg", "Relu"]


# --- Constants --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ({"value_float": 1.5}, np.float32(1.5)),
        ({"value_floats": [1.0, 2.0]}, np.array([1, 2], np.float32)),
        ({"value_int": 3}, np.int64(3)),
        ({"value_ints": [3, 4]}, np.array([3, 4])),
        ({"value": onnx.numpy_helper.from_array(np.array([[1.0]]))}, np.array([[1.0]])),
    ],
)
def test_constants_become_initializers(attribute: dict[str, object], expected: np.ndarray) -> None:
    nodes = [helper.make_node("Constant", [], ["c"], **attribute), helper.make_node("Identity", ["c"], ["d"])]
    nodes.append(helper.make_node("Shape", ["d"], ["y"]))
    y = helper.make_tensor_value_info("y", TensorProto.INT64, None)
    graph = helper.make_graph(nodes, "g", [], [y])
    model = capture(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    ).model
    (shape,) = model.graph
    value = facts.constant(shape.inputs[0])
    assert value is not None and value.dtype == np.asarray(expected).dtype
    np.testing.assert_array_equal(value, expected)


def test_string_constants() -> None:
    node = helper.make_node("Constant", [], ["y"], value_strings=["a", "é"])
    graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", TensorProto.STRING, [2])])
    model = capture(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    ).model
    assert run(model, {})["y"].tolist() == ["a", "é"]


def test_sparse_constants_become_dense() -> None:
    values = helper.make_tensor("v", 1, [1], [5.0])
    indices = onnx.numpy_helper.from_array(np.array([[1, 0]]), "i")
    sparse = helper.make_sparse_tensor(values, indices, [2, 2])
    nodes = [
        helper.make_node("Constant", [], ["c"], sparse_value=sparse),
        helper.make_node("Neg", ["c"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [], [helper.make_tensor_value_info("y", 1, [2, 2])])
    model = capture(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    ).model
    assert run(model, {})["y"].tolist() == [[0, 0], [-5, 0]]


def test_constants_of_branches_are_lifted_to_the_main_graph() -> None:
    captured = capture(builders.branch_and_loop())
    graphs = ir_model.with_subgraphs(captured.model.graph)
    assert len(graphs) == 4 and all(not graph.initializers for graph in graphs[1:])
    assert {"then_c", "else_c"} <= set(captured.model.graph.initializers)
    for condition in (True, False):
        feeds = {"x": np.arange(3, dtype=np.float32), "c": np.array(condition), "k": np.array(2)}
        assert_same_numbers(captured.original_model, captured.model, feeds, exact=True)


def test_a_constant_that_a_branch_returns() -> None:
    text = (
        HEAD
        + """g (bool c) => (float y) {
      y = If (c) <then_branch = t () => (float p) { p = Constant<value_float=1.0>() },
                  else_branch = e () => (float q) { q = Constant<value_float=2.0>() }>
    }"""
    )
    model = capture(proto_of(text)).model
    for condition in (True, False):
        assert run(model, {"c": np.array(condition)})["y"] == (1 if condition else 2)


def test_an_outer_value_that_a_branch_returns() -> None:
    """Not valid by the letter, yet exporters have written it; a copy in the branch makes it so."""
    text = (
        HEAD
        + """g (bool c, float[2] x) => (float[2] y) {
      a = Relu(x)
      y = If (c) <then_branch = t () => (float[2] a) { }, else_branch = e () => (float[2] q) { q = Neg(a) }>
    }"""
    )
    captured = capture(proto_of(text))
    feeds = {"c": np.array(True), "x": np.array([1, -1], np.float32)}
    assert run(captured.model, feeds)["y"].tolist() == [1, 0]
    assert run(captured.original_model, feeds)["y"].tolist() == [1, 0]


# --- The interface ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outputs", "body"),
    [
        ("float[2] y, float[2] x", "y = Relu(x)"),
        ("float[2] y, float[2] w", "y = Add(x, w)"),
        ("float[2] w", "y = Add(x, w)"),
        ("float[2] x", "y = Add(x, w)"),
        ("float[2] y, float[2] y", "y = Add(x, w)"),
        ("float[2] y, float[2] a", "a = Add(x, w) y = Neg(a)"),
        ("float[2] k", "k = Constant<value_floats=[1.0, 2.0]>() y = Add(x, w)"),
        ("float[2] z, float[2] y", "y = Add(x, w) z = Identity(x)"),
    ],
)
def test_names_and_order_of_outputs_stay(outputs: str, body: str) -> None:
    proto = proto_of(HEAD + f"g (float[2] x) => ({outputs}) <float[2] w = {{1, 2}}> {{ {body} }}")
    captured = capture(proto)
    wanted = [value.name for value in proto.graph.output]
    for model in (captured.model, captured.original_model):
        assert [value.name for value in model.graph.outputs] == wanted
        assert [value.name for value in model.graph.inputs] == ["x"]
    feeds = {"x": np.array([3, 4], np.float32)}
    if len(set(wanted)) == len(wanted):
        assert_same_numbers(ir.from_proto(proto), captured.model, feeds, exact=True)
    assert all(not value.is_initializer() for value in captured.model.graph.outputs)


@pytest.mark.parametrize("ir_version", [3, 10])
def test_initializers_that_are_also_inputs_become_constants(ir_version: int) -> None:
    text = f'<ir_version: {ir_version}, opset_import: ["" : 9]> '
    proto = proto_of(text + "g (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }")
    proto.graph.initializer.append(helper.make_tensor("w", 1, [2], [1.0, 2.0]))
    captured = capture(proto)
    assert [value.name for value in captured.model.graph.inputs] == ["x"]
    assert [value.name for value in captured.original_model.graph.inputs] == ["x"]
    assert facts.is_constant(captured.model.graph.initializers["w"])
    warning = "inputs with a default value are treated as constants: 'w'"
    assert captured.warnings == ([warning] if ir_version >= 4 else [])


def test_unnamed_dimensions_are_not_equal() -> None:
    """Exporters write the name "None", or the size -1, for what they do not know."""
    proto = proto_of(HEAD + "g (float[None, 2] x, float[None, 2] z) => (float[None, 2] y) { y = Add(x, z) }")
    proto.graph.input[1].type.tensor_type.shape.dim[0].Clear()
    proto.graph.input[1].type.tensor_type.shape.dim[0].dim_value = -1
    x, z = capture(proto).model.graph.inputs
    assert not facts.same_shape(x, z) and not facts.same_shape(x, x)
    assert facts.dims(x) == facts.dims(z) == (None, 2)


# --- Names and order --------------------------------------------------------------------------------------------


def test_unsorted_nodes_are_sorted() -> None:
    nodes = [helper.make_node("Neg", ["a"], ["y"], "second"), helper.make_node("Relu", ["x"], ["a"], "first")]
    x, y = (helper.make_tensor_value_info(name, 1, [2]) for name in "xy")
    proto = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    captured = capture(proto)
    assert [node.name for node in captured.model.graph] == ["first", "second"]
    assert [node.name for node in captured.original_model.graph] == ["first", "second"]


def test_nodes_of_one_name_get_names_of_their_own() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"], "n"), helper.make_node("Neg", ["a"], ["y"], "n")]
    x, y = (helper.make_tensor_value_info(name, 1, [2]) for name in "xy")
    proto = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    captured = capture(proto)
    assert [node.name for node in captured.model.graph] == ["n", "n_1"]
    run(captured.original_model, {"x": np.zeros(2, np.float32)})  # ONNX Runtime refuses equal names


def test_nodes_without_a_name_are_named_after_their_output() -> None:
    captured = capture(proto_of(HEAD + "g (float[2] x) => (float[2] y) { a = Relu(x) y = Neg(a) }"))
    assert [node.name for node in captured.model.graph] == ["a", "y"]


def test_values_of_sibling_branches_get_names_of_their_own() -> None:
    text = (
        HEAD
        + """g (bool c, float[2] x) => (float[2] y) {
      y = If (c) <then_branch = t () => (float[2] p) { v = Relu(x) p = Neg(v) },
                  else_branch = e () => (float[2] p) { v = Neg(x) p = Relu(v) }>
    }"""
    )
    captured = capture(proto_of(text))
    names = [value.name for node in captured.model.graph.all_nodes() for value in node.outputs]
    assert len(set(names)) == len(names) == 5
    for condition in (True, False):
        feeds = {"c": np.array(condition), "x": np.array([1, -2], np.float32)}
        assert_same_numbers(captured.original_model, captured.model, feeds, exact=True)


def test_an_inner_value_with_the_name_of_an_output() -> None:
    """torch's exporter wrote such models: the caller's output name was already that of an inner value."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2]))
    first, second = ir.node("Relu", [x]), ir.node("Neg", [])
    second.resize_inputs(1)
    second.replace_input_with(0, first.outputs[0])
    first.outputs[0].name = second.outputs[0].name = "out"
    graph = ir.Graph([x], [second.outputs[0]], nodes=[first, second], opset_imports={"": 21}, name="g")
    captured = capture(ir.Model(graph, ir_version=10))
    for model in (captured.model, captured.original_model):
        assert [value.name for value in model.graph.outputs] == ["out"]
        assert run(model, {"x": np.array([1, -1], np.float32)})["out"].tolist() == [-1, 0]


def test_the_default_domain_by_its_long_name() -> None:
    proto = proto_of(
        '<ir_version: 10, opset_import: ["ai.onnx" : 21]> g (float[2] x) => (float[2] y) { y = ai.onnx.Relu(x) }'
    )
    proto.graph.node[0].domain = "ai.onnx"
    model = capture(proto).model
    assert [node.domain for node in model.graph] == [""] and model.graph.opset_imports[""] == INTERNAL_OPSET


# --- Functions --------------------------------------------------------------------------------------------------


def test_functions_are_inlined() -> None:
    text = (
        '<ir_version: 10, opset_import: ["" : 21, "own" : 1]> '
        + """
    g (float[2] x) => (float[2] y) { a = own.Scale<by=3.0>(x) y = own.Scale<by=2.0>(a) }
    <domain: "own", opset_import: ["" : 21]>
    Scale <by> (v) => (r) { k = Constant<value_float: float = @by>() r = Mul(v, k) }"""
    )
    captured = capture(proto_of(text))
    assert not captured.model.functions and captured.original_model.functions
    assert ir_model.op_counts(captured.model) == {"Mul": 2}
    assert_same_numbers(
        captured.original_model, captured.model, {"x": np.array([1, 2], np.float32)}, exact=True
    )


def test_functions_of_another_opset_are_upgraded_from_theirs() -> None:
    text = (
        '<ir_version: 10, opset_import: ["" : 21, "own" : 1]> '
        + """
    g (float[2, 3] x) => (float[2, 1, 3] y) { y = own.Widen(x) }
    <domain: "own", opset_import: ["" : 11]> Widen (v) => (r) { r = Unsqueeze<axes=[1]>(v) }"""
    )
    model = capture(proto_of(text)).model
    assert ir_model.op_counts(model) == {"Unsqueeze": 1}
    assert run(model, {"x": np.zeros((2, 3), np.float32)})["y"].shape == (2, 1, 3)


def test_operators_of_the_runtime_stay_as_they_are() -> None:
    text = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]> '
    captured = capture(proto_of(text + "g (float[2] x) => (float[2] y) { y = com.microsoft.FastGelu(x) }"))
    assert ir_model.op_counts(captured.model) == {"com.microsoft.FastGelu": 1}


def test_input_shapes_specialise_the_model_and_not_the_original() -> None:
    captured = capture(builders.mlp(), input_shapes={"x": (4, 16)})
    assert str(captured.model.graph.outputs[0].shape) == "[4,4]"
    assert str(captured.original_model.graph.inputs[0].shape) == "[n,16]"


# --- Random graphs ----------------------------------------------------------------------------------------------


def random_node(kind: int, choice: int, opset: int, values: list[str], output: str) -> onnx.NodeProto:
    """An operator in the form of ``opset``; several changed form between opsets."""
    source, other = values[choice % len(values)], values[(choice * 7) % len(values)]
    made: tuple[str, list[str], dict[str, object]]
    if kind == 0:
        made = "Relu", [source], {}
    elif kind == 1:
        made = "Softmax", [source], {"axis": choice % 2}
    elif kind == 2:
        made = ("ReduceSum", [source], {"axes": [1]}) if opset < 13 else ("ReduceSum", [source, "axes"], {})
    elif kind == 3:
        made = ("ReduceMean", [source], {"axes": [0]}) if opset < 18 else ("ReduceMean", [source, "axes"], {})
    elif kind == 4:
        made = "Add", [source, other], {}
    elif kind == 5:
        made = ("Clip", [source], {"min": -0.5}) if opset < 11 else ("Clip", [source, "low"], {})
    elif kind == 6:
        made = "Identity", ["row"], {}
    else:
        made = "Dropout", [source], {}
    return helper.make_node(made[0], made[1], [output], **made[2])


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    opset=st.sampled_from([9, 11, 12, 13, 17, 20]),
    steps=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 100)), min_size=1, max_size=8),
    names=st.booleans(),
)
def test_random_models_compute_the_same(opset: int, steps: list[tuple[int, int]], names: bool) -> None:
    """Nodes in reverse order, repeated names, operators whose form changed between opsets."""
    values, nodes = ["x"], []
    for index, (kind, choice) in enumerate(steps):
        nodes.append(random_node(kind, choice, opset, values, f"v{index}"))
        values.append(f"v{index}")
    constants = [
        onnx.numpy_helper.from_array(np.array([1]), "axes"),
        onnx.numpy_helper.from_array(np.array(-0.5, np.float32), "low"),
        onnx.numpy_helper.from_array(np.array([[1, 2, 3, 4]], np.float32), "row"),
    ]
    outputs = [helper.make_tensor_value_info(name, 1, None) for name in values[1:]]
    x = helper.make_tensor_value_info("x", 1, [3, 4])
    opsets = [helper.make_opsetid("", opset)]
    ordered = helper.make_graph(nodes, "g", [x], outputs, constants)
    plain = helper.make_model(ordered, opset_imports=opsets, ir_version=8)
    shuffled = onnx.ModelProto()
    shuffled.CopyFrom(plain)
    del shuffled.graph.node[:]
    shuffled.graph.node.extend(nodes[::-1])
    for node in shuffled.graph.node:
        node.name = "same" if names else ""
    captured = capture(shuffled)
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}
    assert_same_numbers(ir.from_proto(plain), captured.model, feeds, rtol=1e-6)
    assert_same_numbers(captured.original_model, captured.model, feeds, rtol=1e-6)


def test_a_cycle_is_named() -> None:
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"], "one"),
        helper.make_node("Relu", ["a"], ["b"], "two"),
        helper.make_node("Neg", ["b"], ["y"], "three"),
    ]
    x, y = (helper.make_tensor_value_info(name, 1, [2]) for name in "xy")
    proto = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    with pytest.raises(
        InvalidGraphError, match=r"the graph has a cycle: (one \(Add\) -> two|two \(Relu\) -> one)"
    ):
        capture(proto)


def test_names_of_dimensions_in_a_function_are_of_one_call() -> None:
    """Of two calls with different lengths, what is within has one name in the file."""
    function = helper.make_function(
        "own",
        "Front",
        ["a"],
        ["b"],
        [
            helper.make_node("Constant", [], ["s"], value_ints=[0]),
            helper.make_node("Constant", [], ["e"], value_ints=[-1]),
            helper.make_node("Slice", ["a", "s", "e"], ["h"]),
            helper.make_node("Relu", ["h"], ["b"]),
        ],
        [helper.make_opsetid("", 18)],
        value_info=[helper.make_tensor_value_info("h", TensorProto.FLOAT, ["N"])],
    )
    nodes = [helper.make_node("Front", [x], [y], domain="own") for x, y in (("x", "p"), ("z", "q"))]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [dim])
            for name, dim in (("x", "S"), ("z", "T"))
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in ("p", "q")],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    model = capture(
        helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=10)
    ).model
    first, second = (node.outputs[0] for node in model.graph if node.op_type == "Slice")
    assert not facts.same_shape(first, second)


def test_a_declared_size_that_the_inputs_contradict() -> None:
    """As exporters leave the length of their example within; what inference cannot tell stays."""
    text = (
        HEAD
        + """g (float[L] x, int64[1] k) => (float[m] y) <float[10] h, float[7] r> {
        h = Relu(x) r = Reshape(h, k) y = Abs(r) }"""
    )
    model = capture(proto_of(text)).model
    shapes = {node.op_type: str(node.outputs[0].shape) for node in model.graph}
    assert shapes == {"Relu": "[L]", "Reshape": "[7]", "Abs": "[7]"}
