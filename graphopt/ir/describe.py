"""Nodes and what is around them as text, for messages; cycles."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import onnx_ir as ir

from graphopt.ir.graphs import inner_nodes
from graphopt.ir.shapes import shown

_MOST_NEIGHBOURS = 4


def find_cycle(graph: ir.Graph) -> list[ir.Node]:
    """Nodes that form a cycle, each one reading from the one before it; empty where there is none. Linear."""
    members = set(graph)
    done: set[ir.Node] = set()
    for start in graph:
        if start in done:
            continue
        path: dict[ir.Node, None] = {start: None}
        stack = [(start, iter(_predecessors(start, members)))]
        while stack:
            node, rest = stack[-1]
            for before in rest:
                if before in path:
                    ordered = list(path)
                    return list(reversed(ordered[ordered.index(before) :]))
                if before not in done:
                    path[before] = None
                    stack.append((before, iter(_predecessors(before, members))))
                    break
            else:
                stack.pop()
                path.popitem()
                done.add(node)
    return []


def _predecessors(node: ir.Node, members: set[ir.Node]) -> list[ir.Node]:
    found: dict[ir.Node, None] = {}
    for value in all_reads(node):
        producer = value.producer()
        if producer is not None and producer in members:
            found[producer] = None
    return list(found)


def all_reads(node: ir.Node) -> list[ir.Value]:
    """The values that ``node`` reads, those that its subgraphs read included."""
    reads = [value for value in node.inputs if value is not None]
    for inner in inner_nodes(node):
        reads += [value for value in inner.inputs if value is not None]
    return reads


def describe_cycle(cycle: list[ir.Node]) -> str:
    """A cycle as text: ``a (Add) -> b (Relu) -> a``."""
    labels = [f"{_label(node)} ({node.op_type})" for node in cycle[:8]]
    if len(cycle) > 8:
        labels.append(f"... {len(cycle) - 8} more")
    return " -> ".join([*labels, _label(cycle[0])])


def _label(node: ir.Node) -> str:
    return node.name or next((value.name for value in node.outputs if value.name), None) or node.op_type


def describe(node: ir.Node) -> str:
    """One line for a node: name, outputs, operator, and inputs with what is known of them."""
    outputs = ", ".join(value.name or "_" for value in node.outputs) or "()"
    inputs = ", ".join(_operand(value) for value in node.inputs)
    op_type = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    name = f"   # {node.name}" if node.name else ""
    return f"{outputs} = {op_type}({inputs}){name}"


def _operand(value: ir.Value | None) -> str:
    if value is None:
        return "_"
    text = value.name or "?"
    if value.dtype is None and value.shape is None:
        return text
    dtype = "?" if value.dtype is None else value.dtype.name.lower()
    shape = "[...]" if value.shape is None else shown(value.shape)
    return f"{text}: {dtype}{shape}"


def neighbourhood(node: ir.Node, radius: int = 1) -> str:
    """``node`` and the nodes around it as text, at most a few of each kind.

    Args:
        radius: Steps up to producers and down to consumers.
    """
    above: list[list[str]] = []
    below: list[list[str]] = []
    up, down = {node}, {node}
    for _ in range(radius):
        up = _ring(up, lambda at: [value.producer() for value in at.inputs if value is not None])
        down = _ring(down, lambda at: [use for value in at.outputs for use in value.consumers()])
        above.append(_lines(up))
        below.append(_lines(down))
    lines = [line for ring in reversed(above) for line in ring]
    lines.append(f"  > {describe(node)}")
    lines += [line for ring in below for line in ring]
    return "\n".join(lines)


def _ring(frontier: set[ir.Node], step: Callable[[ir.Node], Iterable[ir.Node | None]]) -> set[ir.Node]:
    return {found for at in frontier for found in step(at) if found is not None}


def _lines(nodes: Collection[ir.Node]) -> list[str]:
    described = sorted(describe(node) for node in nodes)
    lines = [f"    {line}" for line in described[:_MOST_NEIGHBOURS]]
    if len(described) > _MOST_NEIGHBOURS:
        lines.append(f"    ... and {len(described) - _MOST_NEIGHBOURS} more")
    return lines
