"""MatMul(x, w) + bias[N]  ==>  MatMul(x, w) + bias[1, 1, N]

ONNX Runtime's MatMulAddFusion turns the left side into Reshape, Gemm, Reshape; it leaves a bias of rank 3 alone.
Its Gemm first writes the bias everywhere and then accumulates. Times as fast (``benchmarks/rewrites.py``, 2
threads, AMD EPYC with AVX-512): 1.28 for [1024, 384] x [384, 384], 1.25 for [1024, 384] x [384, 1536], 1.11 for
[16, 384] x [384, 384]. Bits stay.

Forms: any projection with a constant bias on activations of rank 3 or more.

Refuses: nothing. Not matched: activations of rank 2, where a bias of rank 3 would enlarge the result.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.rewrite import Builder, Numerics, Rewrite


class PlainBias(Rewrite):
    """A bias that ONNX Runtime does not fuse into a Gemm."""

    name = "plain-bias"
    roots = ("Add",)
    numerics = Numerics.EXACT

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """The same addition with a bias of rank 3."""
        for product, bias in (node.inputs, reversed(node.inputs)):
            array = facts.constant(bias)
            if array is None or array.ndim != 1 or array.shape[0] < 2 or product is None:
                continue
            layer = product.producer()
            if layer is None or layer.op_type != "MatMul" or layer.domain or (facts.rank(product) or 0) < 3:
                continue
            if not facts.is_constant(layer.inputs[1]) or facts.rank(layer.inputs[1]) != 2:
                continue
            return build.op("Add", product, array.reshape(1, 1, -1), like=node.outputs[0])
        return None
