"""Whose time a kernel's time is: from what a backend ran back to the units of the graph it was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.ir import facts, provenance
from graphopt.machine import Kernel
from graphopt.quant.place import QUANTIZE_SUFFIX
from graphopt.quant.units import Unit

_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_LEAST_CONVERSION = 0.002


@dataclass(frozen=True)
class Attribution:
    """Kernel times by unit.

    Attributes:
        milliseconds: Of each unit, by name.
        integer: Units that a kernel on integers computes.
        conversions: Total time of quantizing and dequantizing.
        other: Time of kernels that belong to no unit.
    """

    milliseconds: Mapping[str, float]
    integer: frozenset[str]
    conversions: float
    other: float


def attribute(kernels: Sequence[Kernel], units: Sequence[Unit], model: ir.Model) -> Attribution:
    """Give each kernel's time to the unit that it computes.

    A backend fuses nodes and renames them, so a kernel is recognised by the tensors it makes, by its node's name, and
    by what the node was made from; one that is not (a change of layout) belongs to whoever reads its result.

    Args:
        model: The graph as the backend was given it, in which nodes record what they stand for.
    """
    by_value, by_node = _owners(units, model)
    owner: dict[int, str] = {}
    nodes: dict[str, str] = {}
    for index in reversed(range(len(kernels))):
        kernel = kernels[index]
        if kernel.op in _CONVERSIONS:
            continue
        # Some transformers name a node after what it makes.
        found = next((by_value[name] for name in (*kernel.outputs, kernel.node) if name in by_value), None)
        found = found or by_node.get(kernel.node)
        for reader in kernel.readers:
            found = found or nodes.get(reader) or by_value.get(reader.removesuffix(QUANTIZE_SUFFIX))
        if found is not None:
            owner[index] = found
            if kernel.node:
                nodes[kernel.node] = found
    milliseconds: dict[str, float] = {}
    integer: set[str] = set()
    conversions = other = 0.0
    for index, kernel in enumerate(kernels):
        if kernel.op in _CONVERSIONS:
            conversions += kernel.milliseconds
        elif index in owner:
            name = owner[index]
            milliseconds[name] = milliseconds.get(name, 0.0) + kernel.milliseconds
            if kernel.integer:
                integer.add(name)
        else:
            other += kernel.milliseconds
    return Attribution(milliseconds, frozenset(integer), conversions, other)


def _owners(units: Sequence[Unit], model: ir.Model) -> tuple[dict[str, str], dict[str, str]]:
    """Units by the names of values and of nodes that belong to them.

    An activation that is no unit itself belongs to the unit before it: in float it costs nothing there, on integers it
    stands alone.
    """
    by_value: dict[str, str] = {}
    by_node: dict[str, str] = {}

    def enter(node: ir.Node, unit: str) -> None:
        by_node.setdefault(node.name or "", unit)
        for output in node.outputs:
            by_value.setdefault(output.name or "", unit)

    for unit in units:
        for node in unit.nodes:
            enter(node, unit.name)
    for unit in units:
        last = unit.nodes[-1]
        while (follower := facts.sole_consumer(last.outputs[0])) is not None and is_activation(follower):
            if follower.name in by_node:
                break
            enter(follower, unit.name)
            last = follower
    for node in model.graph:
        for source in provenance.sources(node):
            if source in by_node:
                enter(node, by_node[source])
    by_value.pop("", None)
    by_node.pop("", None)
    return by_value, by_node


def is_activation(node: ir.Node) -> bool:
    """Whether it computes each element from one element."""
    return (
        len(node.outputs) == 1
        and sum(value is not None and not facts.is_constant(value) for value in node.inputs) == 1
        and facts.same_shape(node.inputs[0], node.outputs[0])
        and node.op_type not in ("Softmax", "LogSoftmax", "LayerNormalization")
    )


def conversion_costs(total: float, converted: Sequence[str], sizes: Mapping[str, int]) -> dict[str, float]:
    """Milliseconds of converting each tensor once, from the total time of converting some of them both ways.

    Args:
        total: Milliseconds.
        converted: Tensors that were converted.
        sizes: Elements of each tensor.
    """
    elements = sum(sizes.get(name, 0) for name in converted)
    rate = total / (2 * elements) if elements else 0.0
    return {name: _LEAST_CONVERSION + rate * size for name, size in sizes.items()}
