"""x * 0.5 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))  ==>  Gelu(x, approximate="tanh")

Forms: the tanh approximation of GELU (https://arxiv.org/abs/1606.08415, section 2) as GPT-2, BERT (TensorFlow),
Keras, ``torch.nn.functional.gelu(approximate="tanh")`` and fast variants spell it: the cube as ``Pow(x, 3)`` or a
product, ``x`` factored out (``x * 0.797 * (1 + 0.0447 x^2)``), multiplied out (``0.797 x + 0.0357 x^3``), the factor
0.5 in each place, or as ``x * sigmoid(2 * 0.797 * (...))``. ONNX operator of opset 20.

Refuses: an inner value that something else reads. Not matched: float64 (no kernel in ONNX Runtime), and a constant
of higher rank than x.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from graphopt.passes._elementwise import keeps_type_and_shape
from graphopt.rewrite import Builder, Match, PatternRewrite, any_of, const, op, var
from graphopt.rewrite.pattern import AnyOf, Pattern

_ROOT = math.sqrt(2 / math.pi)
_CUBIC = 0.044715

_x = var("x")
_square = any_of(op("Mul", _x, _x), op("Pow", _x, const(2.0)))
_cube = any_of(op("Pow", _x, const(3.0)), op("Mul", _x, _square))


def _half_of(value: Pattern) -> AnyOf:
    return any_of(op("Mul", value, const(0.5)), op("Div", value, const(2.0)))


def _times(factor: float, power: int) -> AnyOf:
    """``factor * x^power``, the factor first or last."""
    last = op("Mul", _square if power == 2 else _cube, const(factor))
    first = op("Mul", op("Mul", _x, const(factor)), _x)
    return any_of(last, first if power == 2 else any_of(op("Mul", first, _x), op("Mul", _x, first)))


def _argument(scale: float) -> AnyOf:
    """``scale * (x + 0.044715 x^3)`` in each order."""
    inner = any_of(op("Add", _x, _times(_CUBIC, 3)), op("Mul", _x, op("Add", _times(_CUBIC, 2), const(1.0))))
    polynomial = op("Add", _times(_CUBIC, 2), const(1.0))
    return any_of(
        op("Mul", inner, const(scale)),
        op("Mul", op("Mul", _x, const(scale)), polynomial),
        op("Mul", _x, op("Mul", polynomial, const(scale))),
        op("Add", op("Mul", _x, const(scale)), _times(scale * _CUBIC, 3)),
    )


_tanh = op("Tanh", _argument(_ROOT))
_bracket = op("Add", _tanh, const(1.0))
_half_bracket = any_of(_half_of(_bracket), op("Add", _half_of(_tanh), const(0.5)))
_whole = op("Mul", _x, _bracket)


class GeluTanh(PatternRewrite):
    """Gelu with the tanh approximation."""

    name = "gelu-tanh"
    patterns = (
        op("Mul", _half_of(_x), _bracket),
        op("Mul", _x, _half_bracket),
        op("Mul", _whole, const(0.5)),
        op("Div", _whole, const(2.0)),
        op("Mul", _x, op("Sigmoid", _argument(2 * _ROOT))),
    )

    def build(self, match: Match, build: Builder) -> ir.Value | None:
        x = match.value("x")
        if not keeps_type_and_shape(match, x):
            return None
        return build.op("Gelu", x, like=match.root.outputs[0], approximate="tanh")
