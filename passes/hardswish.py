"""x * clip(x + 3, 0, 6) / 6  ==>  HardSwish(x)

Forms: PaddlePaddle and PyTorch write the hard swish of MobileNetV3 (https://arxiv.org/abs/1905.02244) as
``Div(Mul(x, Clip(Add(x, 3), 0, 6)), 6)``, with the division before or after the product, or as a product
with 1/6; others as ``Mul(x, HardSigmoid(x, alpha=1/6, beta=1/2))``.

Refuses: an inner value that something else reads. Not matched: float64, and a constant of higher rank than x.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.passes._elementwise import keeps_type_and_shape
from graphopt.rewrite import Builder, Match, PatternRewrite, any_of, const, op, var

_x = var("x")
_shifted = op("Add", _x, const(3.0))
_clipped = any_of(
    op("Clip", _shifted, const(0.0), const(6.0)),
    op("Min", op("Relu", _shifted), const(6.0)),
    op("Min", op("Max", _shifted, const(0.0)), const(6.0)),
    op("Max", op("Min", _shifted, const(6.0)), const(0.0)),
)
_sixth = const(1 / 6)


class HardSwish(PatternRewrite):
    """HardSwish, ONNX operator of opset 14."""

    name = "hardswish"
    patterns = (
        op("Div", op("Mul", _x, _clipped), const(6.0)),
        op("Mul", op("Mul", _x, _clipped), _sixth),
        op("Mul", _x, any_of(op("Div", _clipped, const(6.0)), op("Mul", _clipped, _sixth))),
        op("Mul", op("Div", _x, const(6.0)), _clipped),
        op("Mul", op("Mul", _x, _sixth), _clipped),
        op("Mul", _x, op("HardSigmoid", _x, name="gate")),
    )

    def build(self, match: Match, build: Builder) -> ir.Value | None:
        """HardSwish takes no attributes: its slope is 1/6 and its offset 1/2."""
        x = match.value("x")
        if not keeps_type_and_shape(match, x):
            return None
        if "gate" in match:
            gate = match.node("gate")
            alpha = gate.attributes["alpha"].as_float() if "alpha" in gate.attributes else 0.2
            beta = gate.attributes["beta"].as_float() if "beta" in gate.attributes else 0.5
            if abs(alpha - 1 / 6) > 1e-6 or beta != 0.5:
                return None
        return build.op("HardSwish", x, like=match.root.outputs[0])
