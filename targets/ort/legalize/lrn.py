"""LRN(x)  ==>  x / (bias + alpha/size * (B @ x^2)) ** beta, with B a banded 1x1 convolution

ONNX Runtime's LRN kernel is scalar and runs on one thread; ``benchmarks/operators.py`` shows its share of AlexNet,
ZFNet and Inception v1. Times as fast (``benchmarks/rewrites.py``, 2 threads, AMD EPYC with AVX-512): 8.88 on
[1, 64, 56, 56]. The sum over neighbouring channels is a convolution with a band matrix, which the blocked kernels
take at full speed.

Forms: LRN as ONNX defines it (operator LRN, opset 13), 4-D input, static channels.

Refuses: another exponent than 1/4, 1/2, 3/4 or 1 (a general power costs more than is won); more than 1024 channels
(the band matrix would be larger than the feature map).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.rewrite import Builder, Refuse, Rewrite

_MOST_CHANNELS = 1024


class LegalizeLrn(Rewrite):
    """Local response normalisation as a 1x1 convolution and square roots."""

    name = "lrn-to-conv"
    roots = ("LRN",)

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        x = node.inputs[0]
        shape = facts.dims(x)
        numpy_dtype = facts.numpy_dtype(x)
        if x is None or shape is None or len(shape) != 4 or shape[1] is None or numpy_dtype != np.float32:
            return None
        channels = shape[1]
        size = facts.attribute(node, "size")
        alpha = facts.attribute(node, "alpha", 1e-4)
        beta = facts.attribute(node, "beta", 0.75)
        bias = facts.attribute(node, "bias", 1.0)
        quarters = round(beta * 4)
        if abs(beta * 4 - quarters) > 1e-6 or quarters not in (1, 2, 3, 4):
            raise Refuse(f"the exponent {beta:g} is no quarter, half, three quarters or one")
        if channels > _MOST_CHANNELS:
            raise Refuse(f"{channels} channels make the band matrix too large")

        out = node.outputs[0]
        offsets = np.subtract.outer(np.arange(channels), np.arange(channels))
        # ONNX: the window reaches floor((size-1)/2) channels back and ceil((size-1)/2) forward.
        band = (offsets <= (size - 1) // 2) & (offsets >= -(size // 2))
        weight = (band * (alpha / size)).astype(np.float32).reshape(channels, channels, 1, 1)
        offset = np.full(channels, bias, dtype=np.float32)
        square = build.op("Mul", x, x, like=out)
        base = build.op("Conv", square, weight, offset, like=out, kernel_shape=[1, 1])
        if quarters == 4:
            divisor = base
        else:
            half = build.op("Sqrt", base, like=out)
            divisor = half
            if quarters in (1, 3):
                quarter = build.op("Sqrt", half, like=out)
                divisor = quarter if quarters == 1 else build.op("Mul", half, quarter, like=out)
        return build.op("Div", x, divisor, like=out)
