"""Additive attention masks: how low they can be, whether they are causal, what their wholly masked rows mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.rewrite import Builder

CLOSED = -1e9
_SWALLOWS_HALF = -1000.0
_DEPTH = 12


def lowest(value: ir.Value | None, depth: int = _DEPTH) -> float:
    """A bound that no element of ``value`` is below; -inf where none is known."""
    if value is None or depth == 0:
        return -np.inf
    array = facts.constant(value)
    if array is not None:
        if array.dtype.kind == "b" or array.size == 0:
            return 0.0
        return float(np.min(array)) if not np.isnan(np.min(array)) else -np.inf
    if value.dtype == ir.DataType.BOOL:
        return 0.0
    node = value.producer()
    if node is None or node.domain:
        return -np.inf
    inputs = node.inputs
    if node.op_type in (
        "Expand",
        "Reshape",
        "Unsqueeze",
        "Squeeze",
        "Transpose",
        "Identity",
        "Slice",
        "Cast",
    ):
        return lowest(inputs[0], depth - 1)
    if node.op_type in ("Gather", "GatherND"):
        return lowest(inputs[0], depth - 1)
    if node.op_type == "Where":
        return min(lowest(inputs[1], depth - 1), lowest(inputs[2], depth - 1))
    if node.op_type == "Max":
        return max(lowest(operand, depth - 1) for operand in inputs)
    if node.op_type in ("Add", "Concat"):
        bounds = [lowest(operand, depth - 1) for operand in inputs]
        return sum(bounds) if node.op_type == "Add" else min(bounds)
    if node.op_type == "Mul":
        return _product(inputs, depth)
    if node.op_type == "Sub" and _is_bit(inputs[1]):
        return lowest(inputs[0], depth - 1) - 1.0
    return -np.inf


def _product(inputs: Sequence[ir.Value | None], depth: int) -> float:
    for factor, other in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        number = facts.scalar(other)
        if number is not None and _is_bit(factor):
            return min(0.0, number)
    return -np.inf


def _is_bit(value: ir.Value | None) -> bool:
    """Whether every element is 0 or 1: a Cast of booleans, or 1 minus one."""
    node = None if value is None else value.producer()
    if value is None or node is None or node.domain:
        return False
    if node.op_type == "Cast":
        source = node.inputs[0]
        return source is not None and (source.dtype == ir.DataType.BOOL or _is_bit(source))
    if node.op_type == "Sub":
        return facts.scalar(node.inputs[0]) == 1.0 and _is_bit(node.inputs[1])
    if node.op_type in ("Unsqueeze", "Reshape", "Expand", "Transpose", "Squeeze", "Slice"):
        return _is_bit(node.inputs[0])
    return False


def limit(dtype: ir.DataType | None) -> float:
    """The lowest finite number: ONNX Runtime's Attention takes a row of it for wholly masked, as one of -inf."""
    return -65504.0 if dtype == ir.DataType.FLOAT16 else float(np.finfo(np.float32).min)


def above_limit(dtype: ir.DataType | None) -> float:
    """The next number above :func:`limit`: as good as closed, but a row of it is an ordinary row."""
    kind = np.float16 if dtype == ir.DataType.FLOAT16 else np.float32
    return float(np.nextafter(kind(limit(dtype)), kind(0)))


def stays_open(masks: Sequence[ir.Value], bounds: Sequence[float]) -> bool:
    """Whether each row of the sum of ``masks`` provably keeps an entry above the lowest number.

    In float16 an entry that swallows the scores counts as closed: the row would be uniform, but ONNX Runtime computes
    in float32.
    """
    least = _SWALLOWS_HALF if masks[0].dtype == ir.DataType.FLOAT16 else limit(masks[0].dtype)
    if sum(bounds) > least:
        return True
    low = [mask for mask, bound in zip(masks, bounds, strict=True) if bound <= least]
    rest = sum(bound for bound in bounds if bound > least)
    if len(low) != 1 or (array := facts.constant(low[0])) is None or array.ndim == 0 or array.size == 0:
        return False
    # A last axis of 1 broadcasts: then an entry is a row.
    return not np.isnan(array).any() and float(np.min(np.max(array, axis=-1))) + rest > least


def settle(build: Builder, mask: ir.Value, bound: float, guarded: bool) -> ir.Value:
    """``mask`` with what a wholly masked row of it does written out, for a row can be that.

    A row of the lowest finite number weights all keys alike in the softmax, but is zero in Attention: the number is
    raised a little. A row of -inf is NaN without a guard: it becomes NaN.
    """
    dtype = facts.numpy_dtype(mask)
    raised = np.array(above_limit(mask.dtype), dtype=dtype)
    node = mask.producer()
    finite = bound >= limit(mask.dtype)
    if finite and node is not None and node.op_type == "Where" and not node.domain:
        arms = [raised if facts.scalar(arm) == limit(mask.dtype) else arm for arm in node.inputs[1:]]
        if any(arm is raised for arm in arms) and min(map(_arm, arms)) > limit(mask.dtype):
            return build.op("Where", node.inputs[0], *arms, like=mask)
    result = build.op("Max", mask, raised, like=mask)
    if finite:
        return result
    infinite = build.op("IsInf", mask, like=mask, dtype=ir.DataType.BOOL, detect_positive=0)
    result = build.op("Where", infinite, mask, result, like=mask)
    if guarded or not facts.rank(mask):
        return result
    top = build.op("ReduceMax", mask, np.array([-1]), keepdims=1)
    closed = build.op("IsInf", top, dtype=ir.DataType.BOOL, detect_positive=0)
    if mask.shape is not None:
        top.shape = ir.Shape([*list(mask.shape)[:-1], 1])
        closed.shape = top.shape.copy()
    return build.op("Where", closed, np.array(np.nan, dtype=dtype), result, like=mask)


def _arm(arm: ir.Value | facts.Array | None) -> float:
    return float(arm) if isinstance(arm, np.ndarray) else lowest(arm)


def is_causal(mask: ir.Value) -> bool:
    """Whether ``mask`` is constant, square, zero on and below the diagonal and closed above it."""
    array = facts.constant(mask)
    if array is None or array.ndim < 2 or array.shape[-1] != array.shape[-2] or array.shape[-1] < 2:
        return False
    if array.size != array.shape[-1] ** 2 or array.dtype.kind != "f":
        return False
    length = array.shape[-1]
    square = array.reshape(length, length)
    upper = square[np.triu_indices(length, k=1)]
    return not np.tril(np.where(square == 0, 0, 1)).any() and bool((upper <= CLOSED).all())
