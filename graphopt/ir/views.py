"""Views of a graph: def-use, dominators and post-dominators as networkx graphs and maps; parts of it as models."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir.describe import all_reads

if TYPE_CHECKING:
    import networkx


def is_made_of(
    value: ir.Value,
    is_leaf: Callable[[ir.Value], bool],
    allows: Callable[[ir.Node], bool] = lambda node: True,
) -> bool:
    """Whether a value is computed from certain values alone.

    Args:
        is_leaf: Whether a value is one of these; what is upstream of it is not looked at.
        allows: Whether a node may stand between.
    """
    seen: set[ir.Value] = set()
    pending = [value]
    while pending:
        current = pending.pop()
        if current in seen or is_leaf(current):
            continue
        seen.add(current)
        node = current.producer()
        if node is None or not allows(node):
            return False
        pending += [operand for operand in node.inputs if operand is not None]
    return True


def def_use(graph: ir.Graph) -> networkx.DiGraph[ir.Node]:
    """Nodes of ``graph``, with an edge from each producer to each reader.

    What a node's subgraphs read counts as read by the node. The edge attribute ``values`` lists the names of the
    values that it stands for. Nodes are added in topological order.
    """
    import networkx

    view: networkx.DiGraph[ir.Node] = networkx.DiGraph()
    view.add_nodes_from(graph)
    for node in graph:
        for value in all_reads(node):
            producer = value.producer()
            if producer is None or producer.graph is not graph:
                continue
            if view.has_edge(producer, node):
                names: list[str | None] = view.edges[producer, node]["values"]
                if value.name not in names:
                    names.append(value.name)
            else:
                view.add_edge(producer, node, values=[value.name])
    return view


def dominators(graph: ir.Graph) -> dict[ir.Node, ir.Node | None]:
    """The immediate dominator of each node: the last one that every path from the inputs to it goes through.

    None stands for the inputs themselves: a node that reads an input or only constants, or that joins paths which
    have nothing but the inputs in common.
    """
    inputs = set(graph.inputs)
    members = set(graph)

    def above(node: ir.Node) -> tuple[list[ir.Node], bool]:
        reads = all_reads(node)
        producers = _producers(reads, members)
        return producers, not producers or any(value in inputs for value in reads)

    return _immediate(list(graph), above)


def post_dominators(graph: ir.Graph) -> dict[ir.Node, ir.Node | None]:
    """The immediate post-dominator of each node: the first one that every path from it to the outputs goes through.

    None stands for the outputs themselves: a node that computes an output, that nothing reads, or whose paths meet
    only there.
    """
    readers: dict[ir.Node, dict[ir.Node, None]] = {node: {} for node in graph}
    for node in graph:
        for producer in _producers(all_reads(node), readers):
            readers[producer][node] = None

    def below(node: ir.Node) -> tuple[list[ir.Node], bool]:
        found = list(readers[node])
        return found, not found or any(value.is_graph_output() for value in node.outputs)

    return _immediate(list(reversed(list(graph))), below)


def _producers(values: Iterable[ir.Value], members: Iterable[ir.Node]) -> list[ir.Node]:
    assert isinstance(members, set | dict)
    found: dict[ir.Node, None] = {}
    for value in values:
        producer = value.producer()
        if producer is not None and producer in members:
            found[producer] = None
    return list(found)


def _immediate(
    order: list[ir.Node], before: Callable[[ir.Node], tuple[list[ir.Node], bool]]
) -> dict[ir.Node, ir.Node | None]:
    """Immediate dominators in an acyclic graph, in one pass in topological order.

    Cooper, Harvey and Kennedy, "A Simple, Fast Dominance Algorithm" (2001): the dominator of a node is the nearest
    common ancestor, in the dominator tree so far, of all that comes before it. Without cycles nothing has to be
    repeated. Ancestors are found by jumping up the tree in powers of two, so the cost is n log n.
    """
    jumps: dict[ir.Node, list[ir.Node | None]] = {}
    depth: dict[ir.Node | None, int] = {None: 0}

    def ancestor(node: ir.Node | None, level: int) -> ir.Node | None:
        while node is not None and depth[node] > level:
            step = (depth[node] - level).bit_length() - 1
            node = jumps[node][min(step, len(jumps[node]) - 1)]
        return node

    def common(left: ir.Node | None, right: ir.Node | None) -> ir.Node | None:
        level = min(depth[left], depth[right])
        left, right = ancestor(left, level), ancestor(right, level)
        while left is not right:
            assert left is not None and right is not None
            mine, other = jumps[left], jumps[right]
            step = max((i for i in range(len(mine)) if mine[i] is not other[i]), default=0)
            left, right = mine[step], other[step]
        return left

    for node in order:
        predecessors, from_root = before(node)
        found: ir.Node | None = None
        if not from_root:
            found = predecessors[0]
            for other in predecessors[1:]:
                found = common(found, other)
        depth[node] = depth[found] + 1
        table: list[ir.Node | None] = [found]
        while (at := table[-1]) is not None and len(jumps[at]) >= len(table):
            table.append(jumps[at][len(table) - 1])
        jumps[node] = table
    return {node: jumps[node][0] for node in order}


def part_of(model: ir.Model, nodes: Iterable[ir.Node], name: str = "part") -> tuple[ir.Model, list[str]]:
    """Some nodes of the main graph as a model of their own, and the names of the values that flow into it.

    Constants come along, and are shared. Values that nodes outside read, and outputs of the model, become its outputs.
    """
    graph = model.graph
    inside = list(nodes)
    members = set(inside)
    inputs: dict[ir.Value, None] = {}
    constants: dict[ir.Value, None] = {}
    for node in inside:
        for value in all_reads(node):
            if value.producer() in members or (value.graph is not graph and not value.is_graph_input()):
                continue
            (constants if facts.is_constant(value) else inputs).setdefault(value)
    outputs = [
        value
        for node in inside
        for value in node.outputs
        if value.is_graph_output() or any(use.node not in members for use in value.uses())
    ]
    view = ir.GraphView(
        list(inputs), outputs, nodes=inside, initializers=list(constants),
        opset_imports=dict(graph.opset_imports), name=name,
    )  # fmt: skip
    return ir.Model(view.clone(), ir_version=model.ir_version), [value.name or "" for value in inputs]
