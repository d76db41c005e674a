"""x -> W  ==>  (x * s) -> (W / s), with s chosen so that one scale for the whole tensor x fits all its channels

A tensor whose channels differ in range by orders of magnitude has few integers left for the small ones. Multiplying
each input channel by a constant and dividing the weights that read it by the same one changes nothing in float and
much in int8: cross-layer equalization (Nagel et al., Data-Free Quantization Through Weight Equalization and Bias
Correction, ICCV 2019, section 4.1) where the weights follow each channel by themselves (depthwise convolutions),
SmoothQuant (Xiao et al., ICML 2023) where activations and weights have to share the difficulty. How much of it moves
is chosen for each tensor by the noise that rounding is expected to make; where little is gained nothing is changed.

The factor goes into what makes the tensor where that is linear (a convolution or product without an activation, a
normalization's scale and bias) and nothing else reads it; else it is a Mul of its own on the way to these weights.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.ir import facts, provenance
from graphopt.ir import model as ir_model
from graphopt.ir.facts import Array
from graphopt.ir.graphs import free_name
from graphopt.quant.channels import (
    Channels,
    by_input,
    channel_dim,
    input_axis,
    is_depthwise,
    observe_channels,
)
from graphopt.quant.kernels import CONVOLUTIONS, PRODUCTS, IntegerKernels, weight_of
from graphopt.quant.units import Unit, units_of

MAKER = "equalize"
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
LEAST_GAIN = 1.4
"""A channel is not scaled for less: its factor may cost a node of its own."""
_MOST_SPREAD = 64.0
_LEVELS = 255.0
_PIECE = 1 << 18


@dataclass(frozen=True)
class Equalized:
    """One tensor whose channels were scaled.

    Attributes:
        tensor: Its name.
        readers: The units whose weights took the inverse.
        share: How much of the difficulty moved from the activations into the weights.
        gain: Expected noise of rounding before over after.
        folded: Whether the factor went into what makes the tensor; else it is a Mul of its own.
        changed: Tensors that hold other numbers than before.
        factors: What each channel was multiplied by, float64 [channels].
    """

    tensor: str
    readers: tuple[str, ...]
    share: float
    gain: float
    folded: bool
    changed: tuple[str, ...] = ()
    factors: Array = field(default_factory=lambda: np.ones(0), repr=False, compare=False)

    def describe(self) -> dict[str, Any]:
        """All but the factors, as plain JSON."""
        told = {name: value for name, value in vars(self).items() if name != "factors"}
        return {**told, "readers": list(self.readers), "changed": list(self.changed)}


def equalize(
    model: ir.Model,
    kernels: IntegerKernels,
    samples: Iterable[Feeds],
    *,
    operators: frozenset[str] = CONVOLUTIONS | PRODUCTS,
    only: Collection[str] | None = None,
    least_gain: float = LEAST_GAIN,
    seen: dict[tuple[str, int], Channels] | None = None,
    seconds: float = math.inf,
    threads: int = 0,
) -> list[Equalized]:
    """Scale channels where that is expected to lower the noise of quantization; in place.

    Args:
        samples: Few suffice: ranges and powers of channels are read off them.
        operators: Readers of the tensors that may be scaled.
        only: Names of the tensors that may be scaled; None for all.
        least_gain: How many times less noise is to be expected.
        seen: Channels that were observed before, by tensor and axis; what it lacks is observed and added.
        seconds: For observing.
    """
    units = [unit for unit in units_of(model, kernels)[0] if unit.node.op_type in operators]
    groups = _groups(units)
    if only is not None:
        groups = {value: readers for value, readers in groups.items() if value.name in only}
    if not groups:
        return []
    seen = {} if seen is None else seen
    axes = {value.name or "": channel_dim(units[0].node) for value, units in groups.items()}
    fresh = {name: axis for name, axis in axes.items() if (name, axis) not in seen}
    if fresh:
        found = observe_channels(model, fresh, samples, threads=threads, seconds=seconds)
        seen |= {(name, fresh[name]): channels for name, channels in found.items()}
    done: list[Equalized] = []
    for value, units in groups.items():
        channels = seen.get((value.name or "", axes[value.name or ""]))
        best = None if channels is None else _best(units, channels)
        # A gain that is no number is none.
        if best is None or not best[2] >= least_gain:
            continue
        share, factors, gain = best
        changed = _apply(model.graph, value, units, factors)
        readers = tuple(unit.name for unit in units)
        done.append(Equalized(value.name or "", readers, share, gain, bool(changed), changed, factors))
    return done


def scale_again(model: ir.Model, kernels: IntegerKernels, done: Sequence[Equalized]) -> None:
    """Scale the channels of a graph that was not scaled yet by the factors that were found for it, in place."""
    nodes = {unit.name: unit for unit in units_of(model, kernels)[0]}
    for entry in done:
        units = [nodes[name] for name in entry.readers]
        value = units[0].node.inputs[0]
        assert value is not None
        _apply(model.graph, value, units, entry.factors)


def _groups(units: Sequence[Unit]) -> dict[ir.Value, list[Unit]]:
    """Units with constant weights, by the one activation that they read."""
    groups: dict[ir.Value, list[Unit]] = {}
    for unit in units:
        if unit.kind == "compute" and weight_of(unit.node) is not None and input_axis(unit.node) is not None:
            groups.setdefault(unit.inputs[0], []).append(unit)
    return groups


def _best(units: Sequence[Unit], channels: Channels) -> tuple[float, Array, float] | None:
    """The share to move, the factors [channels], and the expected gain; None where it cannot be told."""
    matrices = [np.abs(by_input(unit.node)) for unit in units]
    spread = np.maximum(np.abs(channels.low), np.abs(channels.high))
    if (
        not np.isfinite(spread).all()
        or not spread.any()
        or any(matrix.shape[0] != len(spread) for matrix in matrices)
    ):
        return None
    depthwise = all(is_depthwise(unit.node) for unit in units)
    weights = np.max([matrix.max(axis=1) for matrix in matrices], axis=0).astype(np.float64)
    squares = [np.square(matrix).sum(axis=1, dtype=np.float64) for matrix in matrices]
    before = expected_noise(matrices, squares, channels, np.ones_like(spread), depthwise=depthwise)
    best: tuple[float, Array, float] | None = None
    for share in (1.0,) if depthwise else _SHARES[1:]:
        factors = _factors(spread, weights, share)
        noise = expected_noise(matrices, squares, channels, factors, depthwise=depthwise)
        gain = before / max(noise, 1e-300)
        if best is None or gain > best[2]:
            best = (share, factors, gain)
    return best


def _factors(spread: Array, weights: Array, share: float) -> Array:
    """What each channel is multiplied by, float32; the geometric mean of those in use is 1.

    A channel that is always zero, or that no weight reads, is left alone.
    """
    used = (spread > 0) & (weights > 0)
    factors = np.ones_like(spread)
    factors[used] = weights[used] ** (1 - share) / spread[used] ** share
    middle = np.exp(np.log(factors[used]).mean()) if used.any() else 1.0
    factors[used] = np.clip(factors[used] / middle, 1 / _MOST_SPREAD, _MOST_SPREAD)
    # Powers of two cost no rounding in float: the graph stays what it was, to the bit.
    return np.asarray(np.exp2(np.rint(np.log2(factors))), dtype=np.float64)


def expected_noise(
    matrices: Sequence[Array],
    squares: Sequence[Array],
    channels: Channels,
    factors: Array,
    *,
    depthwise: bool,
) -> float:
    """Expected power of the noise of rounding, relative to the power of the products, summed over the readers.

    Args:
        matrices: Magnitudes of the weights [channels, everything else].
        squares: The sums of squares of their rows.
    """
    low, high = np.minimum(channels.low * factors, 0).min(), np.maximum(channels.high * factors, 0).max()
    step = (high - low) / _LEVELS
    total = 0.0
    power = channels.power * factors**2
    for matrix, rows in zip(matrices, squares, strict=True):
        signal = (channels.power * rows).sum()
        by_activation = step**2 / 12 * (rows / factors**2).sum()
        # One scale for each output channel: a row of a depthwise weight; elsewhere about the largest of all inputs.
        if depthwise:
            steps = matrix.max(axis=1) / factors
            reached = (steps**2 * power).sum() * matrix.shape[1]
        else:
            steps = _largest(matrix, factors)
            reached = (steps**2).sum() * power.sum()
        by_weight = reached / (_LEVELS / 2) ** 2 / 12
        total += (by_activation + by_weight) / max(signal, 1e-300)
    return float(total)


def _largest(matrix: Array, factors: Array) -> Array:
    """The largest of each column of ``matrix / factors[:, None]``, a piece of rows at a time."""
    rows = max(1, _PIECE // matrix.shape[1])
    found = np.zeros(matrix.shape[1], matrix.dtype)
    inverse = (1.0 / factors).astype(matrix.dtype)[:, None]
    for start in range(0, len(matrix), rows):
        piece = slice(start, start + rows)
        np.maximum(found, (matrix[piece] * inverse[piece]).max(axis=0), out=found)
    return found.astype(np.float64)


def _apply(graph: ir.Graph, value: ir.Value, units: Sequence[Unit], factors: Array) -> tuple[str, ...]:
    """Scale a tensor and its readers' weights; returns what holds other numbers now, nothing where a Mul was added."""
    for unit in units:
        _divide_weight(graph, unit.node, factors)
    changed = _fold(graph, value, units, factors)
    if changed:
        return changed
    rank = facts.rank(value)
    axis = channel_dim(units[0].node) % (rank or 4)
    shape = (-1, *(1,) * ((rank or 4) - 1 - axis))
    factor = _constant(graph, f"{value.name}_factors", factors.reshape(shape).astype(np.float32))
    # Of a tensor that convolutions and products read there may be one for each.
    fresh = (factor.name or "").removesuffix("_factors")
    node = ir.node("Mul", [value, factor], name=f"{factor.name}/{MAKER}")
    output = node.outputs[0]
    output.name, output.type, output.shape = (
        f"{fresh}_equalized",
        ir.TensorType(ir.DataType.FLOAT),
        value.shape,
    )
    provenance.record(node, MAKER, ())
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], [node])
    else:
        graph.insert_after(producer, [node])
    for unit in units:
        unit.node.replace_input_with(0, output)
    return ()


def _divide_weight(graph: ir.Graph, node: ir.Node, factors: Array) -> None:
    weight = node.inputs[1]
    array, axis = facts.constant(weight), input_axis(node)
    assert weight is not None and array is not None and axis is not None
    shape = [1] * array.ndim
    shape[axis] = -1
    _replace(graph, node, 1, (array / factors.reshape(shape)).astype(np.float32))


def _fold(graph: ir.Graph, value: ir.Value, units: Sequence[Unit], factors: Array) -> tuple[str, ...]:
    """Put the factors into what makes ``value``, where it is linear and all its readers took the inverse.

    Returns:
        Names of the tensors that hold other numbers now; none where it cannot be done.
    """
    changed = [value.name or ""]
    readers = {use.node for use in value.uses()}
    producer = value.producer()
    if (
        value.is_graph_output()
        or producer is None
        or producer.domain
        or readers != {unit.node for unit in units}
    ):
        return ()
    by_axis = {channel_dim(unit.node) for unit in units}
    if len(by_axis) != 1:
        return ()
    if producer.op_type in ("Relu", "LeakyRelu", "MaxPool", "AveragePool") and len(producer.outputs) == 1:
        inner = producer.inputs[0]
        if inner is None or facts.sole_consumer(inner) is not producer or units[0].node.op_type != "Conv":
            return ()
        changed.append(inner.name or "")
        producer = inner.producer()
        if producer is None or producer.domain:
            return ()
    convolutional = units[0].node.op_type == "Conv"
    if convolutional and producer.op_type == "Conv":
        return tuple(changed) if _scale_operands(graph, producer, (1, 2), (0, 0), factors) else ()
    if (
        not convolutional
        and producer.op_type == "LayerNormalization"
        and facts.dims(producer.inputs[1]) == (len(factors),)
    ):
        return tuple(changed) if _scale_operands(graph, producer, (1, 2), (0, 0), factors) else ()
    return ()


def _scale_operands(
    graph: ir.Graph, node: ir.Node, slots: tuple[int, ...], axes: tuple[int, ...], factors: Array
) -> bool:
    present = [
        (slot, axis)
        for slot, axis in zip(slots, axes, strict=True)
        if slot < len(node.inputs) and node.inputs[slot] is not None
    ]
    arrays = [facts.constant(node.inputs[slot]) for slot, _ in present]
    if any(
        array is None or array.dtype != np.float32 or array.shape[:1] != factors.shape for array in arrays
    ):
        return False
    for (slot, axis), array in zip(present, arrays, strict=True):
        assert array is not None
        shape = [1] * array.ndim
        shape[axis] = -1
        _replace(graph, node, slot, (array * factors.reshape(shape)).astype(np.float32))
    return True


def _replace(graph: ir.Graph, node: ir.Node, slot: int, array: Array) -> None:
    old = node.inputs[slot]
    assert old is not None and old.name is not None
    scaled = _constant(graph, f"{old.name}_{MAKER}", array)
    scaled.metadata_props.update(old.metadata_props)
    node.replace_input_with(slot, scaled)
    if old.name in graph.initializers and not old.uses() and not old.is_graph_output():
        del graph.initializers[old.name]


def _constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    fresh = free_name(name, graph.initializers)
    return ir_model.add_constant(graph, fresh, ir.tensor(np.ascontiguousarray(array)))


__all__ = ["LEAST_GAIN", "MAKER", "Equalized", "equalize", "expected_noise", "scale_again"]
