"""How labels go through operators: node by node, in topological order.

The rule for an operator says which labels its outputs have, ties those that stand for one index, and pins what the
operator mixes (a softmax, a normalization, a mean over the axis). What has no rule pins all that it reads.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.prune.flow import elementwise, images, merged, parts, products, sequences, views
from graphopt.prune.flow.base import Flow, Rule

RULES: Mapping[str, Rule] = {
    **elementwise.RULES,
    **images.RULES,
    **parts.RULES,
    **products.RULES,
    **sequences.RULES,
    **views.RULES,
}
"""By operator of ONNX."""

_ALSO_OF_NUMBERS = frozenset({*elementwise.ELEMENTWISE, "Expand"})
"""Whose results have axes although the first operand may be a single number."""


def follow(graph: ir.Graph) -> Flow:
    """The labels of all tensors of a main graph."""
    flow = Flow()
    for node in graph:
        rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        values = [value for value in node.inputs if value is not None]
        if rule is None or any(facts.rank(value) is None for value in values):
            why = "may not read fewer of them" if rule is None else "reads what has no known rank"
            flow.refuse(node, f"{node.op_type} {why}")
        elif values and (facts.rank(values[0]) or node.op_type in _ALSO_OF_NUMBERS):
            before = flow.begin()
            rule(flow, node)
            flow.pin_rest(node, before)
            merged.hand_on(flow, node)
    for value in graph.outputs:
        for axis in range(facts.rank(value) or 0):
            flow.labels.pin(flow.labels.of(value, axis), "", f"{value.name!r} is an output of the model")
        for labels in flow.labels.merged(value).values():
            flow.labels.pin(labels, "", f"{value.name!r} is an output of the model")
    return flow


__all__ = ["RULES", "Flow", "follow"]
