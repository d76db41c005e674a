"""Axes of unknown size along which labels repeat, as where the heads of all samples lie in one axis.

Reshape makes them and takes them apart (:mod:`graphopt.prune.flow.views`). What works on each entry by itself hands
them on; all else pins them.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.prune.flow import elementwise
from graphopt.prune.flow.base import Flow
from graphopt.prune.labels import Indices

_EACH = frozenset({*elementwise.ELEMENTWISE, *elementwise.UNARY})


def hand_on(flow: Flow, node: ir.Node) -> None:
    """Hand such labels from what a node reads to what it makes, or pin them."""
    kind = node.op_type if node.domain in ("", "ai.onnx") else ""
    if not any(flow.labels.merged(value) for value in node.inputs) or kind in ("Reshape", "Shape"):
        return
    value = node.inputs[0]
    if kind == "Transpose":
        order = facts.attribute(node, "perm", None) or range(facts.rank(value) or 0)[::-1]
        for axis, labels in flow.labels.merged(value).items():
            flow.labels.put_merged(node.outputs[0], list(order).index(axis), labels)
    elif kind == "Softmax":
        rank = facts.rank(value) or 1
        for axis, labels in flow.labels.merged(value).items():
            if axis == facts.attribute(node, "axis", -1) % rank:
                flow.labels.pin(labels, node.name or kind, "Softmax is over all of them")
            else:
                flow.labels.put_merged(node.outputs[0], axis, labels)
    elif kind in _EACH or kind == "MatMul":
        _aligned(flow, node)
    else:
        pin(flow, node, f"{node.op_type} mixes them")


def pin(flow: Flow, node: ir.Node, reason: str) -> None:
    """Pin all such labels that a node reads."""
    for value in node.inputs:
        for labels in flow.labels.merged(value).values():
            flow.labels.pin(labels, node.name or node.op_type, reason)


def _aligned(flow: Flow, node: ir.Node) -> None:
    """Operands whose axes are aligned from the last one on; of a product the one that is summed over is mixed."""
    rank = facts.rank(node.outputs[0])
    operands = [value for value in node.inputs if value is not None]
    if rank is None or (node.op_type == "MatMul" and min(facts.rank(value) or 0 for value in operands) < 2):
        pin(flow, node, "the rank of its result is not known")
        return
    for axis in range(-rank, 0):
        own: list[Indices] = []
        is_plain = True
        for slot, value in enumerate(operands):
            of_value, place = facts.rank(value) or 0, axis + (facts.rank(value) or 0)
            if node.op_type == "MatMul" and axis >= -2 and axis != slot - 2:
                continue
            labels = flow.labels.merged(value).get(place)
            if labels is not None:
                own.append(labels)
            elif 0 <= place < of_value and (facts.dims(value) or ())[place] != 1:
                is_plain = False
        for other in own[1:]:
            flow.tie(node, own[0], other, "it is combined with what may not be removed")
        if own and is_plain:
            flow.labels.put_merged(node.outputs[0], axis + rank, own[0])
        elif own:
            flow.labels.pin(own[0], node.name or node.op_type, "it is combined with what may not be removed")
    if node.op_type == "MatMul":
        for slot, value in enumerate(operands):
            inner = flow.labels.merged(value).get((facts.rank(value) or 0) - 1 - slot)
            if inner is not None:
                flow.labels.pin(inner, node.name or node.op_type, "it sums over them")


__all__ = ["hand_on", "pin"]
