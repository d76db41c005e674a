"""x * 0.5 * (1 + erf(x / sqrt(2)))  ==>  Gelu(x)

Forms: the exact GELU (https://arxiv.org/abs/1606.08415) as PyTorch's TorchScript exporter, PaddlePaddle, Keras and
hand-written layers spell it: the factor 0.5 on x, on the bracket, inside the bracket or last, as a product or as
a division by 2; the argument as ``Div(x, 1.4142135)`` or ``Mul(x, 0.70710677)``; in float16 with a Cast around
Erf. The result is the ONNX operator of opset 20 with ``approximate="none"``.

Refuses: an inner value that something else reads. Not matched: float64 (ONNX Runtime has no kernel for it), and a
constant of higher rank than x.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.passes._elementwise import keeps_type_and_shape
from graphopt.rewrite import Builder, Match, PatternRewrite, any_of, const, maybe, op, var
from graphopt.rewrite.pattern import AnyOf, Pattern

_x = var("x")


def _half_of(value: Pattern) -> AnyOf:
    return any_of(op("Mul", value, const(0.5)), op("Div", value, const(2.0)))


_argument = any_of(op("Div", _x, const(2.0**0.5)), op("Mul", _x, const(0.5**0.5)))
_erf = maybe("Cast", op("Erf", maybe("Cast", _argument)))
_bracket = op("Add", _erf, const(1.0))
_half_bracket = any_of(_half_of(_bracket), op("Add", _half_of(_erf), const(0.5)))
_whole = op("Mul", _x, _bracket)


class Gelu(PatternRewrite):
    """Gelu, ONNX operator of opset 20."""

    name = "gelu"
    patterns = (
        op("Mul", _half_of(_x), _bracket),
        op("Mul", _x, _half_bracket),
        op("Mul", _whole, const(0.5)),
        op("Div", _whole, const(2.0)),
    )

    def build(self, match: Match, build: Builder) -> ir.Value | None:
        x = match.value("x")
        if not keeps_type_and_shape(match, x):
            return None
        return build.op("Gelu", x, like=match.root.outputs[0], approximate="none")
