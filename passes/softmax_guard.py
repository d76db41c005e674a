"""where(isnan(softmax(s)), 0, softmax(s)) @ v  ==>  softmax(s) @ v, or where(isnan(column), 0, softmax(s) @ v)

Forms: ``torch.nn.functional.scaled_dot_product_attention`` with a Boolean mask: PyTorch's exporters guard the
weights, because a row that is masked throughout with -inf becomes NaN. (The exporter of PyTorch 2.13 masks with the
lowest finite number instead, and guards none the less.) IsNaN and Where pass over all [queries, keys] once each.

A row of a softmax is either free of NaN or all NaN, which is when the row of scores holds NaN or +inf, or is -inf
throughout. So the guard is dropped where that provably cannot happen: the scores have a bound that follows from
constant weights, integer inputs and layer normalisations, and the mask is finite, or a constant that leaves each
row an entry. Elsewhere it moves behind the product with v, which has [queries, head size] elements, and tests one
column of the weights. A zero weight times an infinite or NaN v is NaN before; where v has no known bound,
``sum(0 * v)`` takes the place of 0, so that this stays.

Refuses: weights that something else than the product reads after the guard (attention weights as an output); keys
fewer than twice the head size, where moving gains nothing. To run after the pass ``attention``, which takes the
guard in.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.passes._bounds import UNKNOWN, Bounds, guarded_softmax
from graphopt.rewrite import Builder, Refuse, Rewrite


class SoftmaxGuard(Rewrite):
    """The guard against NaN after a softmax, dropped or moved to where it is cheap."""

    name = "softmax-guard"
    roots = ("Where", "MatMul")

    def __init__(self) -> None:
        self._bounds = Bounds()

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        if node.op_type == "Where":
            return self._drop(node)
        return self._move(node, build)

    def _drop(self, guard: ir.Node) -> ir.Value | None:
        softmax = guarded_softmax(guard.outputs[0])
        if softmax is None:
            return None
        if self._bounds.softmax_is_finite(softmax):
            return softmax.outputs[0]
        readers = guard.outputs[0].uses()
        if guard.outputs[0].is_graph_output() or not all(
            use.node.op_type == "MatMul" and use.idx == 0 for use in readers
        ):
            raise Refuse("a row may be NaN, and the guarded weights are read by more than a product")
        return None

    def _move(self, product: ir.Node, build: Builder) -> ir.Value | None:
        guarded, v = product.inputs
        softmax = guarded_softmax(guarded)
        if softmax is None or guarded is None or v is None:
            return None
        weights, root = softmax.outputs[0], product.outputs[0]
        shape, v_shape, dtype = weights.shape, v.shape, facts.numpy_dtype(weights)
        if shape is None or v_shape is None or len(shape) < 2 or len(v_shape) < 2 or dtype is None:
            return None
        if facts.sole_consumer(guarded) is not product:
            raise Refuse("the guarded weights are used elsewhere")
        keys, head_size = shape[-1], v_shape[-1]
        if isinstance(keys, int) and isinstance(head_size, int) and keys < 2 * head_size:
            raise Refuse(f"{keys} keys are too few for moving the guard to gain anything")
        first, one, last = np.array([0]), np.array([1]), np.array([-1])
        column = build.op("Slice", weights, first, one, last, shape=ir.Shape([*shape[:-1], 1]))
        is_nan = build.op("IsNaN", column, like=column, dtype=ir.DataType.BOOL)
        zero = build.constant(np.zeros((), dtype))
        if self._bounds.magnitude(v) == UNKNOWN:
            zeros = build.op("Mul", v, zero, like=v)
            columns = ir.Shape([*v_shape[:-2], 1, head_size])
            zero = build.op("ReduceSum", zeros, np.array([-2]), shape=columns, keepdims=1)
        unguarded = build.op("MatMul", weights, v, like=root)
        return build.op("Where", is_nan, zero, unguarded, like=root)
