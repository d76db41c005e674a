"""1 / (1 + exp(-x))  ==>  Sigmoid(x)

Forms: hand-written and converted models spell the logistic function out: ``Div(1, Add(1, Exp(Neg(x))))``, its
Reciprocal, with ``Mul(x, -1)`` for Neg, or through the identity ``0.5 * tanh(x / 2) + 0.5``.

Refuses: an inner value that something else reads. Not matched: float64, a constant of higher rank than x, and
``exp(x) / (1 + exp(x))``, which is NaN where the exponential overflows.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.passes._elementwise import keeps_type_and_shape
from graphopt.rewrite import Builder, Match, PatternRewrite, any_of, const, op, var

_x = var("x")
_negated = any_of(op("Neg", _x), op("Mul", _x, const(-1.0)))
_denominator = op("Add", op("Exp", _negated), const(1.0))
_half_x = any_of(op("Mul", _x, const(0.5)), op("Div", _x, const(2.0)))
_tanh = op("Tanh", _half_x)
_bracket = op("Add", _tanh, const(1.0))


class Sigmoid(PatternRewrite):
    """The logistic function."""

    name = "sigmoid"
    patterns = (
        op("Div", const(1.0), _denominator),
        op("Reciprocal", _denominator),
        op("Mul", _bracket, const(0.5)),
        op("Div", _bracket, const(2.0)),
        op("Add", any_of(op("Mul", _tanh, const(0.5)), op("Div", _tanh, const(2.0))), const(0.5)),
    )

    def build(self, match: Match, build: Builder) -> ir.Value | None:
        x = match.value("x")
        if not keeps_type_and_shape(match, x):
            return None
        return build.op("Sigmoid", x, like=match.root.outputs[0])
