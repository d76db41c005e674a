"""If(true) { a } else { b }  ==>  a

Forms: exported ``if self.training``, and shape checks such as squeezing a dimension only if it is 1
(TorchScript's exporter writes ``If(Equal(Gather(Shape(x), i), 1))``), once the condition is a constant.
Branches inside the chosen branch, and inside loop bodies, are chosen too.

Refuses: nothing; an If whose condition is not constant does not match.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from graphopt.ir import facts, provenance
from graphopt.ir.graphs import free_name, subgraphs_of
from graphopt.pipeline.base import Pass
from graphopt.rewrite import Gate, Numerics, RewriteLog, allow_all
from graphopt.rewrite.driver import remove_dead


class IfConstant(Pass):
    """The branch that a constant condition chooses takes the place of the If."""

    name: ClassVar[str] = "if-constant"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, model: ir.Model, log: RewriteLog, gate: Gate = allow_all) -> bool:
        """Visit each graph once; what a branch brings in is visited as it comes in."""
        changed = False
        pending = [model.graph]
        while pending:
            graph = pending.pop()
            for node in graph:
                # Nodes of a branch go before the If, where this loop has already been: look at them here.
                arrived = [node]
                while arrived:
                    candidate = arrived.pop()
                    branch = _chosen(candidate)
                    site = candidate.outputs[0].name or candidate.op_type
                    if branch is not None and log.admit(gate, self.name, site):
                        arrived += reversed(_inline(graph, candidate, branch))
                        changed = True
                    else:
                        pending += subgraphs_of(candidate)
        return changed


def _chosen(node: ir.Node) -> ir.Graph | None:
    if node.op_type != "If" or node.domain != "" or not node.outputs:
        return None
    condition = facts.scalar(node.inputs[0])
    if condition is None:
        return None
    return node.attributes["then_branch" if condition else "else_branch"].as_graph()


def _inline(graph: ir.Graph, node: ir.Node, branch: ir.Graph) -> list[ir.Node]:
    """Move what ``branch`` holds to the place of ``node``; returns the moved nodes."""
    results = list(branch.outputs)
    branch.outputs.clear()
    for value in list(branch.initializers.values()):
        assert value.name is not None
        branch.initializers.pop(value.name)
        value.name = free_name(value.name, graph.initializers, ".")
        graph.register_initializer(value)
    moved = list(branch)
    branch.remove(moved)
    graph.insert_before(node, moved)

    inside = set(moved)
    for old, new in zip(node.outputs, results, strict=True):
        name = old.name
        takes_name = new.producer() in inside and not new.is_graph_output()
        if old.is_graph_output() and not takes_name:
            identity = ir.node("Identity", [new], name=f"{name}/if-constant_identity")
            provenance.record(identity, "if-constant", [node])
            graph.insert_before(node, identity)
            moved.append(identity)
            new = identity.outputs[0]
            takes_name = True
        new.type = new.type or old.type
        if new.shape is None and old.shape is not None:
            new.shape = old.shape.copy()
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        if takes_name:
            old.name = f"{name}/dead"
            new.name = name
    remove_dead(graph, [node])
    return moved
