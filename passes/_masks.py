"""What is known about an additive attention mask: how low it can be, and whether it is causal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts

CLOSED = -1e9
_DEPTH = 12


def lowest(value: ir.Value | None, depth: int = _DEPTH) -> float:
    """A bound that no element of ``value`` is below; -inf where none is known.

    A constant counts by the best entry of each row (last axis) where it stands alone, see :func:`closes_no_row`.
    """
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


def closes_no_row(masks: list[ir.Value]) -> bool:
    """Whether each row of the sum of ``masks`` provably keeps an entry above -inf."""
    bounds = [lowest(mask) for mask in masks]
    type_ = masks[0].dtype if masks else None
    limit = -65504.0 if type_ == ir.DataType.FLOAT16 else float(np.finfo(np.float32).min)
    if sum(bounds) >= limit:
        return True
    unbounded = [mask for mask, bound in zip(masks, bounds, strict=True) if bound == -np.inf]
    rest = sum(bound for bound in bounds if bound != -np.inf)
    if len(unbounded) != 1 or (array := facts.constant(unbounded[0])) is None or array.ndim == 0:
        return False
    # A last axis of 1 broadcasts: then an entry is a row.
    if np.isnan(array).any():
        return False
    return float(np.min(np.max(array, axis=-1))) + rest >= limit


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
