"""A graph in which the quantization of each unit has a switch, and that of each tensor a scale and zero point to set.

Each quantized tensor and weight goes through ``Where(switch, quantized, float)``; switches, scales and zero points are
inputs. So one session answers what any set of units and any ranges do to the outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.ir import facts
from graphopt.ir import model as ir_model
from graphopt.ir.facts import Array
from graphopt.ir.model import tapped
from graphopt.quant.kernels import IntegerKernels, activation_slots, channel_axis, weight_of
from graphopt.quant.place import Weights
from graphopt.quant.ranges import Range, affine, along, quantize_weight, weight_scales
from graphopt.quant.units import Unit, units_of
from graphopt.verify.agreement import noise_share
from graphopt.verify.session import Session

SWITCHES = "graphopt_switches"
SCALES = "graphopt_scales"
ZEROS = "graphopt_zeros"
_HUGE = float(np.finfo(np.float32).max)
_SATURATES = frozenset({"Softmax", "Sigmoid", "HardSigmoid", "Tanh", "LogSoftmax"})
_LAYOUT = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"})


class Switched:
    """A graph in a session in which each unit's quantization can be turned on, and each tensor's range be changed.

    Args:
        model: The float graph; left as it was.
        names: Of units.
        ranges: Of every tensor of theirs.

    Attributes:
        units: In the order of their switches.
        off: bool [units], all switches off.
        tensors: Place of each tensor that is quantized among the scales, by name.
    """

    def __init__(
        self, model: ir.Model, names: Sequence[str], ranges: Mapping[str, Range], kernels: IntegerKernels,
        weights: Weights, threads: int,
    ) -> None:  # fmt: skip
        copy = ir_model.clone(model)
        self.kernels = kernels
        self.units = [unit for unit in units_of(copy, kernels)[0] if unit.name in set(names)]
        self.off = np.zeros(len(self.units), dtype=bool)
        switches = _Switches(copy, self.units, ranges, kernels, weights)
        switches.run()
        self._ranges = dict(ranges)
        self.tensors = switches.tensors
        self._scales = np.ones(len(self.tensors), np.float32)
        self._zeros = np.zeros(len(self.tensors), kernels.activation.numpy())
        for name in self.tensors:
            self.set_range(name, ranges[name])
        self._observed = smooth_outputs(copy)
        self._session = Session(tapped(copy, self._observed), optimize="all", threads=threads)

    def set_range(self, name: str, given: Range) -> Range:
        """Quantize one of ``tensors`` by another range; returns the one before."""
        before, self._ranges[name] = self._ranges[name], given
        found = affine(given, self.kernels.limits, symmetric=self.kernels.symmetric)
        self._scales[self.tensors[name]] = found.scale
        self._zeros[self.tensors[name]] = found.zero_point
        return before

    def run(self, feeds: Feeds, switches: Array) -> Feeds:
        """Outputs (what goes into a Softmax instead of it) with the units on integers whose switch is on."""
        given = {**feeds, SWITCHES: switches, SCALES: self._scales, ZEROS: self._zeros}
        return self._session.run(given, self._observed)

    def shares(self, samples: Sequence[Feeds], references: Sequence[Feeds], switches: Array) -> list[float]:
        """Noise power over signal power for each sample."""
        found = [
            noise_share([self.run(feeds, switches)], [wanted])
            for feeds, wanted in zip(samples, references, strict=True)
        ]
        return [share if np.isfinite(share) else _HUGE for share in found]


def smooth_outputs(model: ir.Model) -> list[str]:
    """Names of the outputs, each one that a Softmax or Sigmoid saturates replaced by what goes into that.

    Behind them noise shows only where it turns a decision over, which few samples do not show.
    """
    names: list[str] = []
    for output in model.graph.outputs:
        value: ir.Value | None = output
        while value is not None and facts.producer_op(value) in _LAYOUT:
            value = value.producer().inputs[0]  # type: ignore[union-attr]
        node = None if value is None else value.producer()
        if node is not None and node.graph is model.graph and facts.producer_op(value) in _SATURATES:
            value = node.inputs[0]
        elif value is not output:
            value = output
        if value is not None and value.name and not facts.is_constant(value):
            names.append(value.name)
    return list(dict.fromkeys(names))


class _Switches:
    def __init__(
        self, model: ir.Model, units: Sequence[Unit], ranges: Mapping[str, Range], kernels: IntegerKernels,
        weights: Weights,
    ) -> None:  # fmt: skip
        self.graph = model.graph
        self.units = units
        self.ranges = ranges
        self.kernels = kernels
        self.weights = weights
        self.counter = 0
        self.tensors: dict[str, int] = {}

    def run(self) -> None:
        switches = self._input(SWITCHES, ir.DataType.BOOL)
        self.scales, self.zeros = (
            self._input(SCALES, ir.DataType.FLOAT),
            self._input(ZEROS, self.kernels.activation),
        )
        for index, unit in enumerate(self.units):
            self._switch(unit, self._entry(switches, index))
        switches.shape = ir.Shape([len(self.units)])
        self.scales.shape = self.zeros.shape = ir.Shape([len(self.tensors)])

    def _input(self, name: str, dtype: ir.DataType) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(dtype))
        self.graph.inputs.append(value)
        return value

    def _entry(self, vector: ir.Value, index: int) -> ir.Value:
        gather = ir.node("Gather", [vector, self._constant(np.asarray(index, np.int64))], {"axis": 0})
        assert vector.dtype is not None
        self._named(gather, vector.dtype)
        self.graph.insert_before(self.graph[0], [gather])
        return gather.outputs[0]

    def _switch(self, unit: Unit, switch: ir.Value) -> None:
        node = unit.node
        for slot in activation_slots(node):
            value = node.inputs[slot]
            assert value is not None
            node.replace_input_with(slot, self._either(switch, value, node))
        weight = weight_of(node)
        if weight is not None:
            array = facts.constant(weight)
            assert array is not None
            axis = channel_axis(node)
            limit = self.kernels.weight_limit
            scales = self.weights.scales.get(unit.name)
            scales = weight_scales(array, axis, limit) if scales is None else scales
            rounded = self.weights.rounded.get(unit.name)
            rounded = quantize_weight(array, scales, axis, limit) if rounded is None else rounded
            restored = self._constant((rounded * along(scales, axis, array.ndim)).astype(np.float32))
            node.replace_input_with(1, self._where(switch, restored, weight, node))
        if unit.kind != "compute" or node.op_type in self.kernels.writes_integers:
            self._switch_output(unit, switch)

    def _switch_output(self, unit: Unit, switch: ir.Value) -> None:
        value = unit.output
        users = [use for use in value.uses()]
        quantized = self._quantized(value, unit.nodes[-1])
        where = ir.node("Where", [switch, quantized, value])
        self._named(where, ir.DataType.FLOAT)
        after = quantized.producer()
        assert after is not None
        self.graph.insert_after(after, [where])
        for use in users:
            use.node.replace_input_with(use.idx, where.outputs[0])
        if value.is_graph_output():
            name = value.name
            for index, output in enumerate(self.graph.outputs):
                if output is value:
                    self.graph.outputs[index] = where.outputs[0]
            value.name, where.outputs[0].name = f"{name}_float", name
            where.outputs[0].shape = value.shape

    def _either(self, switch: ir.Value, value: ir.Value, before: ir.Node) -> ir.Value:
        return self._where(switch, self._quantized(value, None, before), value, before)

    def _where(self, switch: ir.Value, on: ir.Value, off: ir.Value, before: ir.Node) -> ir.Value:
        where = ir.node("Where", [switch, on, off])
        self._named(where, ir.DataType.FLOAT)
        self.graph.insert_before(before, [where])
        return where.outputs[0]

    def _quantized(self, value: ir.Value, after: ir.Node | None, before: ir.Node | None = None) -> ir.Value:
        index = self.tensors.setdefault(self._source(value), len(self.tensors))
        scale, zero = self._entry(self.scales, index), self._entry(self.zeros, index)
        quantize = ir.node("QuantizeLinear", [value, scale, zero])
        self._named(quantize, self.kernels.activation)
        dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale, zero])
        self._named(dequantize, ir.DataType.FLOAT)
        if after is not None:
            self.graph.insert_after(after, [quantize, dequantize])
        else:
            assert before is not None
            self.graph.insert_before(before, [quantize, dequantize])
        return dequantize.outputs[0]

    def _source(self, value: ir.Value) -> str:
        """The tensor of the original graph that a switched tensor stands for."""
        producer = value.producer()
        while (
            producer is not None
            and producer.op_type == "Where"
            and producer.name
            and producer.name.startswith(SWITCHES)
        ):
            value = producer.inputs[2]  # type: ignore[assignment]
            producer = value.producer()
        assert value.name is not None
        return value.name.removesuffix("_float") if value.name not in self.ranges else value.name

    def _named(self, node: ir.Node, dtype: ir.DataType) -> None:
        self.counter += 1
        node.name = node.name or f"{SWITCHES}/node_{self.counter}"
        node.outputs[0].name = f"{SWITCHES}/value_{self.counter}"
        node.outputs[0].type = ir.TensorType(dtype)

    def _constant(self, array: facts.Array) -> ir.Value:
        self.counter += 1
        name = f"{SWITCHES}/constant_{self.counter}"
        return ir_model.add_constant(self.graph, name, ir.tensor(array))


__all__ = ["Switched", "smooth_outputs"]
