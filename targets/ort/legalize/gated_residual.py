"""x + x * s  ==>  x * (s + 1), for a gate s that is smaller than x

Forms: squeeze and excitation with a residual around it (PP-OCRv4's RSE blocks:
``x + x * hardsigmoid(conv(pool(x)))``), where s is [N, C, 1, 1]. One pass over the feature map is saved; the
addition is done on the gate. Times as fast (``benchmarks/rewrites.py``, 2 threads, AMD EPYC with AVX-512): 1.03 for
such a block between two convolutions on [1, 96, 80, 80]. The two agree for finite numbers; where x is infinite and
s is 0 the left side is NaN.

Refuses: a product that something else reads. Leaves alone: constant gates, and gates not known to be at most a
quarter as large as x.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.rewrite import Builder, Match, PatternRewrite, op, var

_LEAST_RATIO = 4


class GatedResidual(PatternRewrite):
    """The residual of a gate goes into the gate."""

    name = "gated-residual"
    patterns = (op("Add", var("x"), op("Mul", var("x"), var("gate"))),)

    def build(self, match: Match, build: Builder) -> ir.Value | None:
        """One more on the small tensor, one pass less over the large one."""
        x, gate, out = match.value("x"), match.value("gate"), match.root.outputs[0]
        if x is gate or facts.is_constant(gate) or facts.is_constant(x) or not facts.is_float(x):
            return None
        if not facts.same_shape(x, out) or not _is_small(facts.dims(gate), facts.dims(x)):
            return None
        dtype = facts.numpy_dtype(gate)
        if dtype is None or gate.dtype != x.dtype:
            return None
        return build.op("Mul", x, build.op("Add", gate, np.ones((), dtype), like=gate), like=out)


def _is_small(gate: tuple[int | None, ...] | None, x: tuple[int | None, ...] | None) -> bool:
    """Whether the gate is broadcast over axes of ``x`` that are known to hold several elements."""
    if gate is None or x is None or len(gate) > len(x):
        return False
    gate = (1,) * (len(x) - len(gate)) + gate
    wide = [dim for dim, own in zip(x, gate, strict=True) if own == 1 and dim != 1]
    # A dynamic dimension counts as two.
    return int(np.prod([2 if dim is None else dim for dim in wide])) >= _LEAST_RATIO
