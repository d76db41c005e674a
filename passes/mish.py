"""x * tanh(softplus(x))  ==>  Mish(x)

Forms: Mish (https://arxiv.org/abs/1908.08681) as PyTorch's TorchScript exporter, PaddlePaddle and Darknet
converters write it. ONNX operator of opset 18. ONNX Runtime inlines it to the same three nodes, so a model is
neither faster nor slower there; a target with a kernel of its own, or a cheaper expansion, finds it whole. Times as
fast (``benchmarks/rewrites.py``, 2 threads, AMD EPYC with AVX-512): 1.00 on [1, 64, 56, 56].

Refuses: an inner value that something else reads. Not matched: float64 (no kernel in ONNX Runtime), and
``x * tanh(log(1 + exp(x)))``, which does without the scalar kernel of Softplus there.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.passes._elementwise import keeps_type_and_shape
from graphopt.rewrite import Builder, Match, PatternRewrite, op, var

_x = var("x")


class Mish(PatternRewrite):
    """Mish, ONNX operator of opset 18."""

    name = "mish"
    patterns = (op("Mul", _x, op("Tanh", op("Softplus", _x))),)

    def build(self, match: Match, build: Builder) -> ir.Value | None:
        x = match.value("x")
        if not keeps_type_and_shape(match, x):
            return None
        return build.op("Mish", x, like=match.root.outputs[0])
