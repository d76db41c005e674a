"""Operators that join, cut out, pick and pad."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.prune.flow.base import Flow, Rule
from graphopt.prune.flow.sizes import pads_of, slices_of
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
        flow.refuse(node, "which axes it cuts is computed")
        return
    for axis, part in read.items():
        labels = axes[axis]
        if labels is None:
            continue
        if part is None or part.step not in (None, 1):
            reason = "where it cuts is computed" if part is None else "it takes every n-th of them"
            flow.labels.pin(labels, node.name or node.op_type, reason)
            axes[axis] = None
        else:
            flow.use(labels)
            axes[axis] = labels[part]
    flow.labels.put(node.outputs[0], axes)


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


def _gather_elements(flow: Flow, node: ir.Node) -> None:
    """Along one axis it takes what the indices say; along the others an element comes from where it stands."""
    data, indices = node.inputs[0], node.inputs[1]
    rank = facts.rank(data)
    if not rank or facts.rank(indices) != rank:
        flow.refuse(node, "its shapes are not known")
        return
    where = int(facts.attribute(node, "axis", 0)) % rank
    found = [
        flow.labels.of(indices, axis)
        if axis == where
        else flow.tie(
            node,
            flow.labels.of(data, axis),
            flow.labels.of(indices, axis),
            "its indices are as many as these",
        )
        for axis in range(rank)
    ]
    flow.pin_axes(node, data, [where], "which of them it takes is computed")
    flow.labels.put(node.outputs[0], found)


def _pad(flow: Flow, node: ir.Node) -> None:
    axes = flow.axes(node.inputs[0])
    pads = pads_of(node, len(axes), flow.shapes)
    if pads is None:
        flow.refuse(node, "which axes it pads is computed")
        return
    for axis, labels in enumerate(axes):
        before, after = pads[axis]
        if labels is None or before == after == 0:
            continue
        is_constant = facts.attribute(node, "mode", "constant") == "constant"
        if before is None or after is None or not is_constant or min(before, after) < 0:
            reason = (
                "how much it pads is computed"
                if before is None or after is None
                else "it pads along this axis with what lies there"
            )
            flow.labels.pin(labels, node.name or node.op_type, reason)
            axes[axis] = None
        else:
            edges = [np.full(count, PINNED, np.int64) for count in (before, after)]
            axes[axis] = np.concatenate([edges[0], labels, edges[1]])
    flow.labels.put(node.outputs[0], axes)


RULES: Mapping[str, Rule] = {
    "Concat": _concat,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Pad": _pad,
    "Slice": _slice,
    "Split": _split,
}
"""By operator of ONNX."""

__all__ = ["RULES"]
