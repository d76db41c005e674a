"""Attention(q, k + bk, v + bv) @ w + b  ==>  Attention(q, k, v) @ w + (b + bv @ w)

Forms: any Attention on [batch, length, size] whose key and value projections have biases, as those of BERT, GPT-2,
ViT and torch.nn.MultiheadAttention. A bias of the keys adds the same number to all scores of a query, which softmax
ignores. The weights of a query sum to 1, so the bias of the values passes through to the next projection. Times as
fast (``benchmarks/rewrites.py``, 2 threads, AMD EPYC with AVX-512): 1.14 for attention over 8 x 128 tokens with its
projections.

Refuses: nothing. Not matched: softcap (the scores are no longer shifted alike), a past key, further outputs; for
values: a mask that may close a row (its weights sum to 0), other readers of the attention, a projection without
a bias to take it up.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.passes import _linear, _masks
from graphopt.rewrite import Builder, Numerics, Rewrite


class AttentionBias(Rewrite):
    """Biases of keys and values that need not be added to every token."""

    name = "attention-bias"
    roots = ("Attention",)
    numerics = Numerics.REASSOCIATES

    def apply(self, node: ir.Node, build: Builder) -> list[ir.Value | None] | None:
        """The output of the attention, or of the projection that follows it."""
        inputs = list(node.inputs)
        while inputs and inputs[-1] is None:
            inputs.pop()
        if len(inputs) > 4 or len(node.outputs) != 1 or facts.attribute(node, "softcap", 0.0):
            return None
        if facts.rank(node.inputs[0]) != 3:
            return None
        attrs = {name: facts.attribute(node, name) for name in node.attributes}
        following = _following(node)
        values = _linear.of_add(None if inputs[2] is None else inputs[2].producer())
        folds = following is not None and values is not None and _weights_sum_to_one(node, inputs)
        keys = _linear.of_add(None if inputs[1] is None else inputs[1].producer())
        if keys is not None and keys.output is not inputs[2]:
            inputs[1] = keys.matmul.outputs[0]
        elif not folds:
            return None
        if not folds or following is None or values is None:
            return [build.op("Attention", *inputs, like=node.outputs[0], **attrs)]
        inputs[2] = values.matmul.outputs[0]
        attended = build.op("Attention", *inputs, like=node.outputs[0], **attrs)
        build.replace(following.output, _project(build, attended, following, values, attrs))
        return [None]


def _following(node: ir.Node) -> _linear.Linear | None:
    """The one projection with a bias that reads the attention."""
    matmul = facts.sole_consumer(node.outputs[0])
    layer = _linear.of_matmul(matmul)
    if layer is None or layer.x is not node.outputs[0]:
        return None
    add = facts.sole_consumer(layer.matmul.outputs[0])
    if add is None or add.graph is not node.graph:
        return None
    return _linear.of_add(add)


def _weights_sum_to_one(node: ir.Node, inputs: list[ir.Value | None]) -> bool:
    mask = inputs[3] if len(inputs) > 3 else None
    causal = bool(facts.attribute(node, "is_causal", 0))
    if any(facts.attribute(node, side, -1) != -1 for side in ("left_window_size", "right_window_size")):
        return False
    if mask is None:
        # Without a past each query sees at least the first key.
        return True
    return not causal and mask.dtype != ir.DataType.BOOL and _masks.stays_open([mask], [_masks.lowest(mask)])


def _project(
    build: Builder,
    attended: ir.Value,
    layer: _linear.Linear,
    values: _linear.Linear,
    attrs: dict[str, Any],
) -> ir.Value:
    assert layer.bias is not None and values.bias is not None
    own, passed = _linear.vector(layer.bias, layer), _linear.vector(values.bias, values)
    weight = facts.constant(layer.weight)
    assert own is not None and passed is not None and weight is not None
    groups = attrs["q_num_heads"] // attrs["kv_num_heads"]
    heads = passed.reshape(attrs["kv_num_heads"], -1)
    repeated = np.repeat(heads, groups, axis=0).reshape(-1)
    bias = (own + repeated @ weight.astype(np.float64)).astype(weight.dtype)
    product = build.op("MatMul", attended, layer.weight, like=layer.matmul.outputs[0])
    return build.op("Add", product, bias, like=layer.output)
