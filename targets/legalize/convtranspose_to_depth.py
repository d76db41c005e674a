"""ConvTranspose(act(ConvTranspose(x, A)), B)  ==>  DepthToSpace(Conv(act(Conv(x, A')), B')), without overlap

Forms: the upsampling heads of text detection (DB, PP-OCRv4) and segmentation: two transposed convolutions, each of
kernel k x k, stride k and no padding, with an activation between. Each input pixel makes a block of its own, so
both are 1x1 convolutions on the coarse grid (the second block-diagonal), and one DepthToSpace in CRD order at the
end puts the pixels in place (Shi et al., https://arxiv.org/abs/1609.05158). ONNX Runtime computes ConvTranspose as
a matrix product and a scatter, outside of its blocked layout, and the activation on the large plane. Times as fast
(``benchmarks/rewrites.py``, 2 threads, AMD EPYC with AVX-512): 1.95 from [1, 24, 160, 160] to [1, 1, 640, 640]. One
ConvTranspose alone is left as it is: a DepthToSpace of many channels costs more than it saves.

Refuses: weights or an inner value that something else reads; a second convolution whose zeros would cost more than
the first convolution. Leaves alone: overlapping windows, padding, dilations, groups, kernels that are not square,
other ranks than 4, weights or biases that are not constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts, windows
from graphopt.rewrite import Builder, Refuse, Rewrite

_ACTIVATIONS = frozenset(("Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh"))


class ConvTransposeToDepth(Rewrite):
    """Two transposed convolutions without overlap become pointwise convolutions and a rearrangement."""

    name = "convtranspose-to-depth"
    roots = ("ConvTranspose",)

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """Both weights on the coarse grid."""
        second = _spreading(node)
        activation = None if node.inputs[0] is None else node.inputs[0].producer()
        if second is None or activation is None or activation.graph is not node.graph:
            return None
        plain = activation.op_type == "ConvTranspose"
        if not plain and (activation.domain or activation.op_type not in _ACTIVATIONS):
            return None
        inner_value = activation.outputs[0] if plain else activation.inputs[0]
        producer = None if inner_value is None else inner_value.producer()
        first = None if producer is None or producer.graph is not node.graph else _spreading(producer)
        if first is None or producer is None:
            return None
        fine = (first.size * second.size) ** 2 * second.outputs
        coarse = first.size**2 * first.outputs
        if fine * coarse > coarse * first.inputs:
            raise Refuse("the second convolution on the coarse grid would cost more than the first")
        for value in (producer.outputs[0], activation.outputs[0]):
            if facts.sole_consumer(value) is None:
                raise Refuse(f"the inner value {value.name!r} is used elsewhere")
        for each in (first, second):
            if len(each.weight.uses()) != 1:
                raise Refuse(f"the weight {each.weight.name!r} is shared")
        shape = facts.dims(producer.inputs[0])
        batch, rows, columns = (shape[0], *shape[2:]) if shape is not None else (None, None, None)
        kernel = first.content.transpose(1, 2, 3, 0).reshape(coarse, first.inputs, 1, 1)
        operands = [kernel] if first.bias is None else [kernel, np.repeat(first.bias, first.size**2)]
        inner = build.op("Conv", producer.inputs[0], *operands, shape=[batch, coarse, rows, columns])
        if not plain:
            attributes: dict[str, Any] = dict(activation.attributes)
            inner = build.op(activation.op_type, inner, like=inner, **attributes)
        spread = _block_diagonal(second.content, first.size).reshape(fine, coarse, 1, 1)
        extra = [] if second.bias is None else [np.repeat(second.bias, fine // second.outputs)]
        outer = build.op("Conv", inner, spread, *extra, shape=[batch, fine, rows, columns])
        size = first.size * second.size
        return build.op("DepthToSpace", outer, like=node.outputs[0], blocksize=size, mode="CRD")


@dataclass(frozen=True)
class _Spreading:
    """A ConvTranspose whose windows do not overlap: weight [inputs, outputs, size, size]."""

    weight: ir.Value
    content: facts.Array
    bias: facts.Array | None
    inputs: int
    outputs: int
    size: int


def _spreading(node: ir.Node) -> _Spreading | None:
    if node.op_type != "ConvTranspose" or node.domain:
        return None
    weight = node.inputs[1]
    shape, content = facts.static_dims(weight), facts.constant(weight)
    if weight is None or content is None or shape is None or len(shape) != 4:
        return None
    size = shape[2]
    if shape[3] != size or facts.attribute(node, "strides", (1, 1)) != (size, size):
        return None
    if windows.is_padded(node) or any(facts.attribute(node, "output_padding", ())):
        return None
    steps = (facts.attribute(node, "group", 1), *facts.attribute(node, "dilations", ()))
    if "output_shape" in node.attributes or any(step != 1 for step in steps):
        return None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and not facts.is_constant(bias):
        return None
    return _Spreading(weight, content, facts.constant(bias), shape[0], shape[1], size)


def _block_diagonal(content: facts.Array, size: int) -> facts.Array:
    """Weight [M, N, k, k] for M * size * size channels in, rows in the order of one DepthToSpace by size * k."""
    inputs, outputs, inner, _ = content.shape
    spread = np.zeros((outputs, size, inner, size, inner, inputs, size, size), content.dtype)
    block = content.transpose(1, 2, 3, 0)
    for row in range(size):
        for column in range(size):
            spread[:, row, :, column, :, :, row, column] = block
    return spread
