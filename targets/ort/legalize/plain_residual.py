"""LayerNormalization(Add(a, b))  ==>  LayerNormalization(Sum(a, b))

ONNX Runtime's SkipLayerNormFusion merges the addition into SkipLayerNormalization, whose CPU kernel is scalar. One
thread, interleaved, separate processes: at [1024, 384] 1546 us against 188 us for Add and LayerNormalization, at
[1, 2048] 11.6 against 4.9 us; SkipSimplifiedLayerNormalization 246 us against 124 us with RMSNormalization. The fusion
does not look for Sum, which adds the same numbers at the speed of Add. On MiniLM with fused attention (8 x 128 tokens)
1.10 to 1.14 on one or two threads. Bits stay.

Forms: the residual addition before any LayerNormalization or RMSNormalization.

Refuses: nothing. Not matched: operands not known to have the same shape, constants, integers.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.rewrite import Builder, Numerics, Rewrite

_NORMALIZATIONS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")


class PlainResidual(Rewrite):
    """An addition that ONNX Runtime does not fuse into SkipLayerNormalization."""

    name = "plain-residual"
    roots = ("Add",)
    numerics = Numerics.EXACT

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """Sum of the same operands, where a normalisation reads it."""
        left, right = node.inputs
        if not facts.is_float(node.outputs[0]) or facts.is_constant(left) or facts.is_constant(right):
            return None
        readers = [use for use in node.outputs[0].uses() if use.idx == 0 and not use.node.domain]
        if not any(use.node.op_type in _NORMALIZATIONS for use in readers):
            return None
        return build.op("Sum", left, right, like=node.outputs[0])
