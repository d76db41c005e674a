"""How an op computes on data in another order of the axes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir.operators import BROADCAST, REDUCTIONS, SOFTMAX, UNARY
from graphopt.rewrite import Builder

Perm = tuple[int, ...]

MOVABLE = (
    UNARY | BROADCAST | REDUCTIONS | SOFTMAX | {"Concat", "Pad", "Slice", "Split", "Squeeze", "Unsqueeze"}
)


@dataclass
class Moved:
    """``node(Transpose(x, perm)) == Transpose(op(x), out)``, with what ``op`` needs.

    Attributes:
        out: The permutation of the outputs.
        attributes: Attributes that change; None leaves one out.
        constants: Contents of the constant inputs that change, by index.
    """

    out: Perm
    attributes: dict[str, Any] = field(default_factory=dict)
    constants: dict[int, facts.Array] = field(default_factory=dict)


def inverse(perm: Perm) -> Perm:
    """The permutation that undoes ``perm``."""
    return tuple(perm.index(axis) for axis in range(len(perm)))


def compose(first: Perm, second: Perm) -> Perm:
    """One Transpose in place of ``first`` followed by ``second``."""
    return tuple(first[axis] for axis in second)


def perm_of(node: ir.Node) -> Perm | None:
    """The permutation of a Transpose, its default included."""
    perm: Perm | None = facts.attribute(node, "perm")
    if perm is not None:
        return perm
    rank = facts.rank(node.inputs[0])
    return None if rank is None else tuple(reversed(range(rank)))


def data_inputs(node: ir.Node) -> list[int] | None:
    """Indices of the inputs that carry data in the layout (constants among them are to be reordered)."""
    if node.domain or node.op_type not in MOVABLE:
        return None
    if node.op_type in BROADCAST or node.op_type == "Concat":
        return list(range(len(node.inputs)))
    return [0]


def move(node: ir.Node, perm: Perm) -> Moved | None:
    """How ``node`` computes where its data inputs, so far transposed by ``perm``, are not; None where it cannot."""
    kind, rank = node.op_type, len(perm)
    if kind in UNARY:
        return Moved(perm)
    if kind in BROADCAST:
        return _move_broadcast(node, perm)
    if kind in SOFTMAX:
        return Moved(perm, {"axis": perm[facts.attribute(node, "axis", -1) % rank]})
    if kind == "Concat":
        moved = Moved(perm, {"axis": perm[facts.attribute(node, "axis", 0) % rank]})
        for index, value in enumerate(node.inputs):
            if facts.is_constant(value):
                array = facts.constant(value)
                assert array is not None
                moved.constants[index] = array.transpose(inverse(perm))
        return moved
    if kind == "Split":
        return Moved(perm, {"axis": perm[facts.attribute(node, "axis", 0) % rank]})
    if kind in REDUCTIONS:
        return _move_reduction(node, perm)
    if kind == "Squeeze":
        axes = facts.ints(node.inputs[1]) if len(node.inputs) > 1 else None
        if axes is None:
            return None
        return _dropping(perm, [axis % rank for axis in axes], 1)
    if kind == "Unsqueeze":
        return _move_unsqueeze(node, perm)
    if kind == "Pad":
        return _move_pad(node, perm)
    return _move_slice(node, perm)


def _move_broadcast(node: ir.Node, perm: Perm) -> Moved | None:
    moved, rank = Moved(perm), len(perm)
    for index, value in enumerate(node.inputs):
        if not facts.is_constant(value):
            continue
        array = facts.constant(value)
        assert array is not None
        if array.ndim > rank:
            return None
        if array.size != 1:
            full = array.reshape((1,) * (rank - array.ndim) + array.shape)
            moved.constants[index] = full.transpose(inverse(perm))
    return moved


def _move_reduction(node: ir.Node, perm: Perm) -> Moved | None:
    has_axes = len(node.inputs) > 1 and node.inputs[1] is not None
    axes = facts.ints(node.inputs[1]) if has_axes else ()
    if axes is None:
        return None
    keeps = facts.attribute(node, "keepdims", 1)
    if not axes:
        if facts.attribute(node, "noop_with_empty_axes", 0):
            return None
        return Moved(perm if keeps else ())
    positions = [axis % len(perm) for axis in axes]
    moved = _dropping(perm, positions, 1)
    return Moved(perm, constants=moved.constants) if keeps else moved


def _dropping(perm: Perm, axes: list[int], index: int) -> Moved:
    """For an op that drops ``axes``, given as constant input ``index``."""
    inner = sorted(perm[axis] for axis in axes)
    kept = [axis for position, axis in enumerate(perm) if position not in axes]
    order = sorted(kept)
    out = tuple(order.index(axis) for axis in kept)
    return Moved(out, constants={index: np.array(inner, np.int64)})


def _move_unsqueeze(node: ir.Node, perm: Perm) -> Moved | None:
    axes = facts.ints(node.inputs[1])
    if axes is None:
        return None
    rank = len(perm) + len(axes)
    added = {axis % rank for axis in axes}
    # A new axis follows the one that it stands behind, wherever that goes.
    rest = iter(perm)
    labels = [("new", axis) if axis in added else ("old", next(rest)) for axis in range(rank)]
    order: list[tuple[str, int]] = []
    leading = [label for label in labels if label[0] == "new"]
    followers: dict[int, list[tuple[str, int]]] = {}
    current: int | None = None
    for label in labels:
        if label[0] == "old":
            current = label[1]
        elif current is not None:
            followers.setdefault(current, []).append(label)
            leading.remove(label)
    order += leading
    for axis in range(len(perm)):
        order += [("old", axis), *followers.get(axis, [])]
    inner = [position for position, label in enumerate(order) if label[0] == "new"]
    return Moved(tuple(order.index(label) for label in labels), constants={1: np.array(inner, np.int64)})


def _move_pad(node: ir.Node, perm: Perm) -> Moved | None:
    widths = facts.ints(node.inputs[1])
    if widths is None:
        return None
    rank = len(perm)
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        axes = facts.ints(node.inputs[3])
        if axes is None:
            return None
        return Moved(perm, constants={3: np.array([perm[axis % rank] for axis in axes], np.int64)})
    if len(widths) != 2 * rank:
        return None
    order = inverse(perm)
    inner = [widths[axis] for axis in order] + [widths[rank + axis] for axis in order]
    return Moved(perm, constants={1: np.array(inner, np.int64)})


def _move_slice(node: ir.Node, perm: Perm) -> Moved | None:
    starts = facts.ints(node.inputs[1])
    if starts is None or len(node.inputs) < 4 or node.inputs[3] is None:
        return None
    axes = facts.ints(node.inputs[3])
    if axes is None or len(axes) != len(starts):
        return None
    return Moved(perm, constants={3: np.array([perm[axis % len(perm)] for axis in axes], np.int64)})


def rebuild(node: ir.Node, moved: Moved, operands: dict[int, ir.Value], build: Builder) -> list[ir.Value]:
    """The node on untransposed data; returns its outputs, in the shapes that they have there."""
    inputs: list[ir.Value | facts.Array | None] = []
    for index, value in enumerate(node.inputs):
        if index in operands:
            inputs.append(operands[index])
        else:
            inputs.append(moved.constants.get(index, value))
    attributes: dict[str, Any] = {**node.attributes, **moved.attributes}
    first = build.op(node.op_type, *inputs, outputs=len(node.outputs), like=node.outputs[0], **attributes)
    made = first.producer()
    assert made is not None
    for old, new in zip(node.outputs, made.outputs, strict=True):
        new.type = old.type
        new.shape = None
        if old.shape is not None and len(old.shape) == len(moved.out):
            order = inverse(moved.out)
            new.shape = ir.Shape([old.shape[axis] for axis in order])
    return list(made.outputs)
