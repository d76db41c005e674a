"""Models as text, in ONNX's own syntax (https://onnx.ai/onnx/repo-docs/Syntax.html)."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.errors import SpecError
from graphopt.ir.load import from_proto
from graphopt.ir.outline import skeleton

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
    lines = [onnx.printer.to_text(proto)]
    for name in sorted(left_out):
        value = model.graph.initializers[name]
        tensor = value.const_value
        if tensor is not None:
            shape = ",".join(str(size) for size in tensor.shape.numpy())
            lines.append(f"# {name}: {tensor.dtype.name.lower()}[{shape}], {tensor.nbytes:,} bytes left out")
    return "\n".join(lines)


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
