"""Branches of a graph that no verified input has reached: what passes did in them was not compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.errors import TargetError
from graphopt.ir import facts
from graphopt.ir import model as ir_model
from graphopt.verify.session import Session

_SIDES = ((True, "then_branch"), (False, "else_branch"))


def unreached(model: ir.Model, samples: Sequence[Feeds], *, threads: int = 0) -> list[str]:
    """Names of the branches of If nodes in the main graph that none of these inputs takes, as ``node/else_branch``.

    Branches within branches are not looked at, nor a node whose condition is a constant.

    Args:
        model: Left as it was.
        samples: Each is run once more, as far as the conditions.
    """
    copy = ir_model.clone(model)
    graph = copy.graph
    conditions = {
        node.name or node.outputs[0].name or "If": node.inputs[0]
        for node in graph
        if node.op_type == "If" and node.domain == "" and not facts.is_constant(node.inputs[0])
    }
    if not conditions or not samples:
        return []
    computed = list(dict.fromkeys(value for value in conditions.values() if value is not None))
    given = {value.name for value in computed if value.is_graph_input()}
    graph.outputs[:] = [value for value in computed if value.name not in given]
    _keep_needed(graph)
    seen: dict[str, set[bool]] = {}
    try:
        session = Session(copy, threads=threads) if graph.outputs else None
        for feeds in samples:
            found = dict(feeds) if session is None else {**feeds, **session.run(feeds)}
            for name, value in conditions.items():
                if value is not None and value.name in found:
                    seen.setdefault(name, set()).add(bool(np.asarray(found[value.name]).reshape(-1)[0]))
    except TargetError:
        return []
    return [
        f"{name}/{branch}" for name, taken in seen.items() for side, branch in _SIDES if side not in taken
    ]


def _keep_needed(graph: ir.Graph) -> None:
    """Remove the nodes that no output needs."""
    needed = {value for value in graph.outputs}
    for node in reversed(list(graph)):
        if needed.isdisjoint(node.outputs):
            graph.remove(node)
            continue
        needed.update(value for value in node.inputs if value is not None)
        for inner in ir_model.subgraphs_of(node):
            for part in ir_model.with_subgraphs(inner):
                needed.update(value for each in part for value in each.inputs if value is not None)
                needed.update(part.outputs)


__all__ = ["unreached"]
