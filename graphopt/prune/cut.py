"""Removes classes of indices from a graph: slices every constant, and mends what says sizes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir import model as ir_model
from graphopt.ir.graphs import add_constant, free_name
from graphopt.ir.symbolic import Shapes
from graphopt.prune.flow.sizes import TARGETS, slices_of, target_of, written
from graphopt.prune.structure import Mask, Structure

Keep = Callable[[ir.Value | None, int], Mask | None]


def cut(model: ir.Model, structure: Structure, removed: Iterable[int]) -> ir.Model:
    """A copy of a model without some classes.

    What is left computes what the model would with zeros in place of these channels wherever a layer reads them.

    Args:
        structure: Of this very model.
        removed: Classes.
    """
    keep = structure.keeper(removed)
    copy = ir_model.clone(model)
    for value, axis, _ in structure.labels.constants():
        mask = keep(value, axis)
        if mask is not None:
            assert value.name is not None
            _slice(copy.graph.initializers[value.name], mask, axis)
    for node, twin in zip(list(model.graph), list(copy.graph), strict=True):
        for value, own in zip(node.outputs, twin.outputs, strict=True):
            _shrink(value, own, keep)
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type in TARGETS:
            _mend_target(node, twin, keep, structure.flow.shapes)
        elif node.op_type in MENDS:
            MENDS[node.op_type](node, twin, keep)
    return copy


def _slice(value: ir.Value, mask: Mask, axis: int) -> None:
    assert value.const_value is not None
    array = np.compress(mask, value.const_value.numpy(), axis=axis)
    value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
    value.shape = ir.Shape(array.shape)


def _shrink(value: ir.Value, own: ir.Value, keep: Keep) -> None:
    if value.shape is None:
        return
    sizes: list[int | ir.SymbolicDim | None] = list(value.shape)
    for axis in range(len(sizes)):
        mask = keep(value, axis)
        if mask is not None:
            # Of an axis of unknown size, which may have the name of a product, no more is known than that.
            sizes[axis] = int(mask.sum()) if isinstance(sizes[axis], int) else None
    own.shape = ir.Shape(sizes)


def _replace(twin: ir.Node, slot: int, content: Iterable[int]) -> None:
    """Give a node another constant of integers."""
    before = twin.inputs[slot]
    assert before is not None and isinstance(twin.graph, ir.Graph)
    array = np.asarray(list(content), facts.numpy_dtype(before))
    graph = twin.graph
    twin.replace_input_with(slot, _constant(twin, f"pruned_{slot}", array))
    if (
        before.name
        and not before.uses()
        and before.name in graph.initializers
        and not before.is_graph_output()
    ):
        del graph.initializers[before.name]


def _constant(twin: ir.Node, what: str, array: facts.Array) -> ir.Value:
    """A new constant beside a node, under a name that is free."""
    graph = twin.graph
    assert isinstance(graph, ir.Graph)
    name = free_name(f"{twin.name or twin.op_type}/{what}", graph.initializers)
    return add_constant(graph, name, ir.tensor(array))


def _conv(node: ir.Node, twin: ir.Node, keep: Keep) -> None:
    groups = facts.attribute(node, "group", 1)
    mask = keep(node.inputs[0], 1)
    if groups == 1 or mask is None:
        return
    if len(mask) == groups:
        twin.attributes["group"] = ir.AttrInt64("group", int(mask.sum()))
        return
    # Each group keeps others of its inputs, as many as the next one.
    weight = twin.inputs[1]
    assert weight is not None and weight.const_value is not None
    array = weight.const_value.numpy()
    inner = mask.reshape(groups, -1)
    parts = [part[:, chosen] for part, chosen in zip(np.split(array, groups), inner, strict=True)]
    whole = np.concatenate(parts)
    weight.const_value, weight.shape = ir.tensor(whole, name=weight.name), ir.Shape(whole.shape)


def _split(node: ir.Node, twin: ir.Node, keep: Keep) -> None:
    rank = facts.rank(node.inputs[0]) or 1
    axis = int(facts.attribute(node, "axis", 0)) % rank
    if keep(node.inputs[0], axis) is None:
        return
    sizes = [int(value.shape[axis]) for value in twin.outputs]  # type: ignore[index, arg-type]
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        _replace(twin, 1, sizes)
    elif len(set(sizes)) > 1:
        twin.attributes.pop("num_outputs", None)
        twin.resize_inputs(2)
        twin.replace_input_with(1, _constant(twin, "pruned_sizes", np.asarray(sizes, np.int64)))


def _slices(node: ir.Node, twin: ir.Node, keep: Keep) -> None:
    rank = facts.rank(node.inputs[0]) or 0
    read = slices_of(node, rank) or {}
    masks = {axis: keep(node.inputs[0], axis) for axis in read}
    if all(mask is None for mask in masks.values()):
        return
    starts, ends = [], []
    for axis, part in read.items():
        mask = masks[axis]
        # Where bounds are computed nothing of these axes is removed.
        assert part is not None
        if mask is None:
            starts.append(part.start)
            ends.append(part.stop)
            continue
        start, stop, _ = part.indices(len(mask))
        starts.append(int(mask[:start].sum()))
        ends.append(int(mask[: max(start, stop)].sum()))
    _replace(twin, 1, starts)
    _replace(twin, 2, ends)


def _gather(node: ir.Node, twin: ir.Node, keep: Keep) -> None:
    rank = facts.rank(node.inputs[0]) or 1
    axis = int(facts.attribute(node, "axis", 0)) % rank
    mask, chosen = keep(node.inputs[0], axis), facts.constant(node.inputs[1])
    if mask is None or chosen is None:
        return
    places = np.cumsum(mask) - 1
    wanted = chosen % len(mask)
    if chosen.ndim == 1:
        wanted = wanted[mask[wanted]]
    array = places[wanted].astype(chosen.dtype)
    twin.replace_input_with(1, _constant(twin, "pruned_indices", array))


def _mend_target(node: ir.Node, twin: ir.Node, keep: Keep, shapes: Shapes) -> None:
    """An operand that holds the shape of the result; entries that were computed from widths become numbers."""
    slot = TARGETS[node.op_type]
    given = node.inputs[slot] if slot < len(node.inputs) else None
    before, sizes = written(given), target_of(given, shapes)
    out = node.outputs[0]
    if not before or not sizes:
        return
    first = (facts.rank(out) or len(sizes)) - len(sizes)
    axes = facts.attribute(node, "axes", None) or range(first, first + len(sizes))
    wanted = list(sizes)
    for place, axis in enumerate(axes):
        mask = keep(out, axis)
        if mask is not None and isinstance(out.shape[axis], int) and sizes[place] not in (None, -1):  # type: ignore[index]
            wanted[place] = int(mask.sum())
        elif mask is not None and sizes[place] is None:
            wanted[place] = -1
    if wanted == before:
        return
    if None not in wanted:
        _replace(twin, slot, [size for size in wanted if size is not None])
        return
    twin.replace_input_with(slot, _joined(twin, twin.inputs[slot], iter(wanted), [0]))


def _joined(
    twin: ir.Node, value: ir.Value | None, wanted: Iterator[int | None], count: list[int]
) -> ir.Value:
    """A shape in parts, with other numbers.

    Args:
        wanted: Its entries, None for those that are computed.
        count: How many parts were made.
    """
    assert value is not None
    node = value.producer()
    if node is not None and node.op_type == "Concat" and not facts.is_constant(value):
        return _concat(twin, [_joined(twin, part, wanted, count) for part in node.inputs], count)
    entries = [next(wanted) for _ in written(value) or ()]
    if all(entry is None for entry in entries):
        return value
    parts = []
    for is_known, run in itertools.groupby(range(len(entries)), lambda place: entries[place] is not None):
        places = list(run)
        count[0] += 1
        array = np.asarray([entries[place] for place in places] if is_known else places, np.int64)
        part = _constant(twin, f"pruned_part_{count[0]}", array)
        parts.append(part if is_known else _made(twin, "Gather", [value, part], count))
    return parts[0] if len(parts) == 1 else _concat(twin, parts, count)


def _concat(twin: ir.Node, parts: Sequence[ir.Value], count: list[int]) -> ir.Value:
    return _made(twin, "Concat", parts, count, axis=0)


def _made(
    twin: ir.Node, op: str, inputs: Sequence[ir.Value], count: list[int], **attributes: int
) -> ir.Value:
    """A vector of sizes that a new node before ``twin`` makes."""
    graph = twin.graph
    assert isinstance(graph, ir.Graph)
    taken = {value.name for other in graph for value in other.outputs}
    name = free_name(f"{twin.name or twin.op_type}/pruned_shape_{count[0]}", taken)
    made = ir.node(op, inputs, attributes=attributes, name=name)
    made.outputs[0].name = name
    made.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    made.outputs[0].shape = ir.Shape(
        [sum(_length(value) for value in inputs) if op == "Concat" else _length(inputs[1])]
    )
    graph.insert_before(twin, made)
    return made.outputs[0]


def _length(value: ir.Value) -> int:
    return int(value.shape[0])  # type: ignore[index, arg-type]


def _rotary(node: ir.Node, twin: ir.Node, keep: Keep) -> None:
    mask, heads = keep(node.inputs[0], -1), facts.attribute(node, "num_heads", 0)
    if mask is not None and heads:
        twin.attributes["num_heads"] = ir.AttrInt64("num_heads", int(mask.reshape(heads, -1)[:, 0].sum()))


def _heads(node: ir.Node, twin: ir.Node, keep: Keep) -> None:
    for name, slot in (("q_num_heads", 0), ("kv_num_heads", 1)):
        mask = keep(node.inputs[slot], 2)
        heads = facts.attribute(node, name, 0)
        if mask is not None and heads:
            twin.attributes[name] = ir.AttrInt64(name, int(mask.reshape(heads, -1)[:, 0].sum()))


def _hidden(node: ir.Node, twin: ir.Node, keep: Keep) -> None:
    mask = keep(node.inputs[2], 2)
    if mask is not None:
        twin.attributes["hidden_size"] = ir.AttrInt64("hidden_size", int(mask.sum()))


def _groups(node: ir.Node, twin: ir.Node, keep: Keep) -> None:
    mask, groups = keep(node.inputs[0], 1), facts.attribute(node, "num_groups", 1)
    if mask is not None:
        twin.attributes["num_groups"] = ir.AttrInt64("num_groups", int(mask.reshape(groups, -1)[:, 0].sum()))


MENDS: Mapping[str, Callable[[ir.Node, ir.Node, Keep], None]] = {
    "Attention": _heads,
    "Conv": _conv,
    "ConvTranspose": _conv,
    "GRU": _hidden,
    "Gather": _gather,
    "GroupNormalization": _groups,
    "LSTM": _hidden,
    "RNN": _hidden,
    "RotaryEmbedding": _rotary,
    "Slice": _slices,
    "Split": _split,
}
"""By operator: what it says about sizes."""

__all__ = ["cut"]
