"""MatMul(MatMul(x, A), B)  ==>  MatMul(x, A B), and the same for Gemm and for Conv with a 1x1 Conv before or after

Forms: two projections without an activation between them, biases or not: low-rank factors that did not pay,
PP-OCRv4's neck (a 1x1 convolution to 360 channels and at once another to 96), a k x k convolution and then a 1x1 one,
or the reverse. The bias of the first goes through the second: ``B' = a B + b``.

Refuses: where the product has as many multiplications as the two or more (a bottleneck); an inner value, or a
weight, that something else reads; a biased 1x1 convolution before one that pads with zeros. Leaves alone: groups,
and a 1x1 convolution with a stride or pads.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.passes import _affine
from graphopt.passes._affine_linear import Array, LinearOp, linear_at
from graphopt.rewrite import Builder, Refuse, Rewrite

_PRODUCTS = ("Gemm", "MatMul")


class ConsecutiveLinear(Rewrite):
    """Two linear ops in a row become one, where that saves multiplications."""

    name = "consecutive-linear"
    roots = ("Add", "Conv", "Gemm", "MatMul")

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """One op with the product of the weights; it keeps the form of the one that is not a 1x1 convolution."""
        second = linear_at(node)
        if second is None or second.kind not in (*_PRODUCTS, "Conv"):
            return None
        if node.op_type == "MatMul" and _affine.has_bias(node):
            return None
        producer = second.source.producer()
        first = linear_at(producer)
        if first is None or producer is None or producer.graph is not node.graph:
            return None
        if first.outputs != second.inputs:
            return None
        if first.kind in _PRODUCTS and second.kind in _PRODUCTS:
            if second.kind == "Gemm" and facts.attribute(second.node, "transA", 0):
                return None
            keeper, positions = first, 1
        elif first.kind == second.kind == "Conv" and first.group == second.group == 1:
            if _is_pointwise(second):
                keeper, positions = first, _positions(first)
            elif _is_pointwise(first):
                keeper, positions = second, _positions(second)
            else:
                return None
        else:
            return None
        wide, inner, narrow = first.inputs, first.outputs, second.outputs
        before = wide * inner * (positions if keeper is first else 1)
        before += inner * narrow * (positions if keeper is second else 1)
        if wide * narrow * positions >= before:
            raise Refuse("the product of the weights is no smaller than its factors")
        if keeper is second and first.bias is not None and not second.uniform():
            raise Refuse("the op pads with zeros, which the bias of the one before must not reach")
        for linear in (first, second):
            _affine.must_own_weight(linear)
            if linear.last is not linear.node:
                _affine.must_be_alone(linear.node.outputs[0])
        _affine.must_be_alone(first.last.outputs[0])
        bias = second.bias
        if first.bias is not None:
            bias = second.response(first.bias) + (0.0 if bias is None else bias)
        return keeper.rebuilt(build, first.source, _product(first, second), bias, node.outputs[0])


def _is_pointwise(linear: LinearOp) -> bool:
    node = linear.node
    plain = all(stride == 1 for stride in facts.attribute(node, "strides", ()))
    return plain and _positions(linear) == 1 and linear.uniform()


def _positions(linear: LinearOp) -> int:
    return int(np.prod((facts.static_dims(linear.weight) or ())[2:]))


def _product(first: LinearOp, second: LinearOp) -> Array:
    """In the layout of the op that stays."""
    a, b = first.content(), second.content()
    if first.kind == "Conv":
        if _is_pointwise(second):
            return np.asarray(np.einsum("om,mi...->oi...", b.reshape(b.shape[:2]), a))
        return np.asarray(np.einsum("om...,mi->oi...", b, a.reshape(a.shape[:2])))
    flipped = first.kind == "Gemm" and facts.attribute(first.node, "transB", 0)
    a = a.T if flipped else a
    b = b.T if second.kind == "Gemm" and facts.attribute(second.node, "transB", 0) else b
    return np.asarray((a @ b).T if flipped else a @ b)
