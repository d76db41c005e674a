"""Gather(DequantizeLinear<block_size>(table), i)  ==>  GatherBlockQuantized(table, i)

Left alone, ONNX Runtime 1.31 expands the whole table at every run. The right side (com.microsoft) restores only the
rows that are asked for. Tables of 8 bits must be unsigned there.

Forms: a constant table [rows, width], int4, uint4, int8 or uint8, in blocks along its rows' elements; float32 and
float16.

Refuses: block sizes other than powers of two from 16. Leaves alone: another axis; scales or zero points that are
computed; a negative index below the number of rows cannot arise, since Gather forbids it.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.rewrite import Builder, Numerics, Refuse, Rewrite

_EIGHT = frozenset({ir.DataType.INT8, ir.DataType.UINT8})
_FOUR = frozenset({ir.DataType.INT4, ir.DataType.UINT4})


class BlockGather(Rewrite):
    """A table of which only the rows that are read are restored."""

    name = "block-gather"
    roots = ("Gather",)
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """GatherBlockQuantized."""
        source, indices = node.inputs
        dequantize = None if source is None else source.producer()
        if dequantize is None or dequantize.op_type != "DequantizeLinear" or indices is None:
            return None
        block = facts.attribute(dequantize, "block_size", 0)
        table, scales, zeros = (*dequantize.inputs, None)[:3]
        integers = facts.constant(table)
        if not block or table is None or integers is None or table.dtype not in _EIGHT | _FOUR:
            return None
        if integers.ndim != 2 or facts.attribute(dequantize, "axis", 1) % 2 != 1:
            return None
        if facts.attribute(node, "axis", 0) % 2 or not facts.is_constant(scales):
            return None
        offsets = facts.constant(zeros)
        if zeros is not None and offsets is None:
            return None
        if block < 16 or block & (block - 1):
            raise Refuse(f"blocks of {block}: the kernel takes powers of two from 16")
        bits = 8 if table.dtype in _EIGHT else 4
        operands = [table, indices, scales, *([] if zeros is None else [zeros])]
        if table.dtype == ir.DataType.INT8:
            operands[0] = build.constant((integers.astype(np.int16) + 128).astype(np.uint8))
            if offsets is not None:
                operands[3] = build.constant((offsets.astype(np.int16) + 128).astype(np.uint8))
        elif table.dtype == ir.DataType.UINT8 and zeros is None:
            # Left out, zero points of 8 bits are 128 there and 0 here.
            shape = facts.static_dims(scales)
            assert shape is not None
            operands.append(build.constant(np.zeros(shape, np.uint8)))
        return build.op(
            "GatherBlockQuantized", *operands, domain="com.microsoft", like=node.outputs[0],
            bits=bits, block_size=block, gather_axis=0, quantize_axis=1,
        )  # fmt: skip
