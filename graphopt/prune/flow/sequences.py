"""Attention and recurrent layers: heads and hidden units."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.prune.flow.base import Flow, Rule
from graphopt.prune.labels import Indices


def _attention(flow: Flow, node: ir.Node) -> None:
    """Heads go as a whole, those of keys and values with the queries that share them (ONNX operator Attention).

    Where all queries share one head of keys and values, that one stays and the queries' heads go one by one.
    """
    q, k, v = node.inputs[:3]
    merged = facts.rank(q) == 3
    if any(value is not None for value in node.inputs[4:]) or any(output.name for output in node.outputs[1:]):
        flow.refuse(node, "it keeps keys and values")
        return
    axis = 2 if merged else 1
    of_q, of_k, of_v = (flow.labels.of(value, axis) for value in (q, k, v))
    dims = [facts.dims(value) or () for value in (q, k, v)]
    queries = int(facts.attribute(node, "q_num_heads", 0)) if merged else dims[0][1]
    shared = int(facts.attribute(node, "kv_num_heads", 0)) if merged else dims[1][1]
    width = dims[2][2] if merged else shared
    if not queries or not shared or not width or queries % shared:
        flow.refuse(node, "its heads are not known")
        return
    if of_q is None or (shared > 1 and (of_k is None or of_v is None)):
        flow.refuse(node, "its heads may not be removed")
        return
    # All that belongs to one head of keys and values, or to one of queries: [heads, elements].
    count = shared if shared > 1 else queries
    heads = flow.tie_rows(node, np.ascontiguousarray(of_q.reshape(count, -1).T))
    for other in (of_k, of_v):
        if shared > 1 and other is not None:
            own = flow.tie_rows(node, np.ascontiguousarray(other.reshape(shared, -1).T))
            flow.tie(node, heads, own, "")
    each = np.repeat(heads, queries // count)
    _attention_mask(flow, node, each)
    batch = flow.labels.of(q, 0)
    if merged:
        flow.labels.put(node.outputs[0], [batch, None, np.repeat(each, width // shared)])
    else:
        flow.labels.put(node.outputs[0], [batch, each, None, None])


def _attention_mask(flow: Flow, node: ir.Node, heads: Indices) -> None:
    """A mask, or a bias, may have a row for each head of the queries."""
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    rank = facts.rank(mask)
    if mask is None or rank is None:
        return
    of_heads = rank - 3
    per_head = of_heads >= 0 and (facts.dims(mask) or ())[of_heads] != 1
    flow.pin_axes(
        node, mask, [axis for axis in range(rank) if not (per_head and axis == of_heads)], "it is a mask"
    )
    if per_head:
        reason = "its mask has a row for each head, which may not be removed"
        flow.tie(node, heads, flow.labels.of(mask, of_heads), reason)


def _rotary(flow: Flow, node: ir.Node) -> None:
    """Heads go as a whole: the elements of each are turned (ONNX operator RotaryEmbedding)."""
    value = node.inputs[0]
    axes = flow.axes(value)
    for other in node.inputs[1:]:
        flow.pin_axes(node, other, range(facts.rank(other) or 0), "it holds angles for all heads")
    heads = int(facts.attribute(node, "num_heads", 0))
    last = axes[-1]
    if len(axes) == 3 and last is not None and heads and len(last) % heads == 0:
        own = flow.tie_rows(node, np.ascontiguousarray(last.reshape(heads, -1).T))
        axes[-1] = np.repeat(own, len(last) // heads)
    else:
        flow.pin_axes(node, value, [-1], "it turns the elements of a head")
        axes[-1] = None
    flow.labels.put(node.outputs[0], axes)


def _recurrent(gates: int) -> Rule:
    """Hidden units go with their gates, in all directions alike (ONNX specification, LSTM, GRU, RNN)."""

    def rule(flow: Flow, node: ir.Node) -> None:
        inputs: list[ir.Value | None] = [*node.inputs, *(None,) * (8 - len(node.inputs))]
        # Lengths of sequences say nothing of units.
        data, weight, recurrent, bias, _, first, second, peepholes = inputs
        hidden = int(facts.attribute(node, "hidden_size", 0))
        if not hidden or facts.attribute(node, "layout", 0):
            flow.refuse(node, "it is of a form whose units cannot be told apart")
            return
        flow.tie(node, flow.labels.of(data, 2), flow.labels.of(weight, 2), "it reads what may not be removed")
        if facts.is_constant(weight):
            flow.use(flow.labels.of(data, 2))
        units = flow.labels.of(recurrent, 2)
        reason = "its weights are not constant"
        parts = ((weight, gates), (recurrent, gates), (bias, 2 * gates), (peepholes, gates - 1))
        for value, copies in parts:
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
    "RotaryEmbedding": _rotary,
}
"""By operator of ONNX."""

__all__ = ["RULES"]
