"""Shapes that are operands: which of their entries are known, and what the sizes of axes are used for."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir.symbolic import Shapes

TARGETS = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1, "Resize": 3}
"""Operands that say the shape of the result, which are mended."""
_ARITHMETIC = ("Add", "Div", "Equal", "Mul", "Sub", "Where")
"""What :class:`~graphopt.ir.symbolic.Shapes` can evaluate."""


def target_of(value: ir.Value | None, shapes: Shapes) -> list[int | None] | None:
    """The entries of a shape, None for each that depends on the inputs; None where their number is not known."""
    entries = shapes.renew().entries(value)
    return None if entries is None else [None if entry is None else entry.known for entry in entries]


def written(value: ir.Value | None) -> list[int | None] | None:
    """The entries of a shape that stand in constants, None for each that is computed, from whatever it may be."""
    known = facts.ints(value)
    if known is not None:
        return list(known)
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Concat":
        dims = facts.static_dims(value)
        return None if dims is None or len(dims) != 1 else [None] * dims[0]
    parts = [written(part) for part in node.inputs]
    return None if None in parts else [entry for part in parts for entry in part or ()]


def slices_of(node: ir.Node, rank: int) -> dict[int, slice | None] | None:
    """What a Slice cuts out along each axis that it names, None where that is computed; None where the axes are."""
    if not rank or len(node.inputs) < 3:
        return None
    slots = {slot: node.inputs[slot] for slot in (3, 4) if slot < len(node.inputs)}
    starts, ends = facts.ints(node.inputs[1]), facts.ints(node.inputs[2])
    count = facts.static_dims(node.inputs[1])
    axes = facts.ints(slots[3]) if slots.get(3) is not None else tuple(range(count[0])) if count else None
    if axes is None:
        return None
    steps = facts.ints(slots[4]) if slots.get(4) is not None else (1,) * len(axes)
    if starts is None or ends is None or steps is None:
        return {axis % rank: None for axis in axes}
    return {
        axis % rank: slice(start, end, step)
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)
    }


def pads_of(node: ir.Node, rank: int, shapes: Shapes) -> list[tuple[int | None, int | None]] | None:
    """What a Pad puts before and behind each axis, None where that is computed; None where the axes are."""
    given = node.inputs[3] if len(node.inputs) > 3 else None
    axes = tuple(range(rank)) if given is None else facts.ints(given)
    if axes is None:
        return None
    pads = target_of(node.inputs[1], shapes) or [None] * (2 * len(axes))
    found: list[tuple[int | None, int | None]] = [(0, 0)] * rank
    for place, axis in enumerate(axes):
        found[axis % rank] = pads[place], pads[place + len(axes)]
    return found


def sizes_used(value: ir.Value, origins: Sequence[frozenset[int]], shapes: Shapes) -> frozenset[int]:
    """The axes whose sizes are used for anything but a shape in which they are known numbers.

    Args:
        value: A vector or a single number, made of sizes.
        origins: The axes that each of its elements is the size of.
    """
    every = frozenset[int]().union(*origins)
    if value.is_graph_output():
        return every
    maker = value.producer()
    found: frozenset[int] = frozenset()
    for use in value.uses():
        node = use.node
        # What branches and loops hold is not mended.
        if node.domain != "" or maker is None or node.graph is not maker.graph:
            found |= every
        elif TARGETS.get(node.op_type) == use.idx:
            target = target_of(value, shapes) or [None] * len(origins)
            found = found.union(*(own for own, size in zip(origins, target, strict=False) if size is None))
        else:
            inner = _handed(node, use.idx, value, origins)
            found |= every if inner is None else sizes_used(node.outputs[0], inner, shapes)
    return found


def _handed(
    node: ir.Node, slot: int, value: ir.Value, origins: Sequence[frozenset[int]]
) -> Sequence[frozenset[int]] | None:
    """Where the elements of what a node makes come from; None where it computes with them."""
    kind = node.op_type
    if kind in ("Cast", "Identity", "Squeeze", "Unsqueeze"):
        return origins
    if kind == "Reshape" and slot == 0 and (facts.rank(node.outputs[0]) or 0) < 2:
        return origins
    if kind == "Gather" and slot == 0:
        chosen = facts.ints(node.inputs[1])
        return None if chosen is None else [origins[place] for place in chosen]
    if kind == "Slice" and slot == 0:
        part = (slices_of(node, 1) or {}).get(0)
        places = None if part is None else facts.sliced(len(origins), part.start, part.stop, part.step)
        return None if places is None else [origins[place] for place in places]
    dims = facts.dims(node.outputs[0])
    if kind in _ARITHMETIC and dims is not None and len(dims) < 2 and None not in dims:
        return [frozenset[int]().union(*origins)] * (dims[0] or 0 if dims else 1)
    return _joined(node, value, origins) if kind == "Concat" else None


def _joined(node: ir.Node, value: ir.Value, origins: Sequence[frozenset[int]]) -> list[frozenset[int]] | None:
    """Where each element of a Concat of sizes comes from, as far as it is this value."""
    found: list[frozenset[int]] = []
    for part in node.inputs:
        dims = facts.static_dims(part)
        if dims is None or len(dims) != 1:
            return None
        found += origins if part is value else [frozenset()] * dims[0]
    return found


__all__ = ["TARGETS", "pads_of", "sizes_used", "slices_of", "target_of", "written"]
