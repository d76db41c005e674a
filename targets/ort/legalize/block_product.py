"""MatMul(x, DequantizeLinear<block_size>(W))  ==>  MatMulNBits(x, W)

ONNX Runtime 1.31 has products whose weight has 4 or 8 bits and a scale for each block along K (com.microsoft
MatMulNBits, https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md). It would make them of the
left side itself; written here, they are there for every provider, with the bias, and with the precision that was
judged. Where x is rounded to 8 bits by blocks as well (accuracy_level 4) they are, on the CPU at [1, 384] x [384,
1536], 1.5 to 2.8 times as fast as float32, and with 1024 rows 1.0 to 1.35; without it 8 bits take nine times as long
as float32 at one row. The integers are packed along K, two of 4 bits to a byte, the first in the low half; symmetric
ones are moved to the middle of the unsigned range.

Forms: MatMul and Gemm with a constant weight [K, N], int4, uint4, int8 or uint8, in blocks along K whose size is a
power of two from 16; alpha goes into the scales. float32 and float16.

Refuses: other block sizes. Leaves alone: a transposed first operand; scales or zero points that are computed.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir.facts import Array
from graphopt.quant.weight_only import ACCURACY_LEVEL
from graphopt.rewrite import Builder, Numerics, Refuse, Rewrite

_BITS = {ir.DataType.INT4: 4, ir.DataType.UINT4: 4, ir.DataType.INT8: 8, ir.DataType.UINT8: 8}
_SIGNED = frozenset({ir.DataType.INT4, ir.DataType.INT8})


class BlockProduct(Rewrite):
    """A product that reads its weight as it is stored."""

    name = "block-product"
    roots = ("MatMul", "Gemm")
    numerics: ClassVar[Numerics] = Numerics.REASSOCIATES

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """MatMulNBits, and the addition of a bias that is no constant vector."""
        x, source = node.inputs[0], None if len(node.inputs) < 2 else node.inputs[1]
        dequantize = None if source is None else source.producer()
        if x is None or dequantize is None or dequantize.op_type != "DequantizeLinear":
            return None
        block = facts.attribute(dequantize, "block_size", 0)
        axis = 1 if node.op_type == "Gemm" and facts.attribute(node, "transB", 0) else 0
        weight, scales, zeros = (*dequantize.inputs, None)[:3]
        integers, steps = facts.constant(weight), facts.constant(scales)
        if weight is None or integers is None or steps is None or not block or weight.dtype not in _BITS:
            return None
        if integers.ndim != 2 or facts.attribute(dequantize, "axis", 1) % 2 != axis:
            return None
        if facts.attribute(node, "transA", 0) or (zeros is not None and not facts.is_constant(zeros)):
            return None
        if block < 16 or block & (block - 1):
            raise Refuse(f"blocks of {block}: the kernel takes powers of two from 16")
        bits, signed = _BITS[weight.dtype], weight.dtype in _SIGNED
        rows = _rows(integers, axis)
        offsets = None if zeros is None else facts.constant(zeros)
        middle = 2 ** (bits - 1)
        shift = middle if signed else 0
        scale = _rows(steps, axis) * steps.dtype.type(facts.attribute(node, "alpha", 1.0))
        operands: list[ir.Value | Array | None] = [
            x,
            _packed((rows.astype(np.int16) + shift).astype(np.uint8), bits, block, middle),
            np.ascontiguousarray(scale),
        ]
        if offsets is not None or not signed:
            zero = np.zeros(steps.shape, np.int16) if offsets is None else offsets.astype(np.int16)
            operands.append(_packed_pairs((_rows(zero, axis) + shift).astype(np.uint8), bits))
        bias, after = self._bias(node, rows.shape[0], x)
        if bias is not None:
            operands += [None] * (5 - len(operands)) + [bias]
        level = node.metadata_props.get(ACCURACY_LEVEL)
        product = build.op(
            "MatMulNBits", *operands, domain="com.microsoft", like=node.outputs[0],
            K=rows.shape[1], N=rows.shape[0], bits=bits, block_size=block,
            accuracy_level=None if level is None else int(level),
        )  # fmt: skip
        if after is None:
            return product
        beta = facts.attribute(node, "beta", 1.0)
        if beta != 1.0:
            after = build.op("Mul", after, np.asarray(beta, steps.dtype))
        return build.op("Add", product, after, like=node.outputs[0])

    def _bias(self, node: ir.Node, columns: int, x: ir.Value) -> tuple[Array | None, ir.Value | None]:
        """The bias that the kernel adds, or the operand that is to be added after it."""
        given = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
        if given is None:
            return None, None
        array = facts.constant(given)
        if array is None or array.size not in (1, columns) or (array.size > 1 and array.shape[-1] != columns):
            return None, given
        scaled = array.reshape(-1) * array.dtype.type(facts.attribute(node, "beta", 1.0))
        return np.ascontiguousarray(np.broadcast_to(scaled, (columns,))), None


def _rows(array: Array, axis: int) -> Array:
    """With the outputs first."""
    return array if axis == 1 else array.T


def _packed(integers: Array, bits: int, block: int, middle: int) -> Array:
    """uint8 [N, K] as [N, blocks, bytes], the last block filled up."""
    count, width = integers.shape
    blocks = -(-width // block)
    full = np.full((count, blocks * block), middle, np.uint8)
    full[:, :width] = integers
    return _packed_pairs(full, bits).reshape(count, blocks, block * bits // 8)


def _packed_pairs(integers: Array, bits: int) -> Array:
    """Two of 4 bits to a byte along the last axis, the first in the low half."""
    if bits == 8:
        return np.ascontiguousarray(integers)
    if integers.shape[-1] % 2:
        integers = np.concatenate([integers, np.zeros((*integers.shape[:-1], 1), np.uint8)], axis=-1)
    return np.ascontiguousarray(integers[..., 0::2] | (integers[..., 1::2] << 4))
