"""Operators that rearrange or repeat axes, and those that read their sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.prune.flow.base import Flow, Rule
from graphopt.prune.flow.sizes import sizes_used, target_of
from graphopt.prune.labels import Axis, Indices
from graphopt.prune.reshapes import Move, moves


def _reshape(flow: Flow, node: ir.Node) -> None:
    data, out = node.inputs[0], node.outputs[0]
    axes = flow.axes(data)
    before, after = flow.shapes.of(data), flow.shapes.of(out)
    if before is None or after is None:
        flow.refuse(node, "the rank of its result is not known")
        return
    target: Sequence[int | None] | None = ()
    if node.op_type == "Reshape":
        target = target_of(node.inputs[1], flow.shapes)
        if target is None or len(target) != len(after):
            flow.refuse(node, "its shape is computed")
            return
        if not facts.attribute(node, "allowzero", 0):
            # A zero keeps the size, even where the other ones are not known.
            after = tuple(
                before[axis] if size == 0 and axis < len(before) else after[axis]
                for axis, size in enumerate(target)
            )
    found: list[Axis] = [None] * len(after)
    for move in moves(before, after):
        labels, reason = _moved(flow, node, move, axes)
        if reason:
            flow.pin_axes(node, data, move.before, reason)
        for axis, own in labels.items():
            if own is not None and target and target[axis] is None:
                flow.labels.pin(own, node.name or "", "its shape is computed")
                own = None
            found[axis] = own
    flow.labels.put(out, found)


def _merged(flow: Flow, node: ir.Node, move: Move, labels: Indices) -> str:
    """Hand on labels that repeat along an axis of unknown size; says why not, where it cannot.

    Args:
        labels: That repeat.
    """
    (axis,) = move.after
    entries = flow.shapes.entries(node.inputs[1]) if node.op_type == "Reshape" else None
    own = None if entries is None else entries[axis]
    if entries is None or own is None:
        return "its shape is computed"
    others = [entry for place, entry in enumerate(entries) if place != axis]
    # The size becomes -1, which it may be but once.
    is_free = own.known in (-1, 0) or not any(entry is None or entry.known == -1 for entry in others)
    if not is_free or (own.known == 0 and move.before != move.after):
        return "its shape is computed"
    flow.labels.put_merged(node.outputs[0], axis, labels)
    return ""


def _moved(flow: Flow, node: ir.Node, move: Move, axes: Sequence[Axis]) -> tuple[dict[int, Axis], str]:
    """The labels of the axes that some axes become, or why there are none."""
    repeated = [own for axis, own in flow.labels.merged(node.inputs[0]).items() if axis in move.before]
    if repeated:
        return _apart(flow, node, move, axes, repeated[0])
    labelled = [axis for axis in move.before if axes[axis] is not None]
    if not labelled:
        return {}, ""
    # What one thing is repeated along stays before what it is; heads go before the elements of a head.
    chosen = next((axis for axis in labelled if not flow.labels.are_copies(axes[axis])), labelled[0])
    flow.pin_axes(
        node,
        node.inputs[0],
        [axis for axis in labelled if axis != chosen],
        "it is merged with another axis that may shrink",
    )
    if not move.after:
        return {}, "it becomes a single number"
    if len(move.before) == 1 and len(move.after) == 1:
        return {move.after[0]: axes[move.before[0]]}, ""
    place = move.before.index(chosen)
    labels = axes[chosen]
    assert labels is not None
    if move.sizes_before is None or move.sizes_after is None:
        behind = [facts.dims(node.inputs[0])[axis] for axis in move.before[place + 1 :]]  # type: ignore[index]
        if len(move.after) > 1 or None in behind:
            return {}, "it is reshaped together with a size that is not known"
        flow.use(labels)
        own = np.repeat(labels, math.prod(size for size in behind if size is not None))
        reason = _merged(flow, node, move, own)
        if reason:
            flow.labels.pin(labels, node.name or node.op_type, reason)
        return {}, ""
    shape = [1] * len(move.before)
    shape[place] = len(labels)
    spread = np.broadcast_to(labels.reshape(shape), move.sizes_before)
    real = [index for index, size in enumerate(move.sizes_after) if size != 1]
    if len(real) <= 1:
        return {move.after[real[0] if real else 0]: np.ascontiguousarray(spread.reshape(-1))}, ""
    if sum(size != 1 for size in move.sizes_before) > 1:
        return {}, "it is reshaped into other axes"
    kept, own = _split_axis(flow, node, labels, move.sizes_after, chosen == len(axes) - 1)
    return {move.after[kept]: own}, ""


def _split_axis(
    flow: Flow, node: ir.Node, labels: Indices, sizes: Sequence[int], is_last: bool
) -> tuple[int, Indices]:
    """One axis becomes several: one of these may shrink, and takes all of the others with it.

    Args:
        labels: Of the one axis.
        sizes: Of the several ones, two of which are not 1.
        is_last: Whether it was the last axis of its tensor.

    Returns:
        Which of them that is, and its labels.
    """
    real = [index for index, size in enumerate(sizes) if size != 1]
    whole = {index: _rows(labels, sizes, index) for index in real}
    # Axes that were merged before come apart again.
    same = [index for index, rows in whole.items() if (rows == rows[:, :1]).all()]
    if same:
        return same[0], np.ascontiguousarray(whole[same[0]][:, 0])
    # Heads lie before the elements of a head; channels of a group behind the group (ShuffleNet).
    among = real[:-1] if is_last else real[-1:]
    kept = max(among, key=lambda index: sizes[index])
    return kept, flow.tie_rows(node, np.ascontiguousarray(whole[kept].T))


def _apart(
    flow: Flow, node: ir.Node, move: Move, axes: Sequence[Axis], labels: Indices
) -> tuple[dict[int, Axis], str]:
    """The labels of the axes that an axis becomes along which labels repeat."""
    reason = "it is reshaped together with another axis that may shrink"
    dims = facts.dims(node.outputs[0]) or ()
    known = list(itertools.takewhile(lambda axis: dims[axis] is not None, reversed(move.after)))[::-1]
    sizes = [dims[axis] or 0 for axis in known]
    if len(move.before) == 1 and len(move.after) == 1:
        reason = _merged(flow, node, move, labels)
        if not reason:
            return {}, ""
    elif len(move.before) == 1 and known and math.prod(sizes) % len(labels) == 0:
        block = np.tile(labels, math.prod(sizes) // len(labels))
        real = [axis for axis, size in zip(known, sizes, strict=True) if size != 1]
        if len(real) == 1:
            return {real[0]: block}, ""
        kept, own = _split_axis(flow, node, block, sizes, move.before[0] == len(axes) - 1)
        return {known[kept]: own}, ""
    flow.labels.pin(labels, node.name or node.op_type, reason)
    return {}, reason


def _rows(labels: Indices, sizes: Sequence[int], axis: int) -> Indices:
    """Labels of an axis that becomes several, one row for each index of one of these."""
    rows: Indices = np.moveaxis(labels.reshape(sizes), axis, 0).reshape(sizes[axis], -1)
    return rows


def _transpose(flow: Flow, node: ir.Node) -> None:
    axes = flow.axes(node.inputs[0])
    order = facts.attribute(node, "perm", None) or range(len(axes))[::-1]
    flow.labels.put(node.outputs[0], [axes[place] for place in order])


def _squeeze(flow: Flow, node: ir.Node) -> None:
    axes = flow.axes(node.inputs[0])
    dims = facts.dims(node.inputs[0]) or ()
    given = facts.ints(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if len(node.inputs) > 1 and node.inputs[1] is not None and given is None:
        flow.refuse(node, "its axes are computed")
        return
    gone = (
        {axis % len(axes) for axis in given}
        if given is not None
        else {a for a, size in enumerate(dims) if size == 1}
    )
    flow.pin_axes(node, node.inputs[0], gone, "it leaves out this axis")
    flow.labels.put(node.outputs[0], [labels for axis, labels in enumerate(axes) if axis not in gone])


def _unsqueeze(flow: Flow, node: ir.Node) -> None:
    axes = flow.axes(node.inputs[0])
    new = facts.ints(node.inputs[1])
    rank = facts.rank(node.outputs[0])
    if new is None or rank is None:
        flow.refuse(node, "its axes are computed")
        return
    added, rest = {axis % rank for axis in new}, iter(axes)
    flow.labels.put(node.outputs[0], [None if axis in added else next(rest) for axis in range(rank)])


def _expand(flow: Flow, node: ir.Node) -> None:
    data, out = node.inputs[0], node.outputs[0]
    axes, before, after = flow.axes(data), facts.dims(data) or (), facts.dims(out)
    if after is None:
        flow.refuse(node, "the rank of its result is not known")
        return
    target: list[int | None] = target_of(node.inputs[1], flow.shapes) or [None] * len(after)
    target[:0] = [1] * (len(after) - len(target))
    found: list[Axis] = []
    for axis, size in enumerate(after):
        place = axis - len(after) + len(before)
        labels, own = (axes[place], before[place]) if place >= 0 else (None, 1)
        if own == 1 and size is not None and size > 1:
            flow.pin_axes(node, data, [place] if place >= 0 else [], "it is repeated along this axis")
            labels = flow.labels.copies(size) if target[axis] == size else None
        elif labels is not None and (own != size or target[axis] not in (1, size)):
            flow.pin_axes(node, data, [place], "it is repeated, or its shape is computed")
            labels = None
        found.append(labels)
    flow.labels.put(out, found)


def _fill(flow: Flow, node: ir.Node) -> None:
    """A tensor of one number; what it reads is its shape."""
    dims = facts.dims(node.outputs[0])
    target = target_of(node.inputs[0], flow.shapes)
    if dims is None or target is None or len(target) != len(dims):
        return
    flow.labels.put(
        node.outputs[0],
        [
            flow.labels.copies(size) if size is not None and size == known else None
            for size, known in zip(dims, target, strict=True)
        ],
    )


def _tile(flow: Flow, node: ir.Node) -> None:
    axes, repeats = flow.axes(node.inputs[0]), facts.ints(node.inputs[1])
    for axis, labels in enumerate(axes):
        if labels is not None and repeats is None:
            flow.pin_axes(node, node.inputs[0], [axis], "how often it is repeated is computed")
            axes[axis] = None
        elif labels is not None and repeats is not None and repeats[axis] != 1:
            flow.use(labels)
            axes[axis] = np.tile(labels, repeats[axis])
    flow.labels.put(node.outputs[0], axes)


def _shape(flow: Flow, node: ir.Node) -> None:
    """Sizes that are read are those of axes that stay, but for those that only say shapes: these are mended."""
    rank = facts.rank(node.inputs[0]) or 0
    covered = list(range(rank))[facts.attribute(node, "start", 0) : facts.attribute(node, "end", rank)]
    used = sizes_used(node.outputs[0], [frozenset([axis]) for axis in covered], flow.shapes)
    flow.pin_axes(node, node.inputs[0], used, "its size is computed with")
    for labels in flow.axes(node.inputs[0]):
        flow.use(labels)
    flow.labels.put(node.outputs[0], [None])


RULES: Mapping[str, Rule] = {
    "ConstantOfShape": _fill,
    "Expand": _expand,
    "Flatten": _reshape,
    "Reshape": _reshape,
    "Shape": _shape,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""By operator of ONNX."""

__all__ = ["RULES"]
