"""Operators that rearrange or repeat axes, and those that read their sizes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.prune.flow.base import Flow, Rule
from graphopt.prune.flow.sizes import sizes_used, slices_of, target_of
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


def _moved(flow: Flow, node: ir.Node, move: Move, axes: Sequence[Axis]) -> tuple[dict[int, Axis], str]:
    """The labels of the axes that some axes become, or why there are none."""
    repeated = flow.labels.merged(node.inputs[0])
    place = next((axis for axis in move.before if axis in repeated), None)
    if place is not None:
        plain = [axis for axis in move.before if axes[axis] is not None]
        flow.pin_axes(node, node.inputs[0], plain, "it is merged with another axis that may shrink")
        return _repeating(flow, node, move, place, repeated[place])
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
        first = move.after[0]
        size = (facts.dims(node.outputs[0]) or ())[first]
        if place == 0 and size and math.gcd(size, len(labels)) == min(size, len(labels)):
            # What lies behind may be what it is: groups of channels with all their pixels.
            if size > len(labels):
                return {first: np.repeat(labels, size // len(labels))}, ""
            return {first: flow.tie_rows(node, np.ascontiguousarray(labels.reshape(size, -1).T))}, ""
        flow.use(labels)
        return _repeating(flow, node, move, chosen, labels)
    shape = [1] * len(move.before)
    shape[place] = len(labels)
    spread = np.broadcast_to(labels.reshape(shape), move.sizes_before)
    real = [index for index, size in enumerate(move.sizes_after) if size != 1]
    if len(real) <= 1:
        return {move.after[real[0] if real else 0]: np.ascontiguousarray(spread.reshape(-1))}, ""
    if sum(size != 1 for size in move.sizes_before) > 1:
        return {}, "it is reshaped into other axes"
    after = dict(zip(move.after, move.sizes_after, strict=True))
    kept, own = _split_axis(flow, node, labels, after, chosen == len(axes) - 1)
    return {kept: own}, ""


def _split_axis(
    flow: Flow, node: ir.Node, labels: Indices, after: Mapping[int, int], is_last: bool
) -> tuple[int, Indices]:
    """One axis becomes several: one of these may shrink, and takes all of the others with it.

    Args:
        labels: Of the one axis.
        after: The several ones with their sizes, two of which are not 1.
        is_last: Whether it was the last axis of its tensor.

    Returns:
        Which of them that is, and its labels.
    """
    real = [axis for axis, size in after.items() if size != 1]
    sizes = list(after.values())
    whole = {axis: _rows(labels, sizes, place) for place, axis in enumerate(after) if axis in real}
    # Axes that were merged before come apart again.
    same = [axis for axis, rows in whole.items() if (rows == rows[:, :1]).all()]
    if same:
        return same[0], np.ascontiguousarray(whole[same[0]][:, 0])
    # Heads lie before the elements of a head; channels of a group behind the group (ShuffleNet).
    among = real[:-1] if is_last else real[-1:]
    # Queries, keys and values that lie in one axis are taken out of it.
    whole_axes = [axis for axis in real if not _is_taken_apart(node.outputs[0], axis)] or among
    kept = max([axis for axis in among if axis in whole_axes] or whole_axes, key=lambda axis: after[axis])
    return kept, flow.tie_rows(node, np.ascontiguousarray(whole[kept].T))


def _is_taken_apart(value: ir.Value, axis: int) -> bool:
    """Whether single entries of an axis are read, behind whatever else only rearranges it."""
    rank = facts.rank(value) or 1
    for use in value.uses():
        node = use.node
        if use.idx != 0 or node.domain != "":
            continue
        if node.op_type in ("Gather", "Split"):
            if int(facts.attribute(node, "axis", 0)) % rank == axis:
                return True
        elif node.op_type == "Slice":
            if axis in (slices_of(node, rank) or {}):
                return True
        elif node.op_type in ("Transpose", "Squeeze", "Unsqueeze"):
            place = _place_behind(node, axis, rank)
            if place is not None and _is_taken_apart(node.outputs[0], place):
                return True
    return False


def _place_behind(node: ir.Node, axis: int, rank: int) -> int | None:
    """Where an axis lies in what a Transpose, Squeeze or Unsqueeze makes; None where it is gone, or not known."""
    if node.op_type == "Transpose":
        return list(facts.attribute(node, "perm", None) or range(rank)[::-1]).index(axis)
    given = facts.ints(node.inputs[1]) if len(node.inputs) > 1 else None
    if given is None:
        return None
    if node.op_type == "Squeeze":
        gone = {place % rank for place in given}
        return None if axis in gone else axis - sum(place < axis for place in gone)
    whole = rank + len(given)
    added = {place % whole for place in given}
    return [place for place in range(whole) if place not in added][axis]


def _repeating(
    flow: Flow, node: ir.Node, move: Move, axis: int, labels: Indices
) -> tuple[dict[int, Axis], str]:
    """The labels of axes that are reshaped together with sizes that are not known.

    Whatever these are, labels repeat: the axis and what lies behind it is a block, and so are the last axes of the
    result, as far as their sizes are known.

    Args:
        axis: That has labels, of its own or that repeat along it.
        labels: These.
    """
    before, dims = facts.dims(node.inputs[0]) or (), facts.dims(node.outputs[0]) or ()
    behind = [before[place] for place in move.before if place > axis]
    known = list(itertools.takewhile(lambda place: dims[place] is not None, reversed(move.after)))[::-1]
    after = {place: dims[place] or 0 for place in known}
    size, rest = math.prod(after.values()), [place for place in move.after if place not in after]
    reason = "it is reshaped together with a size that is not known"
    if None not in behind and size:
        block = np.repeat(labels, math.prod(one for one in behind if one is not None))
        if size % len(block) == 0:
            block = np.tile(block, size // len(block))
            real = [place for place, one in after.items() if one != 1]
            if len(real) == 1:
                return {real[0]: block}, ""
            kept, own = _split_axis(flow, node, block, after, move.before[-1] == len(before) - 1)
            return {kept: own}, ""
        if len(block) % size == 0 and rest:
            own = flow.tie_rows(node, np.ascontiguousarray(block.reshape(-1, size).T))
            reason = "" if _may_be_free(flow, node, rest[-1], move) else "its shape is computed"
            if not reason:
                flow.labels.put_merged(node.outputs[0], rest[-1], own)
                return {}, ""
    flow.labels.pin(labels, node.name or node.op_type, reason)
    return {}, reason


def _may_be_free(flow: Flow, node: ir.Node, axis: int, move: Move) -> bool:
    """Whether the size of an axis may be left to follow from the others: it is -1, or may become that."""
    entries = flow.shapes.entries(node.inputs[1]) if node.op_type == "Reshape" else None
    own = None if entries is None else entries[axis]
    if entries is None or own is None:
        return False
    if own.known == 0:
        return move.before == move.after
    others = [entry for place, entry in enumerate(entries) if place != axis]
    return own.known == -1 or not any(entry is None or entry.known == -1 for entry in others)


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
