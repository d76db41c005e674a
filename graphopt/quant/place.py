"""float graph, units, ranges  ==>  QuantizeLinear and DequantizeLinear where the integer kernels need them.

The integers of a tensor are made once, next to its producer. A unit that writes integers gives them to all its readers;
of a float tensor only the units on integers read the quantized form. Weights are symmetric, one scale for each output
channel; a bias is int32 at the product of both scales where the kernel wants it so (ONNX specification, QLinearConv).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts, provenance
from graphopt.ir import model as ir_model
from graphopt.ir.facts import Array
from graphopt.ir.graphs import free_name
from graphopt.quant.kernels import (
    IntegerKernels,
    activation_slots,
    bias_of,
    channel_axis,
    weight_of,
)
from graphopt.quant.ranges import Affine, Range, affine, quantize_weight, weight_scales
from graphopt.quant.units import Unit, units_of

MAKER = "quantize"
QUANTIZE_SUFFIX = "/quantize"
_INT32 = 2**31 - 1


@dataclass(frozen=True)
class Weights:
    """Integer weights and corrections that were found by looking at data, instead of rounding to nearest.

    Attributes:
        rounded: int8 weight by node, of the shape of the float weight.
        scales: float32 scales by node, as from :func:`graphopt.quant.ranges.weight_scales`.
        bias: What is to be added to the float bias, by node, one number for each output channel.
    """

    rounded: Mapping[str, Array] = field(default_factory=dict)
    scales: Mapping[str, Array] = field(default_factory=dict)
    bias: Mapping[str, Array] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was found yet."""
        return not (self.rounded or self.scales or self.bias)


def place(
    model: ir.Model,
    chosen: frozenset[str],
    ranges: Mapping[str, Range],
    kernels: IntegerKernels,
    weights: Weights | None = None,
) -> list[Unit]:
    """Put the units named ``chosen`` on integers, in place.

    Args:
        chosen: Names of units, as :func:`graphopt.quant.units.units_of` finds them in ``model``.
        ranges: Of every tensor that such a unit reads or writes, by name.

    Returns:
        The units that were put on integers, in topological order.
    """
    units = [unit for unit in units_of(model, kernels)[0] if unit.name in chosen]
    _Placement(model, units, ranges, kernels, weights or Weights()).run()
    return units


def tensors_to_observe(units: Sequence[Unit]) -> list[str]:
    """Names of the tensors whose ranges :func:`place` may need, in graph order."""
    names: dict[str, None] = {}
    for unit in units:
        for value in (*unit.inputs, unit.output):
            if value.name:
                names.setdefault(value.name)
    return list(names)


class _Placement:
    def __init__(
        self,
        model: ir.Model,
        units: Sequence[Unit],
        ranges: Mapping[str, Range],
        kernels: IntegerKernels,
        weights: Weights,
    ) -> None:
        self.graph = model.graph
        self.units = units
        self.ranges = ranges
        self.kernels = kernels
        self.weights = weights
        self.made_by = {unit.output: unit for unit in units}
        self.affines: dict[ir.Value, Affine] = {}
        self.replaced: set[ir.Value] = set()
        self.pairs: dict[ir.Value, ir.Value] = {}
        self.dequantized: dict[tuple[ir.Value, bytes], ir.Value] = {}

    def run(self) -> None:
        readers: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
        for unit in self.units:
            for slot in activation_slots(unit.node):
                value = unit.node.inputs[slot]
                assert value is not None
                readers.setdefault(value, []).append((unit.node, slot))
            self._of(unit.output) if self._writes_integers(unit) else None
        for unit in self.units:
            if unit.kind == "compute":
                self._quantize_weight(unit)
        for value, uses in readers.items():
            if value in self.made_by and self._writes_integers(self.made_by[value]):
                continue
            pair = self._pair(value)
            for node, slot in uses:
                node.replace_input_with(slot, pair)
        for unit in self.units:
            if self._writes_integers(unit):
                self._write_integers(unit.output)
        self._drop_unused()

    def _drop_unused(self) -> None:
        """Forget float weights and biases that nothing reads any more."""
        for value in self.replaced:
            assert value.name is not None
            if value.name in self.graph.initializers and not value.uses() and not value.is_graph_output():
                del self.graph.initializers[value.name]

    def _writes_integers(self, unit: Unit) -> bool:
        return unit.kind != "compute" or unit.node.op_type in self.kernels.writes_integers

    def _of(self, value: ir.Value) -> Affine:
        """Scale and zero point of a tensor; what only moves elements keeps those of its input."""
        if value not in self.affines:
            unit = self.made_by.get(value)
            if unit is not None and unit.kind == "passes":
                self.affines[value] = self._of(unit.inputs[0])
            else:
                assert value.name is not None
                self.affines[value] = affine(
                    self.ranges[value.name], self.kernels.limits, symmetric=self.kernels.symmetric
                )
        return self.affines[value]

    def _pair(self, value: ir.Value) -> ir.Value:
        """``value`` quantized and dequantized, next to its producer."""
        if value in self.pairs:
            return self.pairs[value]
        found = self._of(value)
        scale = self._constant(f"{value.name}_scale", np.asarray(found.scale, np.float32))
        zero = self._constant(
            f"{value.name}_zero_point", np.asarray(found.zero_point, self.kernels.activation.numpy())
        )
        quantize = ir.node("QuantizeLinear", [value, scale, zero], name=f"{value.name}{QUANTIZE_SUFFIX}")
        dequantize = ir.node(
            "DequantizeLinear", [quantize.outputs[0], scale, zero], name=f"{value.name}/dequantize"
        )
        _describe(quantize.outputs[0], f"{value.name}_quantized", self.kernels.activation, value.shape)
        _describe(dequantize.outputs[0], f"{value.name}_dequantized", ir.DataType.FLOAT, value.shape)
        self._insert(value.producer(), [quantize, dequantize])
        self.pairs[value] = dequantize.outputs[0]
        return dequantize.outputs[0]

    def _write_integers(self, value: ir.Value) -> None:
        """Let every reader of ``value``, and the caller, have it from its integers."""
        pair = self._pair(value)
        quantize = pair.producer().inputs[0].producer()  # type: ignore[union-attr]
        for use in list(value.uses()):
            if use.node is not quantize:
                use.node.replace_input_with(use.idx, pair)
        if value.is_graph_output():
            name = value.name
            for index, output in enumerate(self.graph.outputs):
                if output is value:
                    self.graph.outputs[index] = pair
            value.name = f"{name}_float"
            pair.name = name

    def _quantize_weight(self, unit: Unit) -> None:
        node = unit.node
        weight = weight_of(node)
        if weight is None:
            return
        array = facts.constant(weight)
        assert array is not None and node.name is not None
        axis = channel_axis(node)
        limit = self.kernels.weight_limit
        scales = self.weights.scales.get(node.name)
        if scales is None:
            scales = weight_scales(array, axis, limit)
        input_scale = self._of(unit.inputs[0]).scale
        bias = bias_of(node)
        rounded = self.weights.rounded.get(node.name)
        if bias is not None and self.kernels.integer_bias:
            wide = _widen(scales, facts.constant(bias), input_scale)
            # Integers that were found for other scales do not fit these.
            rounded = rounded if np.array_equal(wide, scales) else None
            scales = wide
        if rounded is None:
            rounded = quantize_weight(array, scales, axis, limit)
        self.replaced.add(weight)
        node.replace_input_with(1, self._dequantized(weight, rounded, scales, axis))
        self._quantize_bias(node, bias, scales, input_scale)

    def _quantize_bias(self, node: ir.Node, bias: ir.Value | None, scales: Array, input_scale: float) -> None:
        shift = self.weights.bias.get(node.name or "")
        if bias is None and shift is None:
            return
        array = np.float64(0.0) if bias is None else np.asarray(facts.constant(bias), np.float64)
        array = array if shift is None else array + shift
        slot = 2
        if not self.kernels.integer_bias:
            if shift is not None:
                self._set_input(node, slot, self._constant(f"{node.name}_bias", array.astype(np.float32)))
            return
        product = np.float64(input_scale) * np.broadcast_to(scales, array.shape).astype(np.float64)
        rounded = np.clip(np.rint(array / product), -_INT32, _INT32).astype(np.int32)
        name = f"{node.name}_bias" if bias is None else f"{node.name}/{bias.name}"
        integers = self._constant(f"{name}_quantized", rounded)
        scale = self._constant(f"{name}_scale", product.astype(np.float32))
        zero = self._constant(f"{name}_zero_point", np.zeros(product.shape, np.int32))
        attributes = {"axis": 0}
        dequantize = ir.node(
            "DequantizeLinear", [integers, scale, zero], attributes, name=f"{name}/dequantize"
        )
        _describe(dequantize.outputs[0], f"{name}_dequantized", ir.DataType.FLOAT, ir.Shape(array.shape))
        self._insert(None, [dequantize])
        self._set_input(node, slot, dequantize.outputs[0])

    def _dequantized(self, weight: ir.Value, rounded: Array, scales: Array, axis: int | None) -> ir.Value:
        key = (weight, rounded.tobytes() + scales.tobytes())
        if key in self.dequantized:
            return self.dequantized[key]
        name = weight.name if not any(known is weight for known, _ in self.dequantized) else None
        name = name or f"{weight.name}_{len(self.dequantized)}"
        integers = self._constant(f"{name}_quantized", rounded)
        scale = self._constant(f"{name}_scale", scales)
        zero = self._constant(f"{name}_zero_point", np.zeros(scales.shape, np.int8))
        attributes = {} if axis is None else {"axis": axis}
        node = ir.node("DequantizeLinear", [integers, scale, zero], attributes, name=f"{name}/dequantize")
        _describe(node.outputs[0], f"{name}_dequantized", ir.DataType.FLOAT, weight.shape)
        self._insert(None, [node])
        self.dequantized[key] = node.outputs[0]
        return node.outputs[0]

    def _constant(self, name: str, array: Array) -> ir.Value:
        known = self.graph.initializers.get(name)
        if known is not None:
            content = facts.constant(known)
            if content is not None and content.dtype == array.dtype and np.array_equal(content, array):
                return known
            name = free_name(name, self.graph.initializers)
        tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape))
        return ir_model.add_constant(self.graph, name, tensor)

    def _insert(self, after: ir.Node | None, nodes: list[ir.Node]) -> None:
        for node in nodes:
            provenance.record(node, MAKER, ())
        if after is None:
            self.graph.insert_before(self.graph[0], nodes)
        else:
            self.graph.insert_after(after, nodes)

    def _set_input(self, node: ir.Node, slot: int, value: ir.Value) -> None:
        if len(node.inputs) <= slot:
            node.resize_inputs(slot + 1)
        known = node.inputs[slot]
        if known is not None:
            self.replaced.add(known)
        node.replace_input_with(slot, value)


def _widen(scales: Array, bias: Array | None, input_scale: float) -> Array:
    """Scales so large that the bias fits into int32 at their product with the input's."""
    if bias is None:
        return scales
    least = np.abs(np.asarray(bias, np.float64)) / _INT32 / max(input_scale, 1e-300)
    if scales.ndim == 0:
        least = least.max(initial=0.0)
    return np.asarray(np.maximum(scales, least * 1.001), dtype=np.float32)


def _describe(value: ir.Value, name: str, dtype: ir.DataType, shape: ir.Shape | None) -> None:
    value.name, value.type = name, ir.TensorType(dtype)
    value.shape = None if shape is None else shape.copy()


__all__ = ["MAKER", "QUANTIZE_SUFFIX", "Weights", "place", "tensors_to_observe"]
