"""Slice(Slice(x))  ==>  Slice(x)

Forms: ``x[a:b][:, c:d]`` and ``x[a:b][c:d]`` in PyTorch, StridedSlice cascades of tf2onnx. Slices along
different axes join; along the same axis they compose where the dimension is static, or where all bounds count
from the front in steps of 1.

Refuses: bounds, axes or steps that are not constant, or go backwards without an end; an inner value that
something else reads; composed bounds that depend on a dynamic dimension.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.rewrite import Builder, Numerics, Refuse, Rewrite

_LAST = 2**63 - 1
_FIRST = -(2**63)
Bounds = tuple[int, int, int]


def bounds_by_axis(node: ir.Node, rank: int | None) -> dict[int, Bounds] | None:
    """Start, end and step of a Slice for each axis, or None where they are not constant."""
    operands = [*node.inputs[1:], None, None][:4]
    starts, ends = facts.ints(operands[0]), facts.ints(operands[1])
    if starts is None or ends is None or len(starts) != len(ends):
        return None
    axes = facts.ints(operands[2]) if operands[2] is not None else tuple(range(len(starts)))
    steps = facts.ints(operands[3]) if operands[3] is not None else (1,) * len(starts)
    if axes is None or steps is None or not len(axes) == len(steps) == len(starts):
        return None
    if any(axis < 0 for axis in axes):
        if rank is None:
            return None
        axes = tuple(axis % rank for axis in axes)
    if len(set(axes)) != len(axes) or 0 in steps:
        return None
    return dict(zip(axes, zip(starts, ends, steps, strict=True), strict=True))


def compose(first: Bounds, second: Bounds, size: int | None) -> Bounds | None:
    """``x[first][second]`` as one slice of a dimension of ``size``; None where that needs an unknown size."""
    if size is not None:
        inner = facts.sliced(size, *first)
        outer = None if inner is None else facts.sliced(len(inner), *second)
        if inner is None or outer is None:
            return None
        picked = inner[outer.start : outer.stop if outer.stop >= 0 else None : outer.step]
        if not picked:
            return (0, 0, 1)
        if picked.step > 0:
            return (picked.start, picked.stop, picked.step)
        return (picked.start, picked.stop if picked.stop >= 0 else _FIRST, picked.step)
    if any(step != 1 or start < 0 or end < 0 for start, end, step in (first, second)):
        return None
    return (first[0] + second[0], min(first[1], first[0] + second[1], _LAST), 1)


class SliceChain(Rewrite):
    """Two Slices become one."""

    name: ClassVar[str] = "slice-chain"
    roots: ClassVar[tuple[str, ...]] = ("Slice",)
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """One Slice with the bounds of both."""
        middle = node.inputs[0]
        inner = None if middle is None else middle.producer()
        if middle is None or inner is None or inner.domain != "" or inner.op_type != "Slice":
            return None
        x = inner.inputs[0]
        if x is None:
            return None
        shape = facts.dims(x)
        rank = None if shape is None else len(shape)
        first, second = bounds_by_axis(inner, rank), bounds_by_axis(node, rank)
        if first is None or second is None:
            raise Refuse("bounds are not constant or not clear")
        if facts.sole_consumer(middle) is None:
            raise Refuse(f"the inner value {middle.name!r} is used elsewhere")
        merged = dict(first)
        for axis, bounds in second.items():
            if axis in first:
                joined = compose(first[axis], bounds, None if shape is None else shape[axis])
                if joined is None:
                    raise Refuse("the bounds depend on a dynamic dimension, or are not clear")
                bounds = joined
            merged[axis] = bounds
        axes = sorted(merged)
        columns = [np.array([merged[axis][column] for axis in axes], np.int64) for column in range(3)]
        starts, ends, steps = columns
        return build.op("Slice", x, starts, ends, np.array(axes, np.int64), steps, like=node.outputs[0])
