"""The skeleton of a model: a small protobuf message for ONNX's C++ functions."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.ir.graphs import subgraphs_of_attribute

if TYPE_CHECKING:
    import onnx


def skeleton(model: ir.Model, limit_bytes: int = 1024) -> tuple[onnx.ModelProto, frozenset[str]]:
    """The model without its large weights, for ONNX's C++ functions.

    Documentation and metadata are left out as well.

    Args:
        limit_bytes: Initializers of more bytes become inputs of the same name, type and shape.

    Returns:
        The message, and the names of the initializers that became inputs. ``model`` stays as it was.
    """
    import onnx

    left_out = {
        name
        for name, value in model.graph.initializers.items()
        if value.const_value is None or value.const_value.nbytes > limit_bytes
    }
    proto = onnx.ModelProto(ir_version=model.ir_version or 8)
    for domain, version in model.graph.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    for function in model.functions.values():
        proto.functions.append(ir.to_proto(function))
    _Outline().graph(model.graph, proto.graph, left_out)
    return proto, frozenset(left_out)


class _Outline:
    """Writes graphs into messages: operators, names, types, shapes and small constants."""

    def __init__(self) -> None:
        self._types: dict[tuple[object, ...], onnx.TypeProto] = {}

    def graph(self, graph: ir.Graph, proto: onnx.GraphProto, left_out: Container[str]) -> None:
        proto.name = graph.name or "graph"
        given = set(graph.inputs)
        for value in graph.inputs:
            self.value(value, proto.input.add())
        for name, value in graph.initializers.items():
            if name in left_out:
                if value not in given:
                    self.value(_as_input(value), proto.input.add())
            else:
                _add_tensor(value, proto)
        for node in graph:
            message = proto.node.add()
            message.op_type = node.op_type
            if node.domain:
                message.domain = node.domain
            if node.overload:
                message.overload = node.overload
            message.name = node.name or ""
            message.input.extend([value.name or "" if value is not None else "" for value in node.inputs])
            message.output.extend([value.name or "" for value in node.outputs])
            if node.attributes:
                self.attributes(node, message)
            for value in node.outputs:
                if value.type is not None and value.name and not value.is_graph_output():
                    self.value(value, proto.value_info.add())
        for value in graph.outputs:
            self.value(value, proto.output.add())

    def attributes(self, node: ir.Node, message: onnx.NodeProto) -> None:
        for attribute in node.attributes.values():
            target = message.attribute.add()
            inner = subgraphs_of_attribute(attribute)
            if not inner:
                target.CopyFrom(_attribute_message(attribute))
                continue
            target.name = attribute.name
            if attribute.type == ir.AttributeType.GRAPH:
                target.type = target.GRAPH
                self.graph(inner[0], target.g, ())
            else:
                target.type = target.GRAPHS
                for graph in inner:
                    self.graph(graph, target.graphs.add(), ())

    def value(self, value: ir.Value, proto: onnx.ValueInfoProto) -> None:
        proto.name = value.name or ""
        if value.type is None:
            return
        key = (value.type, None if value.shape is None else value.shape.dims)
        known = self._types.get(key)
        if known is None:
            message = ir.to_proto(ir.Value(name="v", type=value.type, shape=value.shape))
            known = self._types[key] = message.type
        proto.type.CopyFrom(known)


def _attribute_message(attribute: ir.Attr) -> onnx.AttributeProto:
    if attribute.is_ref():
        return ir.serde.serialize_reference_attribute(attribute)
    return ir.serde.serialize_attribute(attribute)


def _add_tensor(value: ir.Value, proto: onnx.GraphProto) -> None:
    tensor = value.const_value
    if tensor is None:
        return
    if tensor.dtype == ir.DataType.STRING:
        message = ir.serde.serialize_tensor(tensor)
        message.name = value.name or ""
    else:
        message = tensor_header(value)
        message.raw_data = tensor.tobytes()
    proto.initializer.append(message)


def _as_input(value: ir.Value) -> ir.Value:
    tensor = value.const_value
    if tensor is None:
        return ir.Value(name=value.name, type=value.type, shape=value.shape)
    return ir.Value(name=value.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()))


def tensor_header(value: ir.Value) -> onnx.TensorProto:
    """A tensor message without its content."""
    import onnx

    tensor = value.const_value
    assert tensor is not None and value.name is not None
    return onnx.TensorProto(name=value.name, data_type=tensor.dtype.value, dims=tensor.shape.numpy())
