"""Models as text, in ONNX's own syntax (https://onnx.ai/onnx/repo-docs/Syntax.html)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.errors import SpecError
from graphopt.ir.load import from_proto
from graphopt.ir.outline import skeleton
from graphopt.ir.shapes import size_or_name

if TYPE_CHECKING:
    import onnx

SMALL_BYTES = 256


def to_text(model: ir.Model, *, small_bytes: int = SMALL_BYTES) -> str:
    """The model as text. Constants of more than ``small_bytes`` are left out and listed at the end as comments.

    Without such constants ``from_text`` reads the text back.
    """
    import onnx

    proto, left_out = skeleton(model, limit_bytes=small_bytes)
    inputs = {value.name for value in model.graph.inputs}
    kept = [info for info in proto.graph.input if info.name in inputs]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    del proto.graph.value_info[:]
    _forget_placeholders(proto.graph)
    notes = _leave_out_nodes(proto.graph, small_bytes)
    for name in left_out:
        tensor = model.graph.initializers[name].const_value
        if tensor is not None:
            notes.append(_note(name, tensor))
    return "\n".join([onnx.printer.to_text(proto), *sorted(notes)])


def _note(name: str, tensor: ir.TensorProtocol) -> str:
    shape = ",".join(map(str, tensor.shape.numpy()))
    return f"# {name}: {tensor.dtype.name.lower()}[{shape}], {tensor.nbytes:,} bytes left out"


def _leave_out_nodes(graph: onnx.GraphProto, small_bytes: int) -> list[str]:
    """Take large constants out that are nodes, or that lie in subgraphs; a note on each."""
    notes = []
    for node in list(graph.node):
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                notes += _leave_out_nodes(inner, small_bytes)
            if node.op_type == "Constant" and attribute.HasField("t"):
                tensor = ir.from_proto(attribute.t)
                if tensor.nbytes > small_bytes:
                    notes.append(_note(node.output[0], tensor))
                    graph.node.remove(node)
    for initializer in list(graph.initializer):
        tensor = ir.from_proto(initializer)
        if tensor.nbytes > small_bytes:
            notes.append(_note(initializer.name, tensor))
            graph.initializer.remove(initializer)
    return notes


def _forget_placeholders(graph: onnx.GraphProto) -> None:
    """Leave open what -1 or a name such as "None" stands for, which the syntax writes as ``?``."""
    for info in (*graph.input, *graph.output):
        for dim in info.type.tensor_type.shape.dim:
            named = ir.SymbolicDim(dim.dim_param or None)
            if size_or_name(dim.dim_value if dim.HasField("dim_value") else named) is None:
                dim.Clear()


def from_text(text: str) -> ir.Model:
    """A model from text.

    Raises:
        SpecError: It cannot be parsed, or its constants were left out.
    """
    import onnx

    body = "\n".join(line for line in text.splitlines() if not line.startswith("# "))
    if any(line.startswith("# ") and line.endswith("bytes left out") for line in text.splitlines()):
        raise SpecError(
            "the text was written without its large constants", hint="write it with a larger small_bytes"
        )
    try:
        proto = onnx.parser.parse_model(body)
    except onnx.parser.ParseError as error:
        raise SpecError(f"cannot parse the text of a model: {' '.join(str(error).split())[:300]}") from error
    return from_proto(proto, name="the text")
