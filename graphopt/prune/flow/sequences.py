"""Attention and recurrent layers: heads and hidden units."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.prune.flow.base import Flow, Rule


def _attention(flow: Flow, node: ir.Node) -> None:
    """Heads go as a whole, those of keys and values with the queries that share them (ONNX operator Attention)."""
    q, k, v = node.inputs[:3]
    merged = facts.rank(q) == 3
    if any(value is not None for value in node.inputs[4:]) or any(output.name for output in node.outputs[1:]):
        flow.refuse(node, "it keeps keys and values")
        return
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        mask = node.inputs[3]
        flow.pin_axes(node, mask, range(facts.rank(mask) or 0), "it is a mask")
        if (facts.rank(mask) or 0) >= 3 and (facts.dims(mask) or (1, 1, 1))[-3] != 1:
            flow.refuse(node, "its mask has a row for each head")
            return
    axis = 2 if merged else 1
    all_labels = [flow.labels.of(value, axis) for value in (q, k, v)]
    if any(labels is None for labels in all_labels):
        flow.refuse(node, "its heads may not be removed")
        flow.labels.put(node.outputs[0], [None] * (facts.rank(node.outputs[0]) or 0))
        return
    of_q, of_k, of_v = (labels for labels in all_labels if labels is not None)
    queries = int(facts.attribute(node, "q_num_heads", 0)) if merged else len(of_q)
    shared = int(facts.attribute(node, "kv_num_heads", 0)) if merged else len(of_k)
    if not queries or not shared or queries % shared:
        flow.refuse(node, "its heads are not known")
        return
    for labels in (of_q, of_k, of_v):
        # All that belongs to one head of keys and values: [heads, elements].
        flow.tie_rows(node, np.ascontiguousarray(labels.reshape(shared, -1).T))
    heads = [labels.reshape(shared, -1)[:, 0] for labels in (of_q, of_k, of_v)]
    for other in heads[1:]:
        flow.tie(node, heads[0], other, "")
    batch = flow.labels.of(q, 0)
    if merged:
        each = len(of_v) // shared
        out = np.repeat(heads[0], queries // shared * each)
        flow.labels.put(node.outputs[0], [batch, None, out])
    else:
        flow.labels.put(node.outputs[0], [batch, of_q, None, None])


def _recurrent(gates: int) -> Rule:
    """Hidden units go with their gates, in all directions alike (ONNX specification, LSTM, GRU, RNN)."""

    def rule(flow: Flow, node: ir.Node) -> None:
        inputs: list[ir.Value | None] = [*node.inputs, *(None,) * (8 - len(node.inputs))]
        data, weight, recurrent, bias, lengths, first, second, peepholes = inputs
        hidden = int(facts.attribute(node, "hidden_size", 0))
        if not hidden or facts.attribute(node, "layout", 0) or lengths is not None or peepholes is not None:
            flow.refuse(node, "it is of a form whose units cannot be told apart")
            return
        flow.tie(node, flow.labels.of(data, 2), flow.labels.of(weight, 2), "it reads what may not be removed")
        if facts.is_constant(weight):
            flow.use(flow.labels.of(data, 2))
        units = flow.labels.of(recurrent, 2)
        reason = "its weights are not constant"
        for value, copies in ((weight, gates), (recurrent, gates), (bias, 2 * gates)):
            labels = flow.labels.of(value, 1)
            if labels is not None and len(labels) == copies * hidden:
                units = flow.tie(node, units, flow.tie_rows(node, labels.reshape(copies, hidden)), reason)
            elif value is not None:
                flow.labels.pin(units, node.name or "", reason)
                units = None
        for state in (first, second):
            if state is not None:
                units = flow.tie(node, units, flow.labels.of(state, 2), "its first state is an input")
        axes = ([None, None, None, units], [None, None, units], [None, None, units])
        for output, own in zip(node.outputs, axes, strict=False):
            if facts.rank(output) == len(own):
                flow.labels.put(output, own)

    return rule


RULES: Mapping[str, Rule] = {
    "Attention": _attention,
    "GRU": _recurrent(3),
    "LSTM": _recurrent(4),
    "RNN": _recurrent(1),
}
"""By operator of ONNX."""

__all__ = ["RULES"]
