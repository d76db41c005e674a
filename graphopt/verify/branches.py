"""Branches of a graph that no verified input has reached: what passes did in them was not compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.ir import facts
from graphopt.ir.graphs import add_constant, free_name, subgraphs_of, subgraphs_of_attribute, with_subgraphs
from graphopt.ir.hash import tensor_hash
from graphopt.ir.model import clone, leading_to
from graphopt.verify.session import Session

_THEN, _ELSE = "then_branch", "else_branch"
_ONE_EACH = ("scan_output_axes", "scan_output_directions")
"""Attributes of Scan that have an entry for each stacked output."""


def unreached(
    model: ir.Model, samples: Sequence[Feeds], *, before: ir.Model | None = None, threads: int = 0
) -> list[str]:
    """Names of the branches of If nodes that none of these inputs takes, as ``node/else_branch``.

    Those in branches and in the bodies of loops too, but none within a branch that is not taken itself; a node whose
    condition is a constant is not looked at.

    Args:
        model: Left as it was.
        samples: Each is run once more, as far as the conditions.
        before: What the model was made from: branches that are in it as they are here are left out.

    Raises:
        TargetError: The conditions cannot be computed.
    """
    branches = _branches(model)
    if not samples or not branches:
        return []
    counting = clone(model)
    counts = _Counter(counting).of(counting.graph)
    taken = dict.fromkeys(counts, 0)
    session = Session(leading_to(counting, [value.name or "" for value in counts.values()]), threads=threads)
    for feeds in samples:
        found = session.run(feeds)
        for branch, value in counts.items():
            taken[branch] += int(found[value.name or ""])
    missing = {name: branches[name] for name, times in taken.items() if not times}
    within = {id(inner) for branch in missing.values() for inner in with_subgraphs(branch)[1:]}
    known = {} if before is None else {name: _content(branch) for name, branch in _branches(before).items()}
    return [
        name
        for name, branch in missing.items()
        if id(branch) not in within and _content(branch) != known.get(name)
    ]


def _branches(model: ir.Model) -> dict[str, ir.Graph]:
    """The branches of which a condition chooses that depends on something, by name."""
    return {
        f"{_name(node)}/{side}": node.attributes[side].as_graph()
        for node in model.graph.all_nodes()
        if node.op_type == "If" and node.domain == "" and not facts.is_constant(node.inputs[0])
        for side in (_THEN, _ELSE)
    }


def _name(node: ir.Node) -> str:
    return node.name or node.outputs[0].name or "If"


def _content(graph: ir.Graph) -> list[object]:
    """What a branch computes, and of what: equal for equal branches."""
    names = [[value.name for value in values] for values in (graph.inputs, graph.outputs)]
    nodes = [
        (
            node.domain,
            node.op_type,
            [None if value is None else value.name for value in node.inputs],
            [value.name for value in node.outputs],
            {name: _meaning(attribute) for name, attribute in node.attributes.items()},
        )
        for node in graph
    ]
    return [names, nodes]


def _meaning(attribute: ir.Attr) -> object:
    graphs = subgraphs_of_attribute(attribute)
    if graphs:
        return [_content(graph) for graph in graphs]
    return (
        tensor_hash(attribute.as_tensor()) if attribute.type == ir.AttributeType.TENSOR else attribute.value
    )


class _Counter:
    """Lets a model count how often each branch is taken.

    Counts leave the branches and bodies that they are made in as further outputs: a branch gives none for what is in
    the other one, and a loop stacks those of its iterations, which are added up.

    Args:
        model: Gets nodes; what it computes stays.
    """

    def __init__(self, model: ir.Model) -> None:
        self._names = {value.name for node in model.graph.all_nodes() for value in node.outputs}
        self._names.update(value.name for value in (*model.graph.inputs, *model.graph.initializers.values()))
        self._zero, self._one = (
            add_constant(model.graph, name, ir.tensor(np.array(number, np.int32), name=name))
            for name, number in ((self._free("count/zero"), 0), (self._free("count/one"), 1))
        )

    def of(self, graph: ir.Graph) -> dict[str, ir.Value]:
        """Scalars of type int32 in ``graph``: how often each branch in it is taken, by name."""
        found: dict[str, ir.Value] = {}
        for node in list(graph):
            if node.domain != "":
                continue
            if node.op_type == "If":
                found |= self._of_branches(graph, node)
            elif node.op_type in ("Loop", "Scan"):
                found |= self._of_body(graph, node)
        return found

    def _of_branches(self, graph: ir.Graph, node: ir.Node) -> dict[str, ir.Value]:
        branches = {name: node.attributes[name].as_graph() for name in (_THEN, _ELSE)}
        within = {name: self.of(branch) for name, branch in branches.items()}
        found: dict[str, ir.Value] = {}
        for side, counts in within.items():
            for name, count in counts.items():
                for other, branch in branches.items():
                    branch.outputs.append(
                        count if other == side else self._add(branch, None, "Identity", self._zero)
                    )
                found[name] = self._further_output(node)
        condition = node.inputs[0]
        if condition is not None and not facts.is_constant(condition):
            truth = self._add(graph, node, "Cast", condition, to=ir.DataType.INT32)
            found[f"{_name(node)}/{_THEN}"] = then = self._add(graph, node, "ReduceSum", truth, keepdims=0)
            found[f"{_name(node)}/{_ELSE}"] = self._add(graph, node, "Sub", self._one, then)
        return found

    def _of_body(self, graph: ir.Graph, node: ir.Node) -> dict[str, ir.Value]:
        found: dict[str, ir.Value] = {}
        for body in subgraphs_of(node):
            for name, count in self.of(body).items():
                body.outputs.append(count)
                stacked = self._further_output(node)
                found[name] = self._add(graph, node, "ReduceSum", stacked, after=True, keepdims=0)
                for each in _ONE_EACH:
                    if each in node.attributes:
                        node.attributes[each] = ir.AttrInt64s(each, [*node.attributes[each].as_ints(), 0])
        return found

    def _further_output(self, node: ir.Node) -> ir.Value:
        node.resize_outputs(len(node.outputs) + 1)
        value = node.outputs[-1]
        value.name = self._free("count")
        return value

    def _add(
        self,
        graph: ir.Graph,
        place: ir.Node | None,
        op_type: str,
        *inputs: ir.Value,
        after: bool = False,
        **attributes: int,
    ) -> ir.Value:
        """The result of a new node before or after ``place``, or at the end."""
        node = ir.node(op_type, inputs, attributes, name=self._free("count"))
        node.outputs[0].name = node.name
        if place is None:
            graph.append(node)
        elif after:
            graph.insert_after(place, node)
        else:
            graph.insert_before(place, node)
        return node.outputs[0]

    def _free(self, wanted: str) -> str:
        name = free_name(wanted, self._names)
        self._names.add(name)
        return name


__all__ = ["unreached"]
