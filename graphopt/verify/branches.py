"""Branches of a graph that no verified input has reached: what passes did in them was not compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.data.interface import Feeds
from graphopt.errors import TargetError
from graphopt.ir import facts
from graphopt.ir.model import leading_to
from graphopt.verify.session import Session

_SIDES = ((True, "then_branch"), (False, "else_branch"))


def unreached(model: ir.Model, samples: Sequence[Feeds], *, threads: int = 0) -> list[str]:
    """Names of the branches of If nodes in the main graph that none of these inputs takes, as ``node/else_branch``.

    Branches within branches are not looked at, nor a node whose condition is a constant.

    Args:
        model: Left as it was.
        samples: Each is run once more, as far as the conditions.
    """
    conditions = {
        node.name or node.outputs[0].name or "If": value
        for node in model.graph
        if node.op_type == "If" and node.domain == ""
        for value in node.inputs[:1]
        if value is not None and not facts.is_constant(value)
    }
    if not conditions or not samples:
        return []
    computed = dict.fromkeys(value.name or "" for value in conditions.values() if not value.is_graph_input())
    seen: dict[str, set[bool]] = {}
    try:
        session = Session(leading_to(model, list(computed)), threads=threads) if computed else None
        for feeds in samples:
            found = feeds if session is None else {**feeds, **session.run(feeds)}
            for name, value in conditions.items():
                if value.name in found:
                    seen.setdefault(name, set()).add(bool(np.asarray(found[value.name]).reshape(-1)[0]))
    except TargetError:
        return []
    return [
        f"{name}/{branch}" for name, taken in seen.items() for side, branch in _SIDES if side not in taken
    ]


__all__ = ["unreached"]
