"""Q(f(DQ(q)))  ==>  Gather(table, q), for a function f of one byte that is made of operators on elements

A byte has 256 values, so whatever is computed of it element by element is a table of 256 bytes: SiLU or HardSwish in
the pieces that quantization tools leave behind, with Q and DQ between them.
Forms: operators on elements, Q, DQ and such tables among them, whose operands are constants of one element and, by
however many ways, one tensor of uint8 or int8. Only what quantizes more than once or computes an exponential is worth
a table.
Exact: the table is what ONNX Runtime computes, operator by operator.

Refuses: constants of more axes than the tensor has, and subgraphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.rewrite import Builder, Numerics, Refuse, Rewrite

_SLOW = frozenset((
    "Elu", "Erf", "Exp", "Gelu", "HardSwish", "Log", "Mish", "Sigmoid", "Softplus", "Swish", "Tanh",
))  # fmt: skip
_ELEMENTWISE = _SLOW | frozenset((
    "Abs", "Add", "Cast", "Ceil", "Clip", "DequantizeLinear", "Div", "Floor", "HardSigmoid", "Identity", "LeakyRelu",
    "Max", "Min", "Mul", "Neg", "Pow", "QuantizeLinear", "Reciprocal", "Relu", "Round", "Selu", "Sqrt", "Sub",
))  # fmt: skip
_BYTES = (ir.DataType.UINT8, ir.DataType.INT8)
_VALUES = 256
_MOST_NODES = 64


class ByteTable(Rewrite):
    """A function of a byte, looked up."""

    name = "byte-table"
    roots = ("QuantizeLinear",)
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """What the table says of each byte."""
        out = node.outputs[0]
        if out.dtype not in _BYTES:
            return None
        found = _region(node)
        if found is None:
            return None
        source, nodes = found
        quantized = sum(entry.op_type == "QuantizeLinear" for entry in nodes)
        if quantized < 2 and not any(entry.op_type in _SLOW or _is_table(entry) for entry in nodes):
            return None
        if not facts.same_shape(source, out):
            raise Refuse("its constants have more axes than what it is computed of")
        is_signed = source.dtype == ir.DataType.INT8
        table = _evaluated(source, nodes, out)
        wide = build.op("Cast", source, like=out, dtype=ir.DataType.INT32, to=ir.DataType.INT32.value)
        place = build.op("Add", wide, np.array(128, np.int32), like=wide) if is_signed else wide
        return build.op("Gather", build.constant(table), place, like=out, axis=0)


def _region(root: ir.Node) -> tuple[ir.Value, list[ir.Node]] | None:
    """The one tensor of bytes that a node's output is a function of, and the nodes between, in order."""
    known: dict[ir.Value, frozenset[ir.Value] | None] = {}

    def sources(value: ir.Value) -> frozenset[ir.Value] | None:
        """Tensors of bytes that a value is a function of; None where it is not one of bytes alone."""
        if value not in known:
            producer = value.producer()
            found = None if producer is None or len(known) > _MOST_NODES else read(producer)
            is_byte = value.dtype in _BYTES
            known[value] = frozenset({value}) if is_byte and (found is None or len(found) != 1) else found
        return known[value]

    def read(node: ir.Node) -> frozenset[ir.Value] | None:
        operands = _operands(node)
        if operands is None:
            return None
        found: frozenset[ir.Value] = frozenset()
        for value in operands:
            more = sources(value)
            if more is None:
                return None
            found |= more
        return found

    found = read(root)
    if found is None or len(found) != 1:
        return None
    (source,) = found
    nodes: dict[ir.Node, None] = {}

    def collect(node: ir.Node) -> None:
        for value in _operands(node) or ():
            producer = value.producer()
            if value is not source and producer is not None and producer not in nodes:
                collect(producer)
        nodes[node] = None

    collect(root)
    return source, list(nodes)


def _operands(node: ir.Node) -> list[ir.Value] | None:
    """What a node computes its elements from, besides constants of one element; None where it is no such operator."""
    looks_up = _is_table(node)
    if node.domain or not (looks_up or node.op_type in _ELEMENTWISE):
        return None
    found = []
    for value in node.inputs[1:] if looks_up else node.inputs:
        if value is None:
            continue
        if not facts.is_constant(value):
            found.append(value)
        elif value.const_value is None or value.const_value.size != 1:
            return None
    return found


def _is_table(node: ir.Node) -> bool:
    """Whether it is one that was made here."""
    table = facts.static_dims(node.inputs[0]) if node.op_type == "Gather" else None
    return table == (_VALUES,) and facts.is_constant(node.inputs[0]) and node.outputs[0].dtype in _BYTES


def _evaluated(source: ir.Value, nodes: Sequence[ir.Node], out: ir.Value) -> facts.Array:
    """Of every byte, from the least.

    Raises:
        Refuse: ONNX Runtime does not compute it.
    """
    import onnx
    import onnxruntime

    graph = out.producer().graph  # type: ignore[union-attr]
    assert isinstance(graph, ir.Graph) and source.dtype is not None and out.dtype is not None
    if not graph.opset_imports:
        raise Refuse("it is part of a subgraph")
    model = onnx.ModelProto(ir_version=10)
    for domain, version in graph.opset_imports.items():
        model.opset_import.add(domain=domain, version=version)
    model.graph.name = "table"
    for node in nodes:
        model.graph.node.append(ir.serde.serialize_node(node))
        for value in node.inputs:
            if value is not None and facts.is_constant(value) and value.const_value is not None:
                known = ir.serde.serialize_tensor(value.const_value)
                known.name = value.name or ""
                if all(entry.name != known.name for entry in model.graph.initializer):
                    model.graph.initializer.append(known)
    kinds = (source.dtype.value, out.dtype.value)
    model.graph.input.append(onnx.helper.make_tensor_value_info(source.name or "", kinds[0], [_VALUES]))
    model.graph.output.append(onnx.helper.make_tensor_value_info(out.name or "", kinds[1], None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    limits = np.iinfo(source.dtype.numpy())
    every = np.arange(limits.min, limits.max + 1).astype(source.dtype.numpy())
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        (made,) = session.run(None, {source.name: every})
    except Exception as error:  # the runtime raises many types that share no base but this one
        raise Refuse(f"ONNX Runtime does not compute it: {str(error).splitlines()[0][:200]}") from error
    return np.asarray(made).reshape(-1)


__all__ = ["ByteTable"]
