"""Conv1x1(Concat(a, b), [V W])  ==>  Conv1x1(a, V) + Conv1x1(b, W)

Forms: the squeeze after the expand of SqueezeNet's fire modules, a MaxPool between or not. The Concat goes away,
and ONNX Runtime's blocked convolution adds the other's result as it stores its own, an activation after the sum
included. Times as fast (``benchmarks/rewrites.py``, 2 threads, AMD EPYC with AVX-512): 1.17 for the end of a fire
module on [1, 16, 54, 54].

Refuses: another reader of the concatenated tensor; more output channels than input channels, where the sum costs more
than the Concat. Leaves alone: other kernels than 1x1, strides, padding, groups, more than two parts, parts that are
no multiple of 16 channels, other types than float32.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from graphopt.ir import facts, windows
from graphopt.rewrite import Builder, Refuse, Rewrite
from graphopt.targets.ort.legalize._blocked import BLOCK, is_blocked


class SplitConcat(Rewrite):
    """A pointwise convolution of two tensors side by side, without putting them there."""

    name = "split-concat"
    roots = ("Conv",)

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """The sum of two convolutions, each with its columns of the weight."""
        weight = facts.constant(node.inputs[1])
        if weight is None or weight.ndim != 4 or weight.shape[2:] != (1, 1) or node.inputs[1] is None:
            return None
        if node.inputs[1].dtype != ir.DataType.FLOAT or facts.attribute(node, "group", 1) != 1:
            return None
        if any(step != 1 for step in facts.attribute(node, "strides", ())) or windows.is_padded(node):
            return None
        value = node.inputs[0]
        pool = None if value is None else value.producer()
        if pool is not None and pool.op_type == "MaxPool" and not pool.domain:
            joined = pool.inputs[0]
        else:
            joined, pool = value, None
        concat = None if joined is None else joined.producer()
        if (
            value is None
            or joined is None
            or concat is None
            or concat.graph is not node.graph
            or concat.domain
        ):
            return None
        if (
            concat.op_type != "Concat"
            or facts.attribute(concat, "axis") not in (1, -3)
            or len(concat.inputs) != 2
        ):
            return None
        parts = concat.inputs
        sizes = [(facts.dims(part) or (None,) * 2)[1] for part in parts]
        if any(size is None or size % BLOCK for size in sizes) or not all(is_blocked(part) for part in parts):
            return None
        for inner in {id(joined): joined, id(value): value}.values():
            if facts.sole_consumer(inner) is None:
                raise Refuse(f"the inner value {inner.name!r} is used elsewhere")
        if pool is not None and any(output.uses() or output.is_graph_output() for output in pool.outputs[1:]):
            return None
        if weight.shape[0] > weight.shape[1]:
            raise Refuse("more output than input channels: the sum would cost more than the Concat")

        border = sizes[0]
        attributes: dict[str, Any] = dict(node.attributes)
        results: list[ir.Value] = []
        for part, columns, rest in (
            (parts[0], weight[:, :border], node.inputs[2:]),
            (parts[1], weight[:, border:], ()),
        ):
            if pool is not None:
                part = _pooled(pool, part, build)
            results.append(build.op("Conv", part, columns, *rest, like=node.outputs[0], **attributes))
        return build.op("Add", *results, like=node.outputs[0])


def _pooled(pool: ir.Node, part: ir.Value | None, build: Builder) -> ir.Value:
    """``part`` through ``pool``."""
    shape, own = pool.outputs[0].shape, facts.dims(part)
    attributes: dict[str, Any] = dict(pool.attributes)
    result = build.op("MaxPool", part, dtype=ir.DataType.FLOAT, **attributes)
    if shape is not None and own is not None:
        result.shape = ir.Shape([shape[0], own[1], *shape[2:]])
    return result
