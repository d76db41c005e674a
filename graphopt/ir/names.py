"""Unique, stable names for values and nodes across a graph and its subgraphs."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from graphopt.ir.graphs import with_subgraphs


def make_unique(model: ir.Model) -> dict[str, str]:
    """Give every value and node a name of its own, in place. Inputs and outputs of the model keep theirs.

    The names depend only on the model, so the same model always gets the same ones. Outputs that a node leaves out
    (optional outputs without a name that nothing reads) stay without one.

    Returns:
        What was renamed: new name to old name ("" where there was none), values and nodes alike.
    """
    taken: set[str] = set()
    counters: dict[str, int] = {}
    renamed: dict[str, str] = {}
    done: set[ir.Value] = set()

    def fresh(base: str, used: set[str]) -> str:
        name = base
        while name in used:
            counters[base] = counters.get(base, 0) + 1
            name = f"{base}_{counters[base]}"
        used.add(name)
        return name

    def name_value(value: ir.Value, base: str) -> None:
        if value in done:
            return
        done.add(value)
        old = value.name or ""
        new = fresh(old or base, taken)
        if new != old:
            pending.append((value, new))
            renamed[new] = old

    graphs = with_subgraphs(model.graph)
    for value in [*model.graph.inputs, *model.graph.outputs]:
        # First, so that no inner value takes their names. One value may be both.
        if value.name and value not in done:
            done.add(value)
            if value.name in taken:
                done.discard(value)
            taken.add(value.name)
    pending: list[tuple[ir.Value, str]] = []
    for graph in graphs:
        for value, base in _values(graph):
            name_value(value, base)
    # A new name may be the old one of a value that itself is renamed: initializers are a dictionary by name.
    for index, (value, _) in enumerate(pending):
        value.name = f"\0{index}"
    for value, new in pending:
        value.name = new

    node_names: set[str] = set()
    unnamed: list[ir.Node] = []
    for graph in graphs:
        for node in graph:
            if not node.name:
                unnamed.append(node)
            elif node.name in node_names:
                old, node.name = node.name, fresh(node.name, node_names)
                renamed[node.name] = old
            else:
                node_names.add(node.name)
    for node in unnamed:
        output = next((value.name for value in node.outputs if value.name), None)
        node.name = fresh(output or node.op_type, node_names)
    return renamed


def _values(graph: ir.Graph) -> Iterator[tuple[ir.Value, str]]:
    for index, value in enumerate(graph.inputs):
        yield value, f"input_{index}"
    for value in graph.outputs:
        if value.producer() is None or value.producer().graph is graph:  # type: ignore[union-attr]
            yield value, "output"
    for value in list(graph.initializers.values()):
        yield value, "constant"
    for node in graph:
        for index, value in enumerate(node.outputs):
            if value.name or value.uses() or value.is_graph_output():
                yield value, f"{node.name or node.op_type}_output_{index}"
