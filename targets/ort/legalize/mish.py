"""Mish(x)  ==>  x * (n / (n + 2)), n = e (e + 2), e = exp(min(x, 20))

With e = exp(x), tanh(log(1 + e)) = ((1 + e)^2 - 1) / ((1 + e)^2 + 1) = n / (n + 2), without cancellation for any x;
beyond 20 the quotient is 1 in float32. ONNX Runtime computes Mish as Softplus, Tanh and Mul, the first of which is
scalar. Times as fast (``benchmarks/rewrites.py``, 2 threads, AMD EPYC with AVX-512): 7.19 on [1, 64, 56, 56]. Mish:
https://arxiv.org/abs/1908.08681

Refuses: nothing. Leaves alone: types other than float32.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.rewrite import Builder, Rewrite

_SATURATED = np.array(20, np.float32)
_TWO = np.array(2, np.float32)


class LegalizeMish(Rewrite):
    """Mish by one exponential."""

    name = "mish-to-exp"
    roots = ("Mish",)

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """The quotient first: ``x * n`` would overflow."""
        x, out = node.inputs[0], node.outputs[0]
        if x is None or x.dtype != ir.DataType.FLOAT:
            return None
        power = build.op("Exp", build.op("Min", x, _SATURATED, like=out), like=out)
        above = build.op("Mul", power, build.op("Add", power, _TWO, like=out), like=out)
        gate = build.op("Div", above, build.op("Add", above, _TWO, like=out), like=out)
        return build.op("Mul", x, gate, like=out)
