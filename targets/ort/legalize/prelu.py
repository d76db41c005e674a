"""PRelu(x, a)  ==>  max(x, a * x), for a <= 1

ONNX Runtime's PRelu is a scalar broadcast kernel. Times as fast (``benchmarks/rewrites.py``, 2 threads, AMD EPYC
with AVX-512): 10.73 on [1, 64, 56, 56] with a slope for each channel. Forms: PRelu with constant slopes,
https://arxiv.org/abs/1502.01852, as every exporter writes it for slopes by channel (one slope for all becomes
LeakyRelu before).

Refuses: a slope above 1, where the maximum is not PRelu; a slope of 0, since 0 * inf is NaN. Leaves alone: slopes
that are not constant or not finite, types other than float32.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.rewrite import Builder, Refuse, Rewrite


class LegalizePRelu(Rewrite):
    """Parametric ReLU as a product and a maximum."""

    name = "prelu-to-max"
    roots = ("PRelu",)

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """The slope is broadcast as PRelu broadcasts it: to the shape of x."""
        x, slope = node.inputs[0], node.inputs[1]
        slopes = facts.constant(slope)
        if x is None or x.dtype != ir.DataType.FLOAT or slopes is None or not np.isfinite(slopes).all():
            return None
        if np.any(slopes > 1):
            raise Refuse("a slope above 1: max(x, a x) is not PRelu")
        if np.any(slopes == 0):
            raise Refuse("a slope of 0, and 0 times infinity is NaN")
        return build.op("Max", x, build.op("Mul", x, slope, like=node.outputs[0]), like=node.outputs[0])
