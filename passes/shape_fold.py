"""Reshape(x, Concat(Gather(Shape(x), 0), 64))  ==>  Reshape(x, [0, 64])

Forms: every exporter computes the shape operands of Reshape, Expand, Slice, Range, ConstantOfShape, Resize
from the Shape of another tensor, even where the dimensions that matter are static: ``x.view(x.size(0), -1,
64)`` in PyTorch, ``tf.reshape`` with a partly dynamic shape, Paddle's ``flatten``. The elements of small
integer tensors are followed through the graph, each as a number or as (an expression over) named dynamic
dimensions, which is the partial data propagation of ONNX's shape inference taken further. Then

- a tensor whose elements are all known numbers becomes a constant;
- a Reshape target becomes a constant in which a dynamic dimension that stays in place is 0 and one other is
  -1;
- an Expand or Slice that is found to change nothing goes;
- a dynamic dimension that is one of an input is taken from there, so that nothing is computed for its shape alone.

Refuses: nothing; what is not known stays as it is. So does the computed size of a tensor that may be empty because the
model found nothing: beside a dimension of 0, a Reshape takes no -1. Elements are followed for up to 64 of them,
subgraphs included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir.facts import Dim, known_dims
from graphopt.ir.symbolic import refine
from graphopt.passes._elements import MOST_ELEMENTS, Element, Elements, evaluate, is_dim
from graphopt.passes._evaluate import breaks_range
from graphopt.passes._shapes import reshape_target
from graphopt.pipeline.base import Pass
from graphopt.rewrite import Builder, Gate, Numerics, RewriteLog, allow_all
from graphopt.rewrite.driver import commit

_TYPES = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL})
_WHOLE = 2**31 - 1
_RANGE_OF_SHAPE = 15
"""The opset from which on Shape takes ``start`` and ``end``."""


class ShapeFold(Pass):
    """Partial evaluation of the computations that shapes go through."""

    name: ClassVar[str] = "shape-fold"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def run(self, model: ir.Model, log: RewriteLog, gate: Gate = allow_all) -> bool:
        """One sweep to learn the elements, one to use them; linear in the size of the graph."""
        opset = model.graph.opset_imports.get("", 0)
        known = _Known(model.graph.inputs if opset >= _RANGE_OF_SHAPE else ())
        refine(model.graph)
        for node in model.graph.all_nodes():
            known.learn(node)
        before = len(log.applied)
        for graph in (model.graph, *model.graph.subgraphs()):
            for node in graph:
                self._use(graph, node, known, log, gate)
        return len(log.applied) > before

    def _use(self, graph: ir.Graph, node: ir.Node, known: _Known, log: RewriteLog, gate: Gate) -> None:
        if not node.outputs or node.domain != "":
            return
        build = Builder(node, self.name)
        replacement: ir.Value | None = None
        elements = known.elements(node.outputs[0]) if len(node.outputs) == 1 else None
        if elements is not None and elements.numbers is not None:
            if _worth_replacing(node, known):
                replacement = build.constant(_array(elements, node.outputs[0]))
        elif elements is not None:
            replacement = _of_an_input(node, elements, known, build)
        elif node.op_type == "Reshape":
            replacement = _reshape(node, known, build)
        elif _does_nothing(node, known):
            replacement = node.inputs[0]
        if replacement is None:
            return
        if log.admit(gate, self.name, node.outputs[0].name or node.op_type):
            commit(graph, node, [replacement], build, self.name)
        else:
            build.discard()


class _Known:
    """What is known of the elements of small integer tensors, and of the graph's inputs.

    Args:
        inputs: Of the graph, whose dimensions may be asked for one by one: none where Shape has no range (before opset
            15).
    """

    def __init__(self, inputs: Sequence[ir.Value]) -> None:
        self._elements: dict[ir.Value, Elements | None] = {}
        self._inputs = {value: known_dims(value) or () for value in inputs}

    def is_input(self, value: ir.Value | None) -> bool:
        """Whether a value is an input of the main graph."""
        return value in self._inputs

    def place(self, dims: Sequence[Element]) -> tuple[ir.Value, int] | None:
        """An input that has these dimensions one after the other, and the first one's axis."""
        for value, shape in self._inputs.items():
            for axis in range(len(shape) - len(dims) + 1):
                if shape[axis : axis + len(dims)] == tuple(dims):
                    return value, axis
        return None

    def elements(self, value: ir.Value | None) -> Elements | None:
        """The elements of a value of rank 0 or 1, or None."""
        if value is None:
            return None
        if value not in self._elements:
            self._elements[value] = _of_constant(value)
        return self._elements[value]

    def learn(self, node: ir.Node) -> None:
        """Evaluate one node, and what its operands say about the shape of its output."""
        if node.domain != "" or not node.outputs:
            return
        out = node.outputs[0]
        dtype = out.dtype if out.dtype is not None or node.op_type != "Shape" else ir.DataType.INT64
        if len(node.outputs) == 1 and dtype in _TYPES:
            found = evaluate(node, self.elements)
            if found is not None and len(found.items) <= MOST_ELEMENTS:
                self._elements[out] = _within(found, dtype)
        shape_of = _SHAPE_OPERAND.get(node.op_type)
        if shape_of is not None and facts.static_dims(out) is None:
            shape = shape_of(node, self)
            if shape is not None:
                _refine_shape(out, shape)


def _of_constant(value: ir.Value) -> Elements | None:
    shape = facts.static_dims(value)
    if value.dtype not in _TYPES or shape is None or len(shape) > 1 or not facts.is_constant(value):
        return None
    if shape and shape[0] > MOST_ELEMENTS:
        return None
    content = facts.constant(value)
    assert content is not None
    items: list[Element] = [int(element) for element in content.reshape(-1)]
    return Elements(len(shape), tuple(items))


def _within(elements: Elements, dtype: ir.DataType | None) -> Elements | None:
    """None where a number does not fit the type, so that the node would wrap around."""
    bits = 31 if dtype == ir.DataType.INT32 else 63
    if dtype == ir.DataType.BOOL:
        return elements
    for item in elements.items:
        if isinstance(item, int) and not -(2**bits) <= item < 2**bits:
            return None
    return elements


def _array(elements: Elements, value: ir.Value) -> facts.Array:
    dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.int64)
    array = np.array(elements.numbers, dtype=dtype)
    return array.reshape(()) if elements.rank == 0 else array


def _worth_replacing(node: ir.Node, known: _Known) -> bool:
    """Only what is read by something that stays: the rest falls away with it."""
    out = node.outputs[0]
    if node.op_type == "Identity" and out.is_graph_output():
        return False
    if breaks_range(out):
        return False
    if out.is_graph_output():
        return True
    for use in out.uses():
        results = use.node.outputs
        inner = known.elements(results[0]) if len(results) == 1 else None
        if inner is None or inner.numbers is None:
            return True
    return False


def _of_an_input(node: ir.Node, elements: Elements, known: _Known, build: Builder) -> ir.Value | None:
    """Dynamic dimensions of a computed value as those of an input that has them too."""
    shape = (
        node if node.op_type == "Shape" else node.inputs[0].producer() if node.inputs[0] is not None else None
    )
    picks = node.op_type in ("Gather", "Shape", "Slice") and shape is not None and shape.op_type == "Shape"
    if shape is None or not picks or shape.domain or known.is_input(shape.inputs[0]) or not elements.items:
        return None
    if not all(map(is_dim, elements.items)):
        return None
    place = known.place(elements.items)
    if place is None:
        return None
    value, axis = place
    count = len(elements.items)
    if elements.rank == 1:
        return build.op("Shape", value, start=axis, end=axis + count, dtype=ir.DataType.INT64, shape=[count])
    dims = build.op("Shape", value, dtype=ir.DataType.INT64, shape=[len(known_dims(value) or ())])
    return build.op("Gather", dims, np.asarray(axis, np.int64), axis=0, like=node.outputs[0])


def _reshape(node: ir.Node, known: _Known, build: Builder) -> ir.Value | None:
    x, operand = node.inputs[0], node.inputs[1]
    elements = known.elements(operand)
    if x is None or elements is None or elements.rank != 1 or facts.is_constant(operand):
        return None
    copies = not facts.attribute(node, "allowzero", 0)
    given = known_dims(x)
    target: list[int] = []
    for index, item in enumerate(elements.items):
        dim = given[index] if given is not None and index < len(given) else None
        if isinstance(item, int):
            if item == 0 and not copies:
                return None
            target.append(item)
        else:
            target.append(0 if item is not None and item == dim else -1)
    if -1 in target and -1 not in elements.items and not _never_empty(given, target, known):
        # A size that is computed may be left out beside a size of zero, which the one computed here would not be.
        return None
    if target.count(-1) > 1:
        # The inferred shape of the result may know what the operand does not say.
        wanted = known_dims(node.outputs[0])
        better = reshape_target(x, wanted) if wanted is not None and _agree(wanted, elements) else None
        if better is None:
            return None
        target = better
    return build.op("Reshape", x, np.array(target, dtype=np.int64), like=node.outputs[0])


def _never_empty(shape: tuple[Dim, ...] | None, target: Sequence[int], known: _Known) -> bool:
    """Whether the dimensions that a Reshape copies are those of inputs: what a model finds may be nothing at all."""
    copied = [shape[index] for index, size in enumerate(target) if size == 0] if shape is not None else []
    return all(isinstance(dim, int) or known.place([dim]) is not None for dim in copied)


def _agree(shape: tuple[Dim, ...], elements: Elements) -> bool:
    """Whether a shape is what a Reshape to ``elements`` may have; what a model declares of its outputs may be false."""
    return len(shape) == len(elements.items) and all(
        dim == item or not isinstance(dim, int) or not isinstance(item, int) or item < 1
        for dim, item in zip(shape, elements.items, strict=True)
    )


def _does_nothing(node: ir.Node, known: _Known) -> bool:
    if node.op_type == "Expand":
        return _expands_nothing(node, known)
    return node.op_type == "Slice" and _slices_nothing(node, known)


def _expands_nothing(node: ir.Node, known: _Known) -> bool:
    elements, shape = known.elements(node.inputs[1]), known_dims(node.inputs[0])
    if elements is None or shape is None or len(elements.items) > len(shape):
        return False
    aligned = shape[len(shape) - len(elements.items) :]
    return all(
        item == 1 or (item is not None and item == dim)
        for item, dim in zip(elements.items, aligned, strict=True)
    )


def _slices_nothing(node: ir.Node, known: _Known) -> bool:
    operands = [*node.inputs[1:], None, None][:4]
    starts, ends, axes, steps = (known.elements(operand) for operand in operands)
    shape = known_dims(node.inputs[0])
    if starts is None or ends is None or shape is None:
        return False
    if (operands[2] is not None and axes is None) or (operands[3] is not None and steps is None):
        return False
    if any(start != 0 for start in starts.items) or (steps is not None and any(s != 1 for s in steps.items)):
        return False
    chosen = axes.numbers if axes is not None else tuple(range(len(ends.items)))
    if chosen is None:
        return False
    return all(_reaches(end, shape[axis]) for end, axis in zip(ends.items, chosen, strict=True))


def _reaches(end: Element, dim: Dim) -> bool:
    if isinstance(end, int):
        return end >= (dim if isinstance(dim, int) else _WHOLE)
    return end is not None and end == dim


def _refine_shape(value: ir.Value, shape: tuple[Dim, ...]) -> None:
    """Put what was learned into the shape of ``value``, where that says nothing yet."""
    given = known_dims(value)
    if value.is_graph_output():
        return
    if given is None:
        value.shape = ir.Shape(shape)
    elif len(given) == len(shape):
        merged = tuple(_better(old, new) for old, new in zip(given, shape, strict=True))
        if merged != given:
            value.shape = ir.Shape(merged)


def _better(old: Dim, new: Dim) -> Dim:
    if old is None:
        return new
    return new if isinstance(new, int) and not isinstance(old, int) else old


def _dims_of(elements: Elements | None) -> tuple[Dim, ...] | None:
    """Elements as dimensions; an expression over dimensions is no name of one."""
    if elements is None or elements.rank != 1:
        return None
    return tuple(item if isinstance(item, int) or is_dim(item) else None for item in elements.items)


def _constant_of_shape(node: ir.Node, known: _Known) -> tuple[Dim, ...] | None:
    return _dims_of(known.elements(node.inputs[0]))


def _reshape_shape(node: ir.Node, known: _Known) -> tuple[Dim, ...] | None:
    wanted, given = _dims_of(known.elements(node.inputs[1])), known_dims(node.inputs[0])
    if wanted is None:
        return None
    if facts.attribute(node, "allowzero", 0):
        return tuple(None if dim == -1 else dim for dim in wanted)
    copied: list[Dim] = []
    for index, dim in enumerate(wanted):
        if dim == 0:
            dim = given[index] if given is not None and index < len(given) else None
        copied.append(None if dim == -1 else dim)
    return tuple(copied)


def _expand_shape(node: ir.Node, known: _Known) -> tuple[Dim, ...] | None:
    wanted, given = _dims_of(known.elements(node.inputs[1])), known_dims(node.inputs[0])
    if wanted is None or given is None:
        return None
    size = max(len(wanted), len(given))
    left: tuple[Dim, ...] = (1,) * (size - len(given)) + given
    right: tuple[Dim, ...] = (1,) * (size - len(wanted)) + wanted
    return tuple(_broadcast(a, b) for a, b in zip(left, right, strict=True))


def _broadcast(left: Dim, right: Dim) -> Dim:
    if left == 1:
        return right
    if right == 1 or left == right:
        return left
    # A number other than 1 wins over a dimension, which must then be 1 or the same.
    if isinstance(left, int):
        return left
    return right if isinstance(right, int) else None


_SHAPE_OPERAND: dict[str, Callable[[ir.Node, _Known], tuple[Dim, ...] | None]] = {
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand_shape,
    "Reshape": _reshape_shape,
}
