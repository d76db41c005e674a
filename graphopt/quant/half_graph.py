"""float32 graph, nodes  ==>  the same graph with these nodes in half precision, or an emulation of it in float32.

Casts stand only where the two types meet, one for each tensor and direction.

ONNX Runtime's CPU provider has few kernels in float16: it computes in float32 and drops most of the rounding between
its own casts, so that an overflow would not be seen. The emulation is the float32 graph in which every tensor that
would be half is rounded by a pair of casts, which it does keep. Sums are in float32, as in the products of GPUs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.ir import check, facts, provenance
from graphopt.ir import model as ir_model
from graphopt.ir.facts import Array
from graphopt.quant.half_plan import EITHER, LARGEST, MASK_SLOT, half_slots, without_islands

MAKER = "float16"


def converted(
    model: ir.Model,
    chosen: Iterable[str],
    dtype: ir.DataType,
    magnitudes: Mapping[str, float],
    *,
    emulate: bool = False,
    keep_io: bool = True,
) -> ir.Model:
    """A copy of ``model`` in which these nodes compute in half precision.

    Args:
        emulate: Keep float32, and round what would be half.
        keep_io: Whether inputs and outputs keep their types.
    """
    copy = ir_model.clone(model)
    _Conversion(copy, without_islands(copy, chosen), dtype, magnitudes, emulate, keep_io or emulate).run()
    return copy


class _Conversion:
    def __init__(
        self, model: ir.Model, chosen: frozenset[str], dtype: ir.DataType, magnitudes: Mapping[str, float],
        emulate: bool, keep_io: bool,
    ) -> None:  # fmt: skip
        self.graph = model.graph
        self.opset = model.graph.opset_imports.get("", 0)
        self.nodes = [node for node in model.graph if node.name in chosen]
        self.dtype = dtype
        self.magnitudes = magnitudes
        self.emulate = emulate
        self.keep_io = keep_io
        self.halves: dict[ir.Value, ir.Value] = {}
        self.original: set[ir.Value] = set()

    def run(self) -> None:
        slots = {node: half_slots(node, self.opset, self.dtype) for node in self.nodes}
        made = [value for node in self.nodes for value in node.outputs if self._becomes_half(node, value)]
        uses = {value: list(value.uses()) for value in made}
        if not self.keep_io:
            for value in self.graph.inputs:
                fits = self.magnitudes.get(value.name or "", 0.0) <= LARGEST[self.dtype]
                if value.dtype == ir.DataType.FLOAT and fits:
                    made.append(value)
                    uses[value] = list(value.uses())
        for value in made:
            self._make_half(value, uses[value], slots)
        for node in self.nodes:
            for slot in slots[node]:
                source = node.inputs[slot]
                if source is not None and source.dtype == ir.DataType.FLOAT and source not in self.original:
                    node.replace_input_with(slot, self._half(source, slot == MASK_SLOT.get(node.op_type)))
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del self.graph.initializers[name]
        for node in list(self.graph):
            if (
                node.op_type == "Cast"
                and not node.outputs[0].uses()
                and not node.outputs[0].is_graph_output()
            ):
                self.graph.remove(node, safe=True)

    def _becomes_half(self, node: ir.Node, value: ir.Value) -> bool:
        if value.dtype != ir.DataType.FLOAT or not value.name or node.op_type == "Cast":
            return False
        schema = check.schema_of("", node.op_type, self.opset)
        assert schema is not None
        formal = schema.outputs[min(value.index() or 0, len(schema.outputs) - 1)]
        return f"tensor({self.dtype.name.lower()})" in formal.allowed

    def _make_half(
        self, value: ir.Value, uses: Sequence[Any], slots: Mapping[ir.Node, Sequence[int]]
    ) -> None:
        """Let ``value`` be half, and give float32 to those of its readers that need it."""
        if self.emulate:
            rounded = self._rounded(value)
            for use in uses:
                use.node.replace_input_with(use.idx, rounded)
            self._move_output(value, rounded)
            self.original.add(rounded)
            return
        value.type = ir.TensorType(self.dtype)
        self.halves[value] = value
        readers = [
            use for use in uses
            if use.node.op_type not in EITHER and use.idx not in slots.get(use.node, ())
        ]  # fmt: skip
        shown = value.is_graph_output() and self.keep_io
        if not readers and not shown:
            return
        full = self._cast(value, ir.DataType.FLOAT, f"{value.name}/float32")
        for use in readers:
            use.node.replace_input_with(use.idx, full)
        if shown:
            self._move_output(value, full)

    def _move_output(self, value: ir.Value, to: ir.Value) -> None:
        for index, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[index] = to
                value.name, to.name = f"{value.name}/inner", value.name

    def _half(self, value: ir.Value, is_mask: bool) -> ir.Value:
        """``value`` in half precision."""
        if value in self.halves:
            return self.halves[value]
        array = facts.constant(value)
        limit = LARGEST[self.dtype]
        if array is not None:
            self.halves[value] = self._constant(value, np.clip(array, -limit, limit))
            return self.halves[value]
        source = value
        if is_mask and not self.magnitudes.get(value.name or "", 0.0) <= limit:
            source = self._clipped(value, limit)
        self.halves[value] = (
            self._rounded(source)
            if self.emulate
            else self._cast(
                _before_cast(source), self.dtype, f"{source.name}/{self.dtype.name.lower()}", source
            )
        )
        return self.halves[value]

    def _rounded(self, value: ir.Value) -> ir.Value:
        half = self._cast(value, self.dtype, f"{value.name}/half")
        return self._cast(half, ir.DataType.FLOAT, f"{value.name}/rounded", half)

    def _cast(self, value: ir.Value, to: ir.DataType, name: str, after: ir.Value | None = None) -> ir.Value:
        node = ir.node("Cast", [value], {"to": to.value}, name=name)
        self._insert(node, after if after is not None else value)
        node.outputs[0].type = ir.TensorType(to)
        node.outputs[0].shape = None if value.shape is None else value.shape.copy()
        return node.outputs[0]

    def _clipped(self, value: ir.Value, limit: float) -> ir.Value:
        bounds = [
            ir_model.add_constant(
                self.graph, f"{value.name}/{side}", ir.tensor(np.asarray(number, np.float32))
            )
            for side, number in (("least", -limit), ("largest", limit))
        ]
        node = ir.node("Clip", [value, *bounds], name=f"{value.name}/clipped")
        self._insert(node, value)
        node.outputs[0].type = value.type
        node.outputs[0].shape = None if value.shape is None else value.shape.copy()
        return node.outputs[0]

    def _insert(self, node: ir.Node, after: ir.Value) -> None:
        node.outputs[0].name = node.name
        provenance.record(node, MAKER, ())
        producer = after.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], [node])
        else:
            self.graph.insert_after(producer, [node])

    def _constant(self, value: ir.Value, array: Array) -> ir.Value:
        half = array.astype(self.dtype.numpy())
        if self.emulate:
            return ir_model.add_constant(
                self.graph, f"{value.name}/rounded", ir.tensor(half.astype(np.float32))
            )
        return ir_model.add_constant(
            self.graph, f"{value.name}/{self.dtype.name.lower()}", ir.tensor(half, dtype=self.dtype)
        )


def _before_cast(value: ir.Value) -> ir.Value:
    """What a cast to float32 was made from, so that two casts do not follow each other."""
    producer = value.producer()
    if producer is None or producer.op_type != "Cast" or producer.domain:
        return value
    source = producer.inputs[0]
    exact = (ir.DataType.BOOL, ir.DataType.INT8, ir.DataType.UINT8)
    return source if source is not None and source.dtype in exact else value
