"""How labels go through operators: node by node, in topological order.

The rule for an operator says which labels its outputs have, ties those that stand for one index, and pins what the
operator mixes (a softmax, a normalization, a mean over the axis). What has no rule pins all that it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir.describe import all_reads
from graphopt.prune.labels import PINNED, Axis, Indices, Labels
from graphopt.prune.reshapes import Move, moves


@dataclass
class Flow:
    """The labels of a graph.

    Attributes:
        labels: Of its tensors.
        balanced: Labels [groups, channels] of which each group has to lose as many as the others.
    """

    labels: Labels = field(default_factory=Labels)
    balanced: list[Indices] = field(default_factory=list)
    _used: list[Indices] = field(default_factory=list, repr=False)

    def run(self, graph: ir.Graph) -> None:
        """Follow every node of the main graph."""
        for node in graph:
            rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            values = [value for value in node.inputs if value is not None]
            if rule is None or any(facts.rank(value) is None for value in values):
                why = "may not read fewer of them" if rule is None else "reads what has no known rank"
                self.refuse(node, f"{node.op_type} {why}")
            elif values and (facts.rank(values[0]) or node.op_type in _ELEMENTWISE):
                self._used = []
                before = self.labels.tied
                rule(self, node)
                self._pin_rest(node, before)
        for value in graph.outputs:
            for axis in range(facts.rank(value) or 0):
                self.labels.pin(self.labels.of(value, axis), "", f"{value.name!r} is an output of the model")

    def use(self, labels: Axis) -> None:
        """Say that a node needs no more of an axis than what is left of it."""
        if labels is not None:
            self._used.append(labels)

    def _pin_rest(self, node: ir.Node, first: int) -> None:
        """Pin what a node reads, neither hands on nor is known to need no more of: it is mixed with the rest.

        Args:
            first: Of the ties that the node's own rule made.
        """
        handed = [labels for value in node.outputs for labels in self.axes(value) if labels is not None]
        known = {id(labels) for labels in (*handed, *self._used)}
        computed = [value for value in node.inputs if value is not None and not facts.is_constant(value)]
        read = [labels for value in computed for labels in self.axes(value) if labels is not None]
        open_ = [labels for labels in read if id(labels) not in known]
        if not open_:
            return
        covered = {PINNED}.union(*(labels.tolist() for labels in (*handed, *self._used)))
        ties = self.labels.ties(first)
        changed = True
        while changed:
            size = len(covered)
            for left, right in ties:
                for a, b in zip(left.tolist(), right.tolist(), strict=True):
                    if (a in covered or b in covered) and PINNED not in (a, b):
                        covered.update((a, b))
            changed = len(covered) > size
        for labels in open_:
            rest = np.array([label for label in labels.tolist() if label not in covered], np.int64)
            self.labels.pin(rest, node.name or node.op_type, f"{node.op_type} mixes them")

    def refuse(self, node: ir.Node, reason: str) -> None:
        """Pin everything that a node reads, its constants too."""
        for value in all_reads(node):
            for axis in range(facts.rank(value) or 0):
                self.labels.pin(self.labels.of(value, axis), node.name or node.op_type, reason)

    def pin_axes(self, node: ir.Node, value: ir.Value | None, axes: Iterable[int], reason: str) -> None:
        """Pin axes of a computed value; a constant that nothing else has labelled needs none."""
        if value is None or facts.is_constant(value):
            return
        for axis in axes:
            self.labels.pin(self.labels.of(value, axis), node.name or node.op_type, reason)

    def axes(self, value: ir.Value | None) -> list[Axis]:
        """The labels of every axis of a computed value."""
        return [self.labels.of(value, axis) for axis in range(facts.rank(value) or 0)]

    def tie(self, node: ir.Node, left: Axis, right: Axis, reason: str) -> Axis:
        """Tie two axes on behalf of a node."""
        return self.labels.tie(left, right, node.name or node.op_type, reason)

    def tie_rows(self, node: ir.Node, labels: Indices) -> Indices:
        """Tie the rows of labels [n, m] to the first one; returns that."""
        for row in labels[1:]:
            self.tie(node, labels[0], row, "")
        first: Indices = labels[0]
        return first


Rule = Callable[[Flow, ir.Node], None]


def _elementwise(flow: Flow, node: ir.Node) -> None:
    """Any number of operands that broadcast against each other (ONNX specification, Multidirectional Broadcasting)."""
    _broadcast(flow, node, [value for value in node.inputs if value is not None])


def _first_only(flow: Flow, node: ir.Node) -> None:
    """Element by element over the first operand; the others are single numbers."""
    _broadcast(flow, node, [value for value in node.inputs[:1] if value is not None])


def _broadcast(flow: Flow, node: ir.Node, operands: Sequence[ir.Value], batch: int = 0) -> list[Axis]:
    """Labels of the first output; ``batch`` is how many of the last axes are left to the caller."""
    out = node.outputs[0]
    rank = facts.rank(out)
    if rank is None:
        flow.refuse(node, "the rank of its result is not known")
        return []
    dims = facts.dims(out)
    assert dims is not None
    found: list[Axis] = []
    for axis in range(rank - batch):
        labels: Axis = None
        first = True
        for value in operands:
            place = axis - rank + (facts.rank(value) or 0)
            size = facts.dims(value)[place] if 0 <= place < (facts.rank(value) or 0) - batch else 1  # type: ignore[index]
            if place < 0:
                continue
            if size == 1 and dims[axis] != 1:
                flow.pin_axes(node, value, [place], "it is repeated along this axis")
                continue
            own = flow.labels.of(value, place)
            labels = (
                own if first else flow.tie(node, labels, own, "it is combined with what may not be removed")
            )
            first = False
        found.append(labels)
    if not batch:
        flow.labels.put(out, found)
    return found


def _per_axis(*, keep: Callable[[ir.Node, int], Iterable[int]], reason: str) -> Rule:
    """Axes of the first operand go on, but for those that the operator mixes.

    Args:
        keep: From a node and the rank of its operand, the axes that are mixed.
    """

    def rule(flow: Flow, node: ir.Node) -> None:
        value = node.inputs[0]
        rank = facts.rank(value)
        if rank is None or value is None:
            return
        mixed = {axis % rank for axis in keep(node, rank)}
        flow.pin_axes(node, value, mixed, reason)
        for other in node.inputs[1:]:
            flow.pin_axes(node, other, range(facts.rank(other) or 0), reason)
        axes = flow.axes(value)
        for output in node.outputs:
            if facts.rank(output) == rank:
                flow.labels.put(
                    output, [None if axis in mixed else labels for axis, labels in enumerate(axes)]
                )

    return rule


def _from_axis(default: int) -> Callable[[ir.Node, int], Iterable[int]]:
    return lambda node, rank: range(int(facts.attribute(node, "axis", default)) % rank, rank)


def _one_axis(default: int) -> Callable[[ir.Node, int], Iterable[int]]:
    return lambda node, rank: [int(facts.attribute(node, "axis", default))]


def _spatial(flow: Flow, node: ir.Node) -> None:
    """Pools and the like: rows and channels go on, places do not."""
    value = node.inputs[0]
    axes = flow.axes(value)
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        flow.refuse(node, "its indices count channels")
        return
    flow.labels.put(node.outputs[0], [*axes[:2], *(None for _ in axes[2:])])


def _conv(flow: Flow, node: ir.Node) -> None:
    data, weight = node.inputs[0], node.inputs[1]
    channels, out = flow.labels.of(data, 1), flow.labels.of(weight, 0)
    groups = facts.attribute(node, "group", 1)
    dims = facts.static_dims(weight)
    if facts.is_constant(weight):
        flow.use(channels)
    if dims is None:
        flow.refuse(node, "its weights are not known")
        return
    if groups == 1:
        flow.tie(node, channels, flow.labels.of(weight, 1), "it reads channels that may not be removed")
    elif out is not None and channels is not None and len(channels) == groups:
        for row in out.reshape(groups, -1).T:
            flow.tie(node, channels, row, "")
    elif out is not None and channels is not None and len(weight.uses()) == 1:  # type: ignore[union-attr]
        flow.balanced.append(channels.reshape(groups, -1))
        flow.balanced.append(out.reshape(groups, -1))
    else:
        flow.labels.pin(out, node.name or "", "it has groups of channels that may not be removed")
        flow.labels.pin(channels, node.name or "", "its weights are not constant, or shared")
    _bias(flow, node, out, 2)
    _image(flow, node, out)


def _conv_transpose(flow: Flow, node: ir.Node) -> None:
    weight = node.inputs[1]
    groups = facts.attribute(node, "group", 1)
    channels, of_weight = flow.labels.of(node.inputs[0], 1), flow.labels.of(weight, 0)
    if facts.is_constant(weight):
        flow.use(channels)
    flow.tie(node, channels, of_weight, "it reads channels that may not be removed")
    out = flow.labels.of(weight, 1)
    if groups > 1 and channels is not None and out is not None and len(channels) == groups and len(out) == 1:
        out = channels
    elif groups > 1:
        flow.labels.pin(channels, node.name or "", "its channels are in groups")
        out = None
    _bias(flow, node, out, 2)
    _image(flow, node, out)


def _bias(flow: Flow, node: ir.Node, out: Axis, slot: int) -> None:
    bias = node.inputs[slot] if slot < len(node.inputs) else None
    if bias is not None:
        flow.tie(node, out, flow.labels.of(bias, 0), "its bias is computed")


def _image(flow: Flow, node: ir.Node, channels: Axis) -> None:
    rank = facts.rank(node.outputs[0])
    if rank is not None:
        flow.labels.put(node.outputs[0], [flow.labels.of(node.inputs[0], 0), channels, *(None,) * (rank - 2)])


def _matmul(flow: Flow, node: ir.Node) -> None:
    left, right = node.inputs[0], node.inputs[1]
    if min(facts.rank(left) or 0, facts.rank(right) or 0) < 2:
        flow.refuse(node, "it multiplies a vector")
        return
    reason = "it multiplies with what may not be removed"
    flow.tie(node, flow.labels.of(left, -1), flow.labels.of(right, -2), reason)
    if facts.is_constant(right) and facts.rank(right) == 2:
        flow.use(flow.labels.of(left, -1))
    batch = _broadcast(flow, node, [value for value in (left, right) if value is not None], batch=2)
    flow.labels.put(node.outputs[0], [*batch, flow.labels.of(left, -2), flow.labels.of(right, -1)])


def _gemm(flow: Flow, node: ir.Node) -> None:
    left, right = node.inputs[0], node.inputs[1]
    turned_left, turned_right = (facts.attribute(node, name, 0) for name in ("transA", "transB"))
    rows, inner = (flow.labels.of(left, axis) for axis in ((1, 0) if turned_left else (0, 1)))
    also, columns = (flow.labels.of(right, axis) for axis in ((1, 0) if turned_right else (0, 1)))
    flow.tie(node, inner, also, "it multiplies with what may not be removed")
    if facts.is_constant(right):
        flow.use(inner)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    dims = facts.dims(bias)
    if bias is not None and dims and dims[-1] != 1:
        columns = flow.tie(node, columns, flow.labels.of(bias, -1), "its bias is computed")
    if bias is not None and dims and len(dims) > 1 and dims[0] != 1:
        rows = flow.tie(node, rows, flow.labels.of(bias, 0), "its bias is computed")
    flow.labels.put(node.outputs[0], [rows, columns])


def _per_channel(flow: Flow, node: ir.Node) -> None:
    """Normalization of each channel by itself: its parameters go with the channels."""
    axes = flow.axes(node.inputs[0])
    if len(axes) < 2:
        flow.refuse(node, "it has no channels")
        return
    for value in node.inputs[1:]:
        if value is not None:
            axes[1] = flow.tie(node, axes[1], flow.labels.of(value, 0), "its parameters are computed")
    spatial = axes[2:] if node.op_type == "BatchNormalization" else [None for _ in axes[2:]]
    flow.labels.put(node.outputs[0], [*axes[:2], *spatial])


def _group_normalization(flow: Flow, node: ir.Node) -> None:
    axes = flow.axes(node.inputs[0])
    groups = facts.attribute(node, "num_groups", 1)
    if len(axes) > 1 and axes[1] is not None and len(axes[1]) % groups == 0:
        # A group is normalized as a whole, so it goes as a whole.
        flow.tie_rows(node, np.ascontiguousarray(axes[1].reshape(groups, -1).T))
    _per_channel(flow, node)


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


def _reshape(flow: Flow, node: ir.Node) -> None:
    data, out = node.inputs[0], node.outputs[0]
    axes = flow.axes(data)
    rank = facts.rank(out)
    if rank is None:
        flow.refuse(node, "the rank of its result is not known")
        return
    target: Sequence[int | None] | None = target_of(node.inputs[1]) if node.op_type == "Reshape" else ()
    if target is None or (target and len(target) != rank):
        flow.refuse(node, "its shape is computed")
        return
    found: list[Axis] = [None] * rank
    zeros = [size == 0 and not facts.attribute(node, "allowzero", 0) for size in target]
    for move in moves(data, out, zeros):
        labels, reason = _moved(flow, node, move, axes)
        if reason:
            flow.pin_axes(node, data, move.before, reason)
        for axis, own in labels.items():
            if own is not None and target and target[axis] is None:
                flow.labels.pin(own, node.name or "", "its shape is computed")
                own = None
            found[axis] = own
    flow.labels.put(out, found)


def target_of(value: ir.Value | None) -> list[int | None] | None:
    """The entries of a shape, None for each that is computed; None where their number is not known."""
    known = facts.ints(value)
    if known is not None:
        return list(known)
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Concat":
        dims = facts.static_dims(value)
        return None if dims is None or len(dims) != 1 else [None] * dims[0]
    found: list[int | None] = []
    for part in node.inputs:
        own = target_of(part)
        if own is None:
            return None
        found += own
    return found


def _moved(flow: Flow, node: ir.Node, move: Move, axes: Sequence[Axis]) -> tuple[dict[int, Axis], str]:
    """The labels of the axes that some axes become, or why there are none."""
    labelled = [axis for axis in move.before if axes[axis] is not None]
    if not labelled:
        return {}, ""
    if not move.after:
        return {}, "it becomes a single number"
    if len(move.before) == 1 and len(move.after) == 1:
        return {move.after[0]: axes[move.before[0]]}, ""
    if move.sizes_before is None or move.sizes_after is None:
        return {}, "it is reshaped together with a size that is not known"
    if len(labelled) > 1:
        return {}, "it is merged with another axis that may shrink"
    place = move.before.index(labelled[0])
    labels = axes[labelled[0]]
    assert labels is not None
    shape = [1] * len(move.before)
    shape[place] = len(labels)
    spread = np.broadcast_to(labels.reshape(shape), move.sizes_before)
    real = [index for index, size in enumerate(move.sizes_after) if size != 1]
    if len(real) <= 1:
        return {move.after[real[0] if real else 0]: np.ascontiguousarray(spread.reshape(-1))}, ""
    if sum(size != 1 for size in move.sizes_before) > 1:
        return {}, "it is reshaped into other axes"
    # One axis becomes several: one of these may shrink, and takes all of the others with it.
    whole = {index: _rows(labels, move.sizes_after, index) for index in real}
    # Axes that were merged before come apart again.
    same = [index for index, rows in whole.items() if (rows == rows[:, :1]).all()]
    if same:
        return {move.after[same[0]]: np.ascontiguousarray(whole[same[0]][:, 0])}, ""
    is_last = labelled[0] == len(axes) - 1
    # Heads lie before the elements of a head; channels of a group behind the group (ShuffleNet).
    among = real[:-1] if is_last else real[-1:]
    kept = max(among, key=lambda index: move.sizes_after[index])  # type: ignore[index]
    return {move.after[kept]: flow.tie_rows(node, np.ascontiguousarray(whole[kept].T))}, ""


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
    data, rank = node.inputs[0], facts.rank(node.outputs[0])
    axes, before, after = flow.axes(data), facts.dims(data) or (), facts.dims(node.outputs[0]) or ()
    if rank is None:
        flow.refuse(node, "the rank of its result is not known")
        return
    offset = rank - len(axes)
    for axis, labels in enumerate(axes):
        if labels is not None and (
            before[axis] != after[offset + axis] or facts.ints(node.inputs[1]) is None
        ):
            flow.pin_axes(node, data, [axis], "it is repeated, or its shape is computed")
            axes[axis] = None
    flow.labels.put(node.outputs[0], [*(None,) * offset, *axes])


def _tile(flow: Flow, node: ir.Node) -> None:
    axes, repeats = flow.axes(node.inputs[0]), facts.ints(node.inputs[1])
    for axis, labels in enumerate(axes):
        if labels is not None and (repeats is None or repeats[axis] != 1):
            flow.pin_axes(node, node.inputs[0], [axis], "it is repeated")
            axes[axis] = None
    flow.labels.put(node.outputs[0], axes)


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


def _resize(flow: Flow, node: ir.Node) -> None:
    before, after = facts.dims(node.inputs[0]), facts.dims(node.outputs[0])
    if before is None or after is None or before[:2] != after[:2] or facts.attribute(node, "axes", None):
        flow.refuse(node, "it resizes channels, or its sizes are not known")
        return
    sizes = node.inputs[3] if len(node.inputs) > 3 else None
    if sizes is not None and facts.ints(sizes) is None:
        flow.refuse(node, "its sizes are computed")
        return
    _spatial(flow, node)


def _reduce(flow: Flow, node: ir.Node) -> None:
    axes = flow.axes(node.inputs[0])
    given = node.inputs[1] if len(node.inputs) > 1 else None
    chosen = facts.ints(given) if given is not None else facts.attribute(node, "axes", ())
    if chosen is None:
        flow.refuse(node, "its axes are computed")
        return
    if not chosen:
        if facts.attribute(node, "noop_with_empty_axes", 0):
            flow.labels.put(node.outputs[0], axes)
            return
        chosen = range(len(axes))
    _reduced(flow, node, axes, {axis % len(axes) for axis in chosen})


def _arg_reduce(flow: Flow, node: ir.Node) -> None:
    axes = flow.axes(node.inputs[0])
    _reduced(flow, node, axes, {int(facts.attribute(node, "axis", 0)) % max(len(axes), 1)})


def _reduced(flow: Flow, node: ir.Node, axes: list[Axis], gone: set[int]) -> None:
    flow.pin_axes(node, node.inputs[0], gone, f"{node.op_type} is over all of them")
    kept = facts.attribute(node, "keepdims", 1)
    flow.labels.put(
        node.outputs[0],
        [None if axis in gone else labels for axis, labels in enumerate(axes) if kept or axis not in gone],
    )


def _depth_to_space(flow: Flow, node: ir.Node) -> None:
    axes = flow.axes(node.inputs[0])
    squared = int(facts.attribute(node, "blocksize", 1)) ** 2
    labels = axes[1] if len(axes) > 1 else None
    if labels is not None:
        depth_first = facts.attribute(node, "mode", "DCR") == "DCR"
        rows = labels.reshape(squared, -1) if depth_first else labels.reshape(-1, squared).T
        axes[1] = flow.tie_rows(node, np.ascontiguousarray(rows))
    flow.labels.put(node.outputs[0], [*axes[:2], *(None for _ in axes[2:])])


def _space_to_depth(flow: Flow, node: ir.Node) -> None:
    axes = flow.axes(node.inputs[0])
    squared = int(facts.attribute(node, "blocksize", 1)) ** 2
    if len(axes) > 1 and axes[1] is not None:
        axes[1] = np.tile(axes[1], squared)
    flow.labels.put(node.outputs[0], [*axes[:2], *(None for _ in axes[2:])])


def _attention(flow: Flow, node: ir.Node) -> None:
    """Heads go as a whole, those of keys and values with the queries that share them (ONNX operator Attention)."""
    q, k, v = node.inputs[:3]
    merged = facts.rank(q) == 3
    if any(value is not None for value in node.inputs[4:]) or any(output.name for output in node.outputs[1:]):
        flow.refuse(node, "it keeps keys and values")
        return
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        mask = node.inputs[3]
        flow.pin_axes(node, mask, range(facts.rank(mask) or 0), "it is a mask")
        if (facts.rank(mask) or 0) >= 3 and (facts.dims(mask) or (1, 1, 1))[-3] != 1:
            flow.refuse(node, "its mask has a row for each head")
            return
    axis = 2 if merged else 1
    all_labels = [flow.labels.of(value, axis) for value in (q, k, v)]
    if any(labels is None for labels in all_labels):
        flow.refuse(node, "its heads may not be removed")
        flow.labels.put(node.outputs[0], [None] * (facts.rank(node.outputs[0]) or 0))
        return
    of_q, of_k, of_v = (labels for labels in all_labels if labels is not None)
    queries = int(facts.attribute(node, "q_num_heads", 0)) if merged else len(of_q)
    shared = int(facts.attribute(node, "kv_num_heads", 0)) if merged else len(of_k)
    if not queries or not shared or queries % shared:
        flow.refuse(node, "its heads are not known")
        return
    for labels in (of_q, of_k, of_v):
        # All that belongs to one head of keys and values: [heads, elements].
        flow.tie_rows(node, np.ascontiguousarray(labels.reshape(shared, -1).T))
    heads = [labels.reshape(shared, -1)[:, 0] for labels in (of_q, of_k, of_v)]
    for other in heads[1:]:
        flow.tie(node, heads[0], other, "")
    batch = flow.labels.of(q, 0)
    if merged:
        each = len(of_v) // shared
        out = np.repeat(heads[0], queries // shared * each)
        flow.labels.put(node.outputs[0], [batch, None, out])
    else:
        flow.labels.put(node.outputs[0], [batch, of_q, None, None])


def _recurrent(gates: int) -> Rule:
    """Hidden units go with their gates, in all directions alike (ONNX specification, LSTM, GRU, RNN)."""

    def rule(flow: Flow, node: ir.Node) -> None:
        inputs: list[ir.Value | None] = [*node.inputs, *(None,) * (8 - len(node.inputs))]
        data, weight, recurrent, bias, lengths, first, second, peepholes = inputs
        hidden = int(facts.attribute(node, "hidden_size", 0))
        if not hidden or facts.attribute(node, "layout", 0) or lengths is not None or peepholes is not None:
            flow.refuse(node, "it is of a form whose units cannot be told apart")
            return
        flow.tie(node, flow.labels.of(data, 2), flow.labels.of(weight, 2), "it reads what may not be removed")
        if facts.is_constant(weight):
            flow.use(flow.labels.of(data, 2))
        units = flow.labels.of(recurrent, 2)
        reason = "its weights are not constant"
        for value, copies in ((weight, gates), (recurrent, gates), (bias, 2 * gates)):
            labels = flow.labels.of(value, 1)
            if labels is not None and len(labels) == copies * hidden:
                units = flow.tie(node, units, flow.tie_rows(node, labels.reshape(copies, hidden)), reason)
            elif value is not None:
                flow.labels.pin(units, node.name or "", reason)
                units = None
        for state in (first, second):
            if state is not None:
                units = flow.tie(node, units, flow.labels.of(state, 2), "its first state is an input")
        axes = ([None, None, None, units], [None, None, units], [None, None, units])
        for output, own in zip(node.outputs, axes, strict=False):
            if facts.rank(output) == len(own):
                flow.labels.put(output, own)

    return rule


def _shape(flow: Flow, node: ir.Node) -> None:
    """Sizes that are read are those of axes that do not shrink."""
    rank = facts.rank(node.inputs[0]) or 0
    covered = list(range(rank))[facts.attribute(node, "start", 0) : facts.attribute(node, "end", rank)]
    used: set[int] = set()
    for use in node.outputs[0].uses():
        chosen = facts.constant(use.node.inputs[1]) if use.node.op_type == "Gather" else None
        places = range(len(covered)) if chosen is None else (int(place) for place in chosen.reshape(-1))
        used.update(covered[place] for place in places)
    if node.outputs[0].is_graph_output():
        used.update(covered)
    flow.pin_axes(node, node.inputs[0], used, "its size is computed with")
    for labels in flow.axes(node.inputs[0]):
        flow.use(labels)
    flow.labels.put(node.outputs[0], [None])


_ELEMENTWISE = (
    "Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip
_UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Dropout",
    "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log",
    "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus",
    "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip
_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
_POOLS = (
    "AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool",
)  # fmt: skip

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_UNARY, _first_only),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(_POOLS, _spatial),
    "ArgMax": _arg_reduce,
    "ArgMin": _arg_reduce,
    "Attention": _attention,
    "BatchNormalization": _per_channel,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "CumSum": _per_axis(keep=lambda node, rank: range(rank), reason="CumSum is over all of them"),
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _reshape,
    "GRU": _recurrent(3),
    "Gather": _gather,
    "Gemm": _gemm,
    "GroupNormalization": _group_normalization,
    "Hardmax": _per_axis(keep=_one_axis(-1), reason="Hardmax is over all of them"),
    "InstanceNormalization": _per_channel,
    "LRN": _per_axis(keep=lambda node, rank: [1], reason="LRN is over its neighbours"),
    "LSTM": _recurrent(4),
    "LayerNormalization": _per_axis(keep=_from_axis(-1), reason="LayerNormalization is over all of them"),
    "LogSoftmax": _per_axis(keep=_one_axis(-1), reason="LogSoftmax is over all of them"),
    "LpNormalization": _per_axis(keep=_one_axis(-1), reason="LpNormalization is over all of them"),
    "MatMul": _matmul,
    "Pad": _pad,
    "RMSNormalization": _per_axis(keep=_from_axis(-1), reason="RMSNormalization is over all of them"),
    "RNN": _recurrent(1),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Slice": _slice,
    "Softmax": _per_axis(keep=_one_axis(-1), reason="Softmax is over all of them"),
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "TopK": _per_axis(keep=_one_axis(-1), reason="TopK is over all of them"),
    "Transpose": _transpose,
    "Trilu": _per_axis(keep=lambda node, rank: [-2, -1], reason="Trilu cuts by its place"),
    "Unsqueeze": _unsqueeze,
}
"""By operator of ONNX."""

__all__ = ["RULES", "Flow", "slices_of", "target_of"]
