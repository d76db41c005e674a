"""Evaluation of nodes whose inputs are constant, by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir.graphs import inner_nodes, subgraphs_of

# Below this a constant travels inside the model, since a few operators want their parameters that way; larger ones
# are fed, which copies nothing.
_SMALL_BYTES = 4096
_NATIVE = frozenset(
    {
        ir.DataType.BOOL,
        ir.DataType.DOUBLE,
        ir.DataType.FLOAT,
        ir.DataType.FLOAT16,
        ir.DataType.INT8,
        ir.DataType.INT16,
        ir.DataType.INT32,
        ir.DataType.INT64,
        ir.DataType.STRING,
        ir.DataType.UINT8,
        ir.DataType.UINT16,
        ir.DataType.UINT32,
        ir.DataType.UINT64,
    }
)


# What one element of text is reckoned as.
TEXT_BYTES = 16


def constant_nbytes(value: ir.Value) -> int:
    """Size of a constant in bytes, roughly so for text."""
    if value.dtype == ir.DataType.STRING:
        return TEXT_BYTES * (value.const_value.size if value.const_value is not None else 0)
    return facts.constant_nbytes(value)


class EvaluationError(Exception):
    """ONNX Runtime does not run these nodes."""


def breaks_range(value: ir.Value) -> bool:
    """Whether a Range reads ``value``, which is no scalar: that runs, but not with a constant.

    The check that Range's operands are scalars is made where they are known, that is, for constants.
    """
    if facts.rank(value) == 0:
        return False
    return any(use.node.op_type == "Range" and use.node.domain == "" for use in value.uses())


def is_native(value: ir.Value) -> bool:
    """Whether ONNX Runtime can give this tensor to NumPy."""
    return isinstance(value.type, ir.TensorType) and value.dtype in _NATIVE


def captured(node: ir.Node) -> list[ir.Value]:
    """The values of graphs around ``node`` that its subgraphs read."""
    own: set[ir.Graph] = set()
    for graph in subgraphs_of(node):
        own.add(graph)
        own.update(graph.subgraphs())
    if not own:
        return []
    found: dict[ir.Value, None] = {}
    for inner in inner_nodes(node):
        for value in inner.inputs:
            if value is not None and value.graph not in own:
                found[value] = None
    for graph in own:
        for value in graph.outputs:
            if value.graph not in own:
                found[value] = None
    return list(found)


def evaluate(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    wanted: Sequence[ir.Value],
    at_hand: Mapping[ir.Value, facts.Array],
) -> dict[ir.Value, facts.Array]:
    """The values ``wanted``, computed by one session over ``nodes``.

    Args:
        model: Where the nodes are from; gives the opsets.
        nodes: In topological order, from any of its graphs.
        at_hand: Contents of inputs of ``nodes`` that are no constants of the model.

    Raises:
        EvaluationError: The session cannot be made, or fails.
    """
    import onnx
    import onnxruntime

    proto = onnx.ModelProto(ir_version=model.ir_version)
    for domain, version in model.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    graph = proto.graph
    graph.name = "constants"
    feeds: dict[str, facts.Array] = {}
    made = {output for node in nodes for output in node.outputs}
    names: dict[str, ir.Value] = {}
    for node in nodes:
        graph.node.append(ir.serde.serialize_node(node))
        for value in (*node.inputs, *captured(node), *node.outputs):
            if value is None or not value.name or names.get(value.name) is value:
                continue
            if value.name in names:
                raise EvaluationError(f"two values are called {value.name!r}")
            names[value.name] = value
            if value not in made:
                _supply(graph, value, at_hand.get(value), feeds)
    for value in wanted:
        graph.output.append(ir.serde.serialize_value(value))

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        contents = session.run([value.name for value in wanted], feeds)
    except Exception as error:  # The runtime raises many types that share no base but this one.
        raise EvaluationError(str(error).splitlines()[0][:300]) from error
    return {
        value: np.asarray(
            content, dtype=None if value.dtype == ir.DataType.STRING else facts.numpy_dtype(value)
        )
        for value, content in zip(wanted, contents, strict=True)
    }


def _supply(
    graph: object, value: ir.Value, content: facts.Array | None, feeds: dict[str, facts.Array]
) -> None:
    """Make a constant an initializer of the session's graph, or feed it."""
    import onnx

    assert isinstance(graph, onnx.GraphProto) and value.name
    tensor = value.const_value
    if (
        content is None
        and tensor is not None
        and (constant_nbytes(value) <= _SMALL_BYTES or not is_native(value))
    ):
        initializer = ir.serde.serialize_tensor(tensor)
        initializer.name = value.name
        graph.initializer.append(initializer)
        return
    if content is None:
        content = facts.constant(value)
    if content is None:
        raise EvaluationError(f"{value.name!r} is not constant")
    entry = graph.input.add()
    entry.CopyFrom(onnx.helper.make_tensor_value_info(value.name, int(value.dtype or 0), content.shape))
    feeds[value.name] = content


def infer_outputs(model: ir.Model, node: ir.Node) -> bool:
    """Set types and shapes of the outputs of ``node`` by ONNX's shape inference; False where one stays unknown."""
    import onnx

    if node.domain != "" or subgraphs_of(node):
        return False
    opset = model.opset_imports.get("", 1)
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for value in node.inputs:
        if value is None or not value.name or value.type is None:
            continue
        types[value.name] = ir.serde.serialize_value(value).type
        if facts.is_constant(value) and constant_nbytes(value) <= _SMALL_BYTES:
            assert value.const_value is not None
            data[value.name] = ir.serde.serialize_tensor(value.const_value)
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
        found = onnx.shape_inference.infer_node_outputs(
            schema,
            ir.serde.serialize_node(node),
            types,
            data,
            opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in model.opset_imports.items()],
            ir_version=model.ir_version,
        )
    except Exception:  # No schema, or an inference function that rejects the operands: both mean unknown.
        return False
    for output in node.outputs:
        proto = found.get(output.name or "")
        if proto is None:
            continue
        output.type = output.type or ir.serde.deserialize_type_proto_for_type(proto)
        shape = ir.serde.deserialize_type_proto_for_shape(proto)
        if shape is not None and not output.is_graph_output():
            output.shape = shape
    return all(
        facts.static_dims(output) is not None and output.dtype is not None
        for output in node.outputs
        if output.name
    )
