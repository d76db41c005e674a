"""constants that a branch alone reads  ==>  constants of that branch

ONNX Runtime lays weights out for its kernels, and fuses what follows a convolution, where the constant belongs to the
graph that reads it; a branch or a body that reads it from the graph around it is left as it is. Nothing is copied: a
constant that two branches read stays where it is.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir import model as ir_model
from graphopt.pipeline.base import Pass
from graphopt.rewrite import Application, Gate, Numerics, RewriteLog, allow_all


class LocalConstants(Pass):
    """Each constant in the innermost graph that holds all that reads it; EXACT."""

    name = "local-constants"
    numerics = Numerics.EXACT

    def run(self, model: ir.Model, log: RewriteLog, gate: Gate = allow_all) -> bool:
        """Move what only a subgraph reads into it."""
        around = dict(ir_model.scopes(model.graph))
        moved = False
        for graph in around:
            for name, value in list(graph.initializers.items()):
                home = _home(value, graph, around)
                if home is graph or not facts.is_constant(value) or value.is_graph_output():
                    continue
                application = Application(self.name, name)
                if not gate(application):
                    continue
                del graph.initializers[name]
                home.register_initializer(value)
                log.applied.append(application)
                moved = True
        return moved


def _home(value: ir.Value, graph: ir.Graph, around: Mapping[ir.Graph, ir.Graph | None]) -> ir.Graph:
    """The innermost graph that holds all readers of a constant of ``graph``."""
    paths = [_path(use.node.graph, graph, around) for use in value.uses()]
    home = graph
    for level in zip(*paths, strict=False):
        if any(step is not level[0] for step in level):
            break
        home = level[0]
    return home


def _path(
    inner: ir.Graph | None, outer: ir.Graph, around: Mapping[ir.Graph, ir.Graph | None]
) -> list[ir.Graph]:
    """The graphs from below ``outer`` down to ``inner``."""
    path: list[ir.Graph] = []
    while inner is not None and inner is not outer:
        path.append(inner)
        inner = around.get(inner)
    return path[::-1]


__all__ = ["LocalConstants"]
