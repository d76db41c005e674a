"""ConvTranspose(x, W)  ==>  DepthToSpace(Conv(x, W')), where the windows do not overlap

Forms: the upsampling heads of segmentation and text detection (DB, PP-OCRv4), U-Net decoders: kernel k x k with stride k
and no padding. Each input pixel makes its own k x k block, so the op is a 1x1 convolution to ``M k k`` channels followed
by DepthToSpace in CRD order (Shi et al., https://arxiv.org/abs/1609.05158). ONNX Runtime computes ConvTranspose as
a matrix product and a scatter (col2im), outside of its blocked layout.

Refuses: a weight that something else reads. Leaves alone: overlapping windows, padding, output padding,
dilations, groups, kernels that are not square, other ranks than 4, weights or biases that are not constant.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.rewrite import Builder, Refuse, Rewrite


class ConvTransposeToDepth(Rewrite):
    """A transposed convolution without overlap becomes a 1x1 convolution and a rearrangement."""

    name = "convtranspose-to-depth"
    roots = ("ConvTranspose",)

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """Weight [C, M, k, k] to [M k k, C, 1, 1], bias repeated k k times."""
        weight = node.inputs[1]
        shape = facts.static_dims(weight)
        if weight is None or not facts.is_constant(weight) or shape is None or len(shape) != 4:
            return None
        inputs, outputs, size, width = shape
        if size != width or size == 1 or facts.attribute(node, "strides", (1, 1)) != (size, size):
            return None
        plain = facts.attribute(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID")
        shifts = (facts.attribute(node, key, ()) for key in ("pads", "output_padding"))
        if not plain or any(any(values) for values in shifts) or "output_shape" in node.attributes:
            return None
        if facts.attribute(node, "group", 1) != 1 or any(
            step != 1 for step in facts.attribute(node, "dilations", ())
        ):
            return None
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        repeated = facts.constant(bias)
        if bias is not None and repeated is None:
            return None
        if len(weight.uses()) != 1:
            raise Refuse(f"the weight {weight.name!r} is shared")
        content = facts.constant(weight)
        assert content is not None
        folded = content.transpose(1, 2, 3, 0).reshape(outputs * size * size, inputs, 1, 1)
        operands = [folded] if repeated is None else [folded, np.repeat(repeated, size * size)]
        source = facts.dims(node.inputs[0])
        batch, rows, columns = (source[0], *source[2:]) if source is not None else (None, None, None)
        inner = build.op("Conv", node.inputs[0], *operands, shape=[batch, len(folded), rows, columns])
        return build.op("DepthToSpace", inner, like=node.outputs[0], blocksize=size, mode="CRD")
