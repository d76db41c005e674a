"""Operators that join, cut out, pick and pad."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.prune.flow.base import Flow, Rule
from graphopt.prune.labels import PINNED, Axis


def _concat(flow: Flow, node: ir.Node) -> None:
    values = [value for value in node.inputs if value is not None]
    rank = facts.rank(node.outputs[0])
    if rank is None:
        flow.refuse(node, "the rank of its result is not known")
        return
    where = int(facts.attribute(node, "axis", 0)) % rank
    found: list[Axis] = []
    for axis in range(rank):
        if axis != where:
            labels = flow.labels.of(values[0], axis)
            for value in values[1:]:
                labels = flow.tie(
                    node, labels, flow.labels.of(value, axis), "what it joins may not be removed"
                )
            found.append(labels)
            continue
        sizes = [facts.dims(value)[axis] for value in values]  # type: ignore[index]
        parts = [flow.labels.of(value, axis) for value in values]
        if all(part is None for part in parts) or not all(isinstance(size, int) for size in sizes):
            for part in parts:
                flow.labels.pin(part, node.name or "", "it joins it with what has no known size")
            found.append(None)
            continue
        whole = [
            np.full(int(size or 0), PINNED, np.int64) if part is None else part
            for part, size in zip(parts, sizes, strict=True)
        ]
        found.append(np.concatenate(whole))
    flow.labels.put(node.outputs[0], found)


def _split(flow: Flow, node: ir.Node) -> None:
    axes = flow.axes(node.inputs[0])
    if not axes:
        return
    axis = int(facts.attribute(node, "axis", 0)) % len(axes)
    sizes = [(facts.dims(output) or (None,) * len(axes))[axis] for output in node.outputs]
    if axes[axis] is not None and (None in sizes or sum(sizes) != len(axes[axis])):  # type: ignore[arg-type]
        flow.pin_axes(node, node.inputs[0], [axis], "the sizes of its parts are not known")
        axes[axis] = None
    begin = 0
    for output, size in zip(node.outputs, sizes, strict=True):
        part = axes[axis]
        own = list(axes)
        if part is not None and size is not None:
            own[axis] = part[begin : begin + size]
            begin += size
        flow.labels.put(output, own)


def _slice(flow: Flow, node: ir.Node) -> None:
    axes = flow.axes(node.inputs[0])
    read = slices_of(node, len(axes))
    if read is None:
        flow.refuse(node, "where it cuts is computed")
        return
    for axis, part in read.items():
        labels = axes[axis]
        if labels is None:
            continue
        flow.use(labels)
        if part.step not in (None, 1):
            flow.pin_axes(node, node.inputs[0], [axis], "it takes every n-th of them")
            axes[axis] = None
        else:
            axes[axis] = labels[part]
    flow.labels.put(node.outputs[0], axes)


def slices_of(node: ir.Node, rank: int) -> dict[int, slice] | None:
    """What a Slice cuts out along each axis that it names; None where that is computed."""
    given = [facts.ints(value) for value in node.inputs[1:] if value is not None]
    if any(entry is None for entry in given) or len(given) < 2 or not rank:
        return None
    starts, ends = given[0], given[1]
    assert starts is not None and ends is not None
    slots = {slot: facts.ints(node.inputs[slot]) for slot in (3, 4) if slot < len(node.inputs)}
    axes = slots.get(3) or tuple(range(len(starts)))
    steps = slots.get(4) or (1,) * len(starts)
    return {
        axis % rank: slice(start, end, step)
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)
    }


def _gather(flow: Flow, node: ir.Node) -> None:
    data, indices = node.inputs[0], node.inputs[1]
    rank, places = facts.rank(data), facts.rank(indices)
    if rank is None or places is None:
        flow.refuse(node, "its shapes are not known")
        return
    axis = int(facts.attribute(node, "axis", 0)) % rank
    # A table of constants is not asked for labels along the axis that is looked up.
    axes = [
        None if place == axis and facts.is_constant(data) else flow.labels.of(data, place)
        for place in range(rank)
    ]
    chosen = facts.constant(indices)
    taken: list[Axis] = [None] * places
    if axes[axis] is not None:
        flow.use(axes[axis])
        if chosen is None:
            flow.pin_axes(node, data, [axis], "which of them it takes is computed")
        elif chosen.ndim == 1:
            taken = [axes[axis][chosen]]  # type: ignore[index]
        else:
            flow.labels.pin(axes[axis][chosen.reshape(-1)], node.name or "", "it takes these alone")  # type: ignore[index]
    flow.labels.put(node.outputs[0], [*axes[:axis], *taken, *axes[axis + 1 :]])


def _pad(flow: Flow, node: ir.Node) -> None:
    axes, pads = flow.axes(node.inputs[0]), facts.ints(node.inputs[1])
    if pads is None or (len(node.inputs) > 3 and node.inputs[3] is not None):
        flow.refuse(node, "what it pads is computed")
        return
    for axis, labels in enumerate(axes):
        before, after = pads[axis], pads[axis + len(axes)]
        if labels is None or not (before or after):
            continue
        if facts.attribute(node, "mode", "constant") != "constant" or min(before, after) < 0:
            flow.pin_axes(node, node.inputs[0], [axis], "it pads along this axis with what lies there")
            axes[axis] = None
        else:
            edges = [np.full(count, PINNED, np.int64) for count in (before, after)]
            axes[axis] = np.concatenate([edges[0], labels, edges[1]])
    flow.labels.put(node.outputs[0], axes)


RULES: Mapping[str, Rule] = {
    "Concat": _concat,
    "Gather": _gather,
    "Pad": _pad,
    "Slice": _slice,
    "Split": _split,
}
"""By operator of ONNX."""

__all__ = ["RULES", "slices_of"]
