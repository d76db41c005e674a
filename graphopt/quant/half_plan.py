"""Which nodes of a float32 graph can compute in half precision: kernels, schemas, and magnitudes that samples reach."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.ir import check, facts
from graphopt.ir import model as ir_model
from graphopt.ir.graphs import subgraphs_of
from graphopt.verify.session import Session

LARGEST: Mapping[ir.DataType, float] = {ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: 3.3895314e38}
"""The largest finite number of a type."""
_SMALLEST: Mapping[ir.DataType, float] = {ir.DataType.FLOAT16: 2.0**-14, ir.DataType.BFLOAT16: 2.0**-126}
_MARGIN = 0.5
_SUMS = frozenset(
    {
        *("ReduceL2", "ReduceSumSquare", "ReduceLogSumExp", "ReduceSum", "ReduceProd", "CumSum"),
        *("LpNormalization", "LpPool", "GlobalLpPool", "MeanVarianceNormalization"),
    }
)
"""Reductions whose inner sums may leave the range of float16 although what goes in and out does not."""
HEAVY = frozenset(
    {
        *("Conv", "ConvTranspose", "MatMul", "Gemm", "Attention", "Einsum", "LSTM", "GRU", "RNN"),
        "DequantizeLinear",
    }
)
"""Operators that gain enough to pay for casts around them."""
EITHER = frozenset({"Shape", "Size"})
"""Operators that do not look at the elements."""
MASK_SLOT: Mapping[str, int] = {"Attention": 3}
"""An input that is added before a softmax: beyond the range it means the same as at its end."""


@dataclass(frozen=True)
class Plan:
    """Which nodes compute in half precision.

    Attributes:
        chosen: Names of nodes of the main graph.
        reasons: Why others that read or write float32 do not, by name.
    """

    chosen: frozenset[str]
    reasons: Mapping[str, str]


def magnitudes_of(model: ir.Model, data: Iterable[Feeds], *, threads: int = 0) -> dict[str, float]:
    """The largest magnitude of each float32 tensor of the main graph over the samples; NaN counts as infinite."""
    copy = ir_model.clone(model)
    graph = copy.graph
    values = [*graph.inputs, *(output for node in graph for output in node.outputs)]
    names: dict[str, str] = {}
    nodes: list[ir.Node] = []
    shown: list[ir.Value] = []
    for index, value in enumerate(values):
        if value.dtype != ir.DataType.FLOAT or not value.name:
            continue
        absolute = ir.node("Abs", [value], name=f"graphopt_magnitude/{index}/abs")
        largest = ir.node(
            "ReduceMax", absolute.outputs, {"keepdims": 0}, name=f"graphopt_magnitude/{index}/max"
        )
        for node in (absolute, largest):
            node.outputs[0].name, node.outputs[0].type = node.name, ir.TensorType(ir.DataType.FLOAT)
        largest.outputs[0].shape = ir.Shape([])
        nodes += [absolute, largest]
        shown.append(largest.outputs[0])
        names[largest.name or ""] = value.name
    graph.extend(nodes)
    graph.outputs.extend(shown)
    session = Session(copy, optimize="all", threads=threads)
    found: dict[str, float] = {}
    for feeds in data:
        for output, array in session.run(feeds, list(names)).items():
            number = float(array)
            # The maximum of nothing is the least number.
            number = float("inf") if np.isnan(number) else max(number, 0.0)
            found[names[output]] = max(found.get(names[output], 0.0), number)
    return found


def plan_of(
    model: ir.Model,
    operators: frozenset[str],
    magnitudes: Mapping[str, float],
    dtype: ir.DataType,
    allowed: Callable[[ir.Node], str] = lambda node: "",
) -> Plan:
    """Which nodes of the main graph could compute in half precision, and why others cannot."""
    chosen: set[str] = set()
    reasons: dict[str, str] = {}
    opset = model.graph.opset_imports.get("", 0)
    for node in model.graph:
        if not _touches_float(node) or node.op_type in EITHER:
            continue
        slots = half_slots(node, opset, dtype)
        reason = allowed(node) or _why_not(node, slots, operators, magnitudes, dtype)
        if reason:
            reasons[node.name or ""] = reason
        elif slots:
            chosen.add(node.name or "")
    kept = without_islands(model, chosen)
    for name in chosen - kept:
        reasons[name] = "both sides of it are in float32: the casts would cost more than it gains"
    return Plan(kept, reasons)


def _touches_float(node: ir.Node) -> bool:
    return any(
        value is not None and value.dtype == ir.DataType.FLOAT for value in (*node.inputs, *node.outputs)
    )


def half_slots(node: ir.Node, opset: int, dtype: ir.DataType) -> tuple[int, ...]:
    """Inputs of a node that are float32 and may be half by its schema."""
    schema = None if node.domain else check.schema_of("", node.op_type, opset)
    if schema is None:
        return ()
    wanted = f"tensor({dtype.name.lower()})"
    found: list[int] = []
    for slot, value in enumerate(node.inputs):
        formal = schema.inputs[min(slot, len(schema.inputs) - 1)]
        if value is not None and value.dtype == ir.DataType.FLOAT and wanted in formal.allowed:
            found.append(slot)
    return tuple(found)


def _why_not(
    node: ir.Node,
    slots: Sequence[int],
    operators: frozenset[str],
    magnitudes: Mapping[str, float],
    dtype: ir.DataType,
) -> str:
    name = dtype.name.lower()
    if subgraphs_of(node):
        return "it holds a subgraph"
    if node.domain or node.op_type not in operators:
        return f"the target has no kernel of it in {name}"
    if not slots and node.op_type != "Cast":
        return f"its schema has no {name}"
    if node.op_type in _SUMS and dtype == ir.DataType.FLOAT16:
        return "its inner sums may overflow"
    if any(
        value.is_graph_output() and value not in node.graph.outputs for value in node.outputs if node.graph
    ):
        return "its result leaves through a subgraph"
    limit = LARGEST[dtype]
    for slot in slots:
        value = node.inputs[slot]
        array = facts.constant(value)
        if slot == MASK_SLOT.get(node.op_type):
            continue
        if array is not None:
            largest = float(np.abs(array).max(initial=0.0))
            if not largest <= limit:
                return f"the constant {value.name!r} holds {largest:.3g}"  # type: ignore[union-attr]
            if array.size == 1 and 0 < largest < _SMALLEST[dtype]:
                return f"the constant {largest:.3g} is too small"
        elif value is not None and not magnitudes.get(value.name or "", 0.0) <= limit * _MARGIN:
            return f"its input reaches {magnitudes[value.name or '']:.3g}"
    for value in node.outputs:
        if not magnitudes.get(value.name or "", 0.0) <= limit * _MARGIN:
            return f"its output reaches {magnitudes[value.name or '']:.3g}"
    return ""


def without_islands(model: ir.Model, chosen: Iterable[str]) -> frozenset[str]:
    """``chosen`` without light nodes that have float32 on all sides, where casts would be all that is gained."""
    kept = set(chosen)
    light = [node for node in model.graph if node.name in kept and node.op_type not in HEAVY]
    changed = True
    while changed:
        changed = False
        for node in light:
            if node.name not in kept:
                continue
            before = (value.producer() for value in node.inputs if value is not None)
            after = (use.node for value in node.outputs for use in value.uses())
            if not any(other is not None and other.name in kept for other in itertools.chain(before, after)):
                kept.discard(node.name)
                changed = True
    return frozenset(kept)
