"""BatchNormalization(Conv(x, W, B))  ==>  Conv(x, s * W, s * B + b), with s = scale / sqrt(var + epsilon)

Forms: every exporter of a trained network writes the normalisation after Conv, ConvTranspose (groups too),
Gemm (``alpha``, ``beta``, ``transB``), MatMul, or MatMul and Add; some with a MaxPool, AveragePool, Transpose or
Reshape between the two, which the map passes through. Jacob et al., "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", section 3.2.

Refuses: a linear op whose output, or whose weight, something else reads; folded weights that overflow, or that
become subnormal in float16. Leaves alone: training mode, statistics that are not constant, a weight that is
not constant, a negative scale above a MaxPool or Relu.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.passes import _affine
from graphopt.rewrite import Builder, Rewrite


class BatchNormIntoConv(Rewrite):
    """Batch normalisation after a linear op becomes part of its weights."""

    name = "batchnorm-into-conv"
    roots = ("BatchNormalization",)

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """See :func:`graphopt.passes._affine.absorb_upwards`."""
        return _affine.absorb_upwards(node, build)
