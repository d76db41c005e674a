"""where(k x > 20, x, softplus(k x) / k)  ==>  softplus(k x) / k

Forms: PyTorch 2's exporter writes the threshold of ``torch.nn.Softplus`` as a comparison and a Where around the
operator (for k = 1 without the factor). Beyond the threshold t the two differ by ``log(1 + exp(-t))``, which is
less than the rounding of t where t >= 15 in float32.

Refuses: a threshold that is too low; an inner value that something else reads. Not matched: float64, and a constant
of higher rank than x. ``log(1 + exp(x))`` is left alone: ONNX Runtime's kernel of Softplus is scalar.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from graphopt.passes._elementwise import keeps_type_and_shape
from graphopt.rewrite import Builder, Match, PatternRewrite, any_of, const, op, var

_HALF_ULP = 2.0**-24

_x = var("x")
_scaled = op("Mul", _x, const(name="factor"), name="scaled")


class SoftplusThreshold(PatternRewrite):
    """Softplus without its threshold."""

    name = "softplus"
    patterns = (
        op(
            "Where",
            op("Greater|GreaterOrEqual", _x, const(name="threshold")),
            _x,
            op("Softplus", _x, name="smooth"),
        ),
        op(
            "Where",
            op("Greater|GreaterOrEqual", _scaled, const(name="threshold")),
            _x,
            any_of(
                op("Div", op("Softplus", _scaled), const(name="divisor"), name="smooth"),
                op("Mul", op("Softplus", _scaled), const(name="inverse"), name="smooth"),
            ),
        ),
    )

    def build(self, match: Match, build: Builder) -> ir.Value | None:
        del build
        if not keeps_type_and_shape(match, match.value("x")):
            return None
        threshold = match.scalar("threshold")
        factor = match.scalar("factor") if "factor" in match else 1.0
        divisor = match.scalar("divisor") if "divisor" in match else factor
        if "inverse" in match:
            inverse = match.scalar("inverse")
            divisor = 1.0 / inverse if inverse else None
        if threshold is None or factor is None or divisor is None or factor <= 0:
            return None
        if abs(divisor / factor - 1.0) > 1e-6:
            return None
        if threshold < 1 or math.exp(-threshold) > _HALF_ULP * threshold:
            raise match.refuse(f"at the threshold {threshold:g} the two branches differ noticeably")
        return match.value("smooth")
