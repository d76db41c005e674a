"""clip(a x + b, 0, 1)  ==>  HardSigmoid(x, alpha=a, beta=b)

Forms: ``clamp(0.2 x + 0.5, 0, 1)`` (Keras, Theano), ``relu6(x + 3) / 6`` or ``* 1/6`` (MobileNetV3, PyTorch), with the
clipping as Clip, Min over Relu, or Min and Max in either order; an affine part with only a factor or only an
offset. In general ``s * clip(a x + b, 0, h)`` with ``s * h = 1`` gives alpha = s a, beta = s b.

Refuses: an inner value that something else reads. Not matched: float64 (no kernel in ONNX Runtime), factors that
differ by channel, and a constant of higher rank than x.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from graphopt.passes._elementwise import keeps_type_and_shape
from graphopt.rewrite import Builder, Match, PatternRewrite, any_of, const, op, var
from graphopt.rewrite.pattern import Op, Pattern

_x = var("x")
_scaled = any_of(op("Mul", _x, const(name="factor")), op("Div", _x, const(name="divisor")))
_affine = any_of(
    op("Add", any_of(_scaled, _x), const(name="offset")),
    op("Sub", any_of(_scaled, _x), const(name="minus_offset")),
    _scaled,
)


def _clipped(high: Pattern) -> tuple[Op, ...]:
    return (
        op("Clip", _affine, const(0.0), high),
        op("Min", op("Relu", _affine), high),
        op("Min", op("Max", _affine, const(0.0)), high),
        op("Max", op("Min", _affine, high), const(0.0)),
    )


_any_height = any_of(*_clipped(const(name="height")))


class HardSigmoid(PatternRewrite):
    """HardSigmoid with any slope and offset."""

    name = "hardsigmoid"
    patterns = (
        op("Div", _any_height, const(name="last_divisor")),
        op("Mul", _any_height, const(name="last_factor")),
        *_clipped(const(1.0)),
    )

    def build(self, match: Match, build: Builder) -> ir.Value | None:
        x = match.value("x")
        if not keeps_type_and_shape(match, x):
            return None
        number: dict[str, float] = {}
        for name in match:
            if name != "x":
                scalar = match.scalar(name)
                if scalar is None or not math.isfinite(scalar):
                    return None
                number[name] = scalar
        if number.get("divisor") == 0 or number.get("last_divisor") == 0:
            return None
        last = number.get("last_factor", 1.0) / number.get("last_divisor", 1.0)
        tolerance = 2e-3 if x.dtype == ir.DataType.FLOAT16 else 1e-6
        if abs(last * number.get("height", 1.0) - 1.0) > tolerance:
            return None
        slope = number.get("factor", 1.0) / number.get("divisor", 1.0)
        offset = number.get("offset", 0.0) - number.get("minus_offset", 0.0)
        return build.op("HardSigmoid", x, like=match.root.outputs[0], alpha=slope * last, beta=offset * last)
