"""How much noise each unit adds, in one session: every unit's quantization has a switch.

Each quantized tensor and weight goes through ``Where(switch, quantized, float)``. One run for each unit with its switch
alone on gives the noise that it makes by itself: for small noise these powers add up (the errors of different layers
are close to uncorrelated: Zhou et al., Adaptive Quantization for Deep Neural Network, AAAI 2018). One run with its
switch alone off gives what it makes in company. The two differ where a unit undoes another one's error: rounding what a
layer reads takes an offset away again that the layer before has made of a constant background.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.ir import facts
from graphopt.ir import model as ir_model
from graphopt.ir.facts import Array
from graphopt.quant.kernels import IntegerKernels, activation_slots, channel_axis, weight_of
from graphopt.quant.observe import tapped
from graphopt.quant.place import Weights
from graphopt.quant.ranges import Affine, Range, affine, along, quantize_weight, weight_scales
from graphopt.quant.units import Unit, units_of
from graphopt.verify.budget import noise_share
from graphopt.verify.session import Session

SWITCHES = "graphopt_switches"
SECONDS = 12.0
_HUGE = float(np.finfo(np.float32).max)
_LEAST = 1e-15
_SATURATES = frozenset({"Softmax", "Sigmoid", "HardSigmoid", "Tanh", "LogSoftmax"})
_LAYOUT = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"})


@dataclass(frozen=True)
class Noise:
    """Noise power over signal power, in the worst output, by unit.

    Attributes:
        alone: With this unit on integers and no other.
        company: How much less it is without this unit, all others on integers; 0 where it is not less.
    """

    alone: dict[str, float]
    company: dict[str, float]


def noise_of_units(
    model: ir.Model,
    names: Sequence[str],
    ranges: Mapping[str, Range],
    kernels: IntegerKernels,
    samples: Sequence[Feeds],
    *,
    weights: Weights | None = None,
    company: bool = True,
    threads: int = 0,
    seconds: float = SECONDS,
    progress: Callable[[str], None] = lambda text: None,
) -> Noise:
    """The noise of each unit.

    Args:
        model: The float graph; left as it was.
        names: Of units.
        samples: Few: each unit runs all of them.
        company: Whether the noise in company is measured as well.
        seconds: As many of the samples as run in this time for all units; at least one.
    """
    switched = ir_model.clone(model)
    units = [unit for unit in units_of(switched, kernels)[0] if unit.name in set(names)]
    _Switches(switched, units, ranges, kernels, weights or Weights()).run()
    observed = smooth_outputs(switched)
    session = Session(tapped(switched, observed), optimize="all", threads=threads)
    off = np.zeros(len(units), dtype=bool)
    samples = _affordable(session, samples, off, observed, seconds / (2 if company else 1))
    references = [session.run({**feeds, SWITCHES: off}, observed) for feeds in samples]

    def shares(switches: Array) -> list[float]:
        outputs = [session.run({**feeds, SWITCHES: switches}, observed) for feeds in samples]
        found = [noise_share([got], [wanted]) for got, wanted in zip(outputs, references, strict=True)]
        return [share if np.isfinite(share) else _HUGE for share in found]

    alone: dict[str, float] = {}
    together: dict[str, float] = {}
    everything = _typical(shares(~off)) if company else 0.0
    for index, unit in enumerate(units):
        switches = off.copy()
        switches[index] = True
        alone[unit.name] = float(np.mean(shares(switches)))
        if company:
            together[unit.name] = max(everything - _typical(shares(~switches)), 0.0)
        progress(f"unit {index + 1} of {len(units)}")
    return Noise(alone, together)


def _typical(shares: Sequence[float]) -> float:
    """The mean of decibels: differences of two noises are small, and one sample that goes wrong would hide them."""
    return float(np.exp(np.mean(np.log(np.maximum(shares, _LEAST)))))


def _affordable(
    session: Session, samples: Sequence[Feeds], off: facts.Array, observed: Sequence[str], most: float
) -> Sequence[Feeds]:
    """As many of the samples as a sweep over all units may run within its time; at least one."""
    session.run({**samples[0], SWITCHES: off}, observed)
    started = time.monotonic()
    session.run({**samples[0], SWITCHES: off}, observed)
    seconds = (time.monotonic() - started) * max(1, len(off))
    return samples[: max(1, int(min(most / max(seconds, 1e-6), len(samples))))]


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

    def run(self) -> None:
        switches = ir.Value(
            name=SWITCHES, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([len(self.units)])
        )
        self.graph.inputs.append(switches)
        for index, unit in enumerate(self.units):
            place = self._constant(np.asarray(index, np.int64))
            gather = ir.node("Gather", [switches, place], {"axis": 0}, name=f"{SWITCHES}/{index}")
            self._named(gather, ir.DataType.BOOL)
            self.graph.insert_before(self.graph[0], [gather])
            self._switch(unit, gather.outputs[0])

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
        found = self._affine(value)
        scale = self._constant(np.asarray(found.scale, np.float32))
        zero = self._constant(np.asarray(found.zero_point, self.kernels.activation.numpy()))
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

    def _affine(self, value: ir.Value) -> Affine:
        name = self._source(value)
        return affine(self.ranges[name], self.kernels.limits, symmetric=self.kernels.symmetric)

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
