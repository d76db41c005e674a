"""x / (1 + |x|)  ==>  Softsign(x)

Forms: PyTorch's exporters write ``torch.nn.Softsign`` as Abs, Add and Div.

Refuses: an inner value that something else reads. Not matched: float64 (no kernel in ONNX Runtime), and a constant
of higher rank than x.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.passes._elementwise import keeps_type_and_shape
from graphopt.rewrite import Builder, Match, PatternRewrite, const, op, var

_x = var("x")


class Softsign(PatternRewrite):
    """Softsign."""

    name = "softsign"
    patterns = (op("Div", _x, op("Add", op("Abs", _x), const(1.0))),)

    def build(self, match: Match, build: Builder) -> ir.Value | None:
        x = match.value("x")
        if not keeps_type_and_shape(match, x):
            return None
        return build.op("Softsign", x, like=match.root.outputs[0])
