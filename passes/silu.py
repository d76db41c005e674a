"""x / (1 + exp(-k x))  ==>  x * Sigmoid(k x)

Forms: SiLU (k = 1; https://arxiv.org/abs/1702.03118) and the quick GELU of CLIP (k = 1.702) as one division by
the denominator of the logistic function. ``x * Sigmoid(k x)`` is what PyTorch's exporters write for both, and
the form that ONNX Runtime fuses into one kernel (QuickGelu). It is therefore the normal form here: ONNX
Runtime 1.31 has no kernel for the ``Swish`` operator of opset 24 and does not inline its function either.

Refuses: an inner value that something else reads. Not matched: float64, a constant of higher rank than x.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.passes._elementwise import keeps_type_and_shape
from graphopt.rewrite import Builder, Match, PatternRewrite, any_of, const, op, var

_x = var("x")
_exponent = any_of(
    op("Neg", any_of(op("Mul", _x, const(name="k")), _x)), op("Mul", _x, const(name="minus_k"))
)


class Silu(PatternRewrite):
    """SiLU and quick GELU, as the product with a Sigmoid."""

    name = "silu"
    patterns = (op("Div", _x, op("Add", op("Exp", _exponent), const(1.0))),)

    def build(self, match: Match, build: Builder) -> ir.Value | None:
        x = match.value("x")
        if not keeps_type_and_shape(match, x):
            return None
        factor = 1.0
        if "k" in match or "minus_k" in match:
            number = match.scalar("k" if "k" in match else "minus_k")
            if number is None:
                return None
            factor = number if "k" in match else -number
        argument = x
        if factor != 1.0:
            dtype = facts.numpy_dtype(x)
            argument = build.op("Mul", x, np.asarray(factor, dtype), like=x)
        gate = build.op("Sigmoid", argument, like=x)
        return build.op("Mul", x, gate, like=match.root.outputs[0])
