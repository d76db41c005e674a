"""Which units to put on integers: a minimum cut over measured times.

Each unit takes one time in float and another on integers, and where integers meet floats the tensor between them has to
be converted, once, whoever reads it. The assignment of least total time is a minimum s-t cut (Boykov, Veksler & Zabih,
Fast Approximate Energy Minimization via Graph Cuts, PAMI 2001: binary labels with costs on the boundary). Noise enters
as a price: at the price 0 time alone decides, and the higher it is the fewer units stay on integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.quant.kernels import IntegerKernels
from graphopt.quant.units import Unit

_SCALE = 1_000_000


@dataclass(frozen=True)
class Costs:
    """What was measured.

    Attributes:
        floats: Milliseconds of each unit in float, by name.
        integers: Milliseconds of each unit on integers, by name.
        convert: Milliseconds of quantizing (or dequantizing) a tensor, by its name.
        noise: Share of noise in the outputs that each unit adds alone, by name; empty where it was not measured.
    """

    floats: Mapping[str, float]
    integers: Mapping[str, float]
    convert: Mapping[str, float]
    noise: Mapping[str, float] = field(default_factory=dict)


def fastest(
    units: Sequence[Unit], costs: Costs, kernels: IntegerKernels, price: float = 0.0
) -> frozenset[str]:
    """Names of the units that are to compute on integers.

    Args:
        price: Milliseconds that a unit of noise share costs.
    """
    import networkx as nx

    graph = nx.DiGraph()
    by_node = {node: unit.name for unit in units for node in unit.nodes}

    def add(source: object, target: object, capacity: float) -> None:
        amount = round(capacity * _SCALE)
        if amount > 0:
            known = graph.get_edge_data(source, target, {}).get("capacity", 0)
            graph.add_edge(source, target, capacity=known + amount)

    for unit in units:
        add("integers", unit.name, costs.floats.get(unit.name, 0.0))
        add(unit.name, "float", costs.integers.get(unit.name, 0.0) + price * costs.noise.get(unit.name, 0.0))
        graph.add_nodes_from([unit.name, "integers", "float"])
    for value, producer in _tensors(units, kernels):
        cost = costs.convert.get(value.name or "", 0.0)
        readers = {by_node.get(use.node) for use in value.uses()} | (
            {None} if value.is_graph_output() else set()
        )
        readers.discard(producer)
        quantized, dequantized = ("q", value.name), ("dq", value.name)
        for reader in sorted(name for name in readers if name is not None):
            graph.add_edge(reader, quantized)
            if producer is not None:
                graph.add_edge(dequantized, reader)
        add(quantized, producer if producer is not None else "float", cost)
        if producer is not None:
            if None in readers:
                graph.add_edge(dequantized, "float")
            add(producer, dequantized, cost)
    _, (integers, _) = nx.minimum_cut(graph, "integers", "float")
    return frozenset(unit.name for unit in units if unit.name in integers)


def conversions(
    units: Sequence[Unit], costs: Costs, kernels: IntegerKernels, chosen: frozenset[str]
) -> float:
    """Milliseconds of converting tensors between integers and floats with these units on integers."""
    by_node = {node: unit.name for unit in units for node in unit.nodes}
    total = 0.0
    for value, producer in _tensors(units, kernels):
        readers = {by_node.get(use.node) for use in value.uses()} - {producer}
        integers = any(name in chosen for name in readers if name is not None)
        floats = value.is_graph_output() or any(name not in chosen for name in readers)
        if (integers and producer not in chosen) or (floats and producer in chosen):
            total += costs.convert.get(value.name or "", 0.0)
    return total


def _tensors(units: Sequence[Unit], kernels: IntegerKernels) -> list[tuple[ir.Value, str | None]]:
    """Each tensor between units, with the unit that gives it out as integers where there is one."""
    writes = {
        unit.output: unit.name
        for unit in units
        if unit.kind != "compute" or unit.node.op_type in kernels.writes_integers
    }
    values = dict.fromkeys(value for unit in units for value in (*unit.inputs, unit.output))
    return [(value, writes.get(value)) for value in values]
