"""LSTM(DQ(DynamicQuantizeLinear(x)), DQ(W), DQ(R), ...)  ==>  DynamicQuantizeLSTM(x, W, R, ...)

ONNX Runtime 1.31 has an LSTM whose products are on integers (com.microsoft): x and the hidden state are rounded to 8
bits as they come, the gates stay in float. Measured at 160 steps and 256 units (interleaved, 2 threads): 2.3 to 2.7
times as fast as float32 with batches of 1 to 32, with 512 units 3.2. One scale for each gate's output is 1.04 slower
than one for all and 2 dB nearer.

Forms: int8 weights with one scale for each row (DequantizeLinear in blocks of a whole row), symmetric. The hidden
state's rounding is new, so this is bounded by the noise floor unless it was asked for with a budget.

Leaves alone: everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir.facts import Array
from graphopt.rewrite import Builder, Numerics, Rewrite

_INPUTS = 8


class DynamicLstm(Rewrite):
    """An LSTM on integers."""

    name = "dynamic-lstm"
    roots = ("LSTM",)
    numerics: ClassVar[Numerics] = Numerics.REASSOCIATES

    def apply(self, node: ir.Node, build: Builder) -> Sequence[ir.Value | None] | None:
        """DynamicQuantizeLSTM."""
        x = _source(node.inputs[0])
        weights = [_weight(value) for value in node.inputs[1:3]]
        if x is None or facts.attribute(node, "layout", 0):
            return None
        scales: list[Array] = []
        operands: list[ir.Value | Array | None] = [x]
        for found in weights:
            if found is None:
                return None
            operands.append(np.ascontiguousarray(found[0].transpose(0, 2, 1)))
            steps = found[1].reshape(found[1].shape[:2])
            scales += [steps, np.zeros(steps.shape, np.int8)]
        operands += [*node.inputs[3:], *[None] * (_INPUTS - len(node.inputs)), *scales]
        attributes: dict[str, Any] = dict(node.attributes)
        attributes.pop("layout", None)
        first = build.op(
            "DynamicQuantizeLSTM", *operands, domain="com.microsoft", like=node.outputs[0],
            outputs=len(node.outputs), **attributes,
        )  # fmt: skip
        made = first.producer()
        assert made is not None
        for old, new in zip(node.outputs, made.outputs, strict=True):
            new.type, new.shape = old.type, old.shape.copy() if old.shape is not None else None
            if not old.name:
                new.name = ""
        return [new if old.name else None for old, new in zip(node.outputs, made.outputs, strict=True)]


def _source(value: ir.Value | None) -> ir.Value | None:
    """What was quantized as it came and restored."""
    restored = None if value is None else value.producer()
    if restored is None or restored.op_type != "DequantizeLinear" or len(restored.inputs) < 3:
        return None
    makers = {None if operand is None else operand.producer() for operand in restored.inputs}
    quantize = next(iter(makers))
    if len(makers) != 1 or quantize is None or quantize.op_type != "DynamicQuantizeLinear":
        return None
    return quantize.inputs[0] if tuple(restored.inputs) == tuple(quantize.outputs) else None


def _weight(value: ir.Value | None) -> tuple[Array, Array] | None:
    """int8 [directions, 4 * hidden, inputs] and its scales [directions, 4 * hidden, 1]."""
    restored = None if value is None else value.producer()
    if restored is None or restored.op_type != "DequantizeLinear" or len(restored.inputs) > 2:
        return None
    integers, scales = facts.constant(restored.inputs[0]), facts.constant(restored.inputs[1])
    if integers is None or scales is None or integers.dtype != np.int8 or integers.ndim != 3:
        return None
    rows = (
        facts.attribute(restored, "block_size", 0) >= integers.shape[2]
        and facts.attribute(restored, "axis", 1) == 2
    )
    return (integers, scales) if rows and scales.shape == (*integers.shape[:2], 1) else None
