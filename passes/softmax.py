"""exp(x - max(x)) / sum(exp(x - max(x)))  ==>  Softmax(x), and x - max(x) - log(sum(...))  ==>  LogSoftmax(x)

Forms: hand-written softmax with ReduceMax, Sub, Exp, ReduceSum and Div, or Mul with a Reciprocal; the logarithm of it
as ``Sub(Sub(x, max), Log(sum))``.

Refuses: more than one axis; an inner value that something else reads. Not matched: a softmax without the maximum
(it overflows where the operator does not), reductions that drop their axis, a maximum over other axes than the
sum, and float64 (ONNX Runtime's kernel is no faster).
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.passes._elementwise import SINGLE_OR_HALF
from graphopt.rewrite import Builder, Match, PatternRewrite, any_of, const, op, var

_x = var("x")
_shifted = op("Sub", _x, op("ReduceMax", _x, const(name="max_axes"), name="max"), name="shifted")
_exp = op("Exp", _shifted, name="exp")
_sum = op("ReduceSum", _exp, const(name="sum_axes"), name="sum")


class Softmax(PatternRewrite):
    """Softmax and LogSoftmax along one axis."""

    name = "softmax"
    patterns = (
        op("Div", _exp, _sum),
        op("Mul", _exp, any_of(op("Reciprocal", _sum), op("Div", const(1.0, name="one"), _sum))),
        op("Sub", _shifted, op("Log", _sum)),
    )

    def build(self, match: Match, build: Builder) -> ir.Value | None:
        x, root = match.value("x"), match.root.outputs[0]
        rank = facts.rank(x)
        if rank is None or x.dtype not in SINGLE_OR_HALF:
            return None
        if not all(facts.attribute(match.node(name), "keepdims", 1) for name in ("max", "sum")):
            return None
        if "one" in match and (facts.rank(match["one"]) or 0) > rank:
            return None
        axes = facts.ints(match["max_axes"]) or ()
        others = facts.ints(match["sum_axes"]) or ()
        if not axes or sorted(axis % rank for axis in axes) != sorted(axis % rank for axis in others):
            return None
        if len(axes) > 1:
            raise match.refuse("it runs over more than one axis")
        op_type = "LogSoftmax" if match.root.op_type == "Sub" else "Softmax"
        return build.op(op_type, x, like=root, axis=axes[0])
