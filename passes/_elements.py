"""Evaluation of operators on small integer tensors whose elements are numbers or symbolic dimensions.

An element is an integer (booleans are 0 and 1), the name of a dynamic dimension, an expression over such
names in parentheses (equal expressions are equal strings), or None where nothing is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir.facts import known_dims

Element = int | str | None
MOST_ELEMENTS = 64
_LONGEST_EXPRESSION = 120


@dataclass(frozen=True)
class Elements:
    """The elements of a tensor of rank 0 or 1."""

    rank: int
    items: tuple[Element, ...]

    @property
    def numbers(self) -> tuple[int, ...] | None:
        """The elements where all are numbers, else None."""
        numbers = tuple(item for item in self.items if isinstance(item, int))
        return numbers if len(numbers) == len(self.items) else None


Lookup = Callable[["ir.Value | None"], "Elements | None"]


def evaluate(node: ir.Node, lookup: Lookup) -> Elements | None:
    """The elements of the one output of ``node``, or None."""
    if node.op_type in _BINARY:
        return _binary(node, lookup)
    evaluator = _EVALUATORS.get(node.op_type)
    return evaluator(node, lookup) if evaluator is not None else None


def _operand(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _shape(node: ir.Node, lookup: Lookup) -> Elements | None:
    del lookup
    dims = known_dims(node.inputs[0])
    if dims is None:
        return None
    start, end = facts.attribute(node, "start", 0), facts.attribute(node, "end")
    # A name that looks like an expression of this module is none.
    items = [None if isinstance(dim, str) and dim.startswith("(") else dim for dim in dims]
    return Elements(1, tuple(items[start:end]))


def _size(node: ir.Node, lookup: Lookup) -> Elements | None:
    del lookup
    shape = facts.static_dims(node.inputs[0])
    return None if shape is None else Elements(0, (math.prod(shape),))


def _same(node: ir.Node, lookup: Lookup) -> Elements | None:
    return lookup(node.inputs[0])


def _cast(node: ir.Node, lookup: Lookup) -> Elements | None:
    found = lookup(node.inputs[0])
    if found is None or facts.attribute(node, "to") != ir.DataType.BOOL:
        return found
    return Elements(found.rank, tuple(int(i != 0) if isinstance(i, int) else None for i in found.items))


def _squeeze(node: ir.Node, lookup: Lookup) -> Elements | None:
    found = lookup(node.inputs[0])
    if found is None or found.rank != 1 or len(found.items) != 1:
        return None
    return Elements(0, found.items)


def _unsqueeze(node: ir.Node, lookup: Lookup) -> Elements | None:
    found, axes = lookup(node.inputs[0]), lookup(_operand(node, 1))
    if found is None or found.rank != 0 or axes is None or len(axes.items) != 1:
        return None
    return Elements(1, found.items)


def _reshape(node: ir.Node, lookup: Lookup) -> Elements | None:
    found, target = lookup(node.inputs[0]), lookup(_operand(node, 1))
    if found is None or target is None or target.numbers is None or len(target.items) > 1:
        return None
    return Elements(len(target.items), found.items)


def _gather(node: ir.Node, lookup: Lookup) -> Elements | None:
    found, indices = lookup(node.inputs[0]), lookup(_operand(node, 1))
    if found is None or indices is None or found.rank != 1 or facts.attribute(node, "axis", 0) not in (0, -1):
        return None
    size = len(found.items)
    picked: list[Element] = []
    for index in indices.items:
        if isinstance(index, int) and not -size <= index < size:
            return None
        picked.append(found.items[index] if isinstance(index, int) else None)
    return Elements(indices.rank, tuple(picked))


def _slice(node: ir.Node, lookup: Lookup) -> Elements | None:
    found = lookup(node.inputs[0])
    if found is None or found.rank != 1:
        return None
    bounds: list[int] = []
    for index, default in ((1, 0), (2, 0), (4, 1)):
        operand = _operand(node, index)
        if operand is None:
            bounds.append(default)
            continue
        elements = lookup(operand)
        if elements is None or elements.numbers is None or len(elements.items) != 1:
            return None
        bounds.append(elements.numbers[0])
    places = facts.sliced(len(found.items), *bounds)
    return None if places is None else Elements(1, tuple(found.items[place] for place in places))


def _concat(node: ir.Node, lookup: Lookup) -> Elements | None:
    items: list[Element] = []
    for value in node.inputs:
        found = lookup(value)
        if found is not None and found.rank == 1:
            items += found.items
            continue
        # One of unknown content still holds its places.
        shape = facts.static_dims(value)
        if shape is None or len(shape) != 1 or shape[0] > MOST_ELEMENTS:
            return None
        items += [None] * shape[0]
        if len(items) > MOST_ELEMENTS:
            return None
    return Elements(1, tuple(items)) if len(items) <= MOST_ELEMENTS else None


def _reduce(node: ir.Node, lookup: Lookup) -> Elements | None:
    found = lookup(node.inputs[0])
    if found is None or found.numbers is None or found.rank != 1 or not found.items:
        return None
    axes = _operand(node, 1)
    if axes is None:
        if facts.attribute(node, "noop_with_empty_axes", 0):
            return None
    else:
        chosen = lookup(axes)
        if chosen is None or chosen.numbers is None or len(chosen.items) != 1:
            return None
    folds: dict[str, Callable[[Sequence[int]], int]] = {
        "ReduceMax": max,
        "ReduceMin": min,
        "ReduceProd": math.prod,
        "ReduceSum": sum,
    }
    fold = folds[node.op_type]
    return Elements(1 if facts.attribute(node, "keepdims", 1) else 0, (fold(found.numbers),))


def _range(node: ir.Node, lookup: Lookup) -> Elements | None:
    numbers: list[int] = []
    for value in node.inputs:
        found = lookup(value)
        if found is None or found.numbers is None or len(found.items) != 1:
            return None
        numbers += found.numbers
    if len(numbers) != 3 or numbers[2] == 0:
        return None
    result = range(*numbers)
    return Elements(1, tuple(result)) if len(result) <= MOST_ELEMENTS else None


def _constant_of_shape(node: ir.Node, lookup: Lookup) -> Elements | None:
    shape = lookup(node.inputs[0])
    if shape is None or shape.numbers is None or len(shape.numbers) > 1:
        return None
    count = math.prod(shape.numbers)
    attr = node.attributes.get("value")
    if attr is None or attr.is_ref() or not 0 <= count <= MOST_ELEMENTS:
        return None
    return Elements(len(shape.numbers), (int(attr.as_tensor().numpy().reshape(-1)[0]),) * count)


def _expand(node: ir.Node, lookup: Lookup) -> Elements | None:
    found, shape = lookup(node.inputs[0]), lookup(_operand(node, 1))
    if found is None or shape is None or shape.numbers is None or len(shape.numbers) > 1:
        return None
    if len(found.items) != 1:
        return found if shape.numbers in ((), (1,), (len(found.items),)) else None
    count = math.prod(shape.numbers)
    if not 0 <= count <= MOST_ELEMENTS:
        return None
    return Elements(max(found.rank, len(shape.numbers)), found.items * count)


def _where(node: ir.Node, lookup: Lookup) -> Elements | None:
    def choose(items: Sequence[Element]) -> Element:
        condition, x, y = items
        if x is not None and x == y:
            return x
        return (x if condition else y) if isinstance(condition, int) else None

    return _elementwise([lookup(value) for value in node.inputs], choose)


def _unary(node: ir.Node, lookup: Lookup) -> Elements | None:
    negates = node.op_type == "Neg"
    return _elementwise(
        [lookup(node.inputs[0])],
        lambda items: (-items[0] if negates else int(not items[0])) if isinstance(items[0], int) else None,
    )


def _elementwise(
    operands: Sequence[Elements | None], function: Callable[[Sequence[Element]], Element]
) -> Elements | None:
    size = 1
    known: list[Elements] = []
    for operand in operands:
        if operand is None:
            return None
        known.append(operand)
        if len(operand.items) != 1:
            if size not in (1, len(operand.items)):
                return None
            size = len(operand.items)
    columns = [item.items * size if len(item.items) == 1 else item.items for item in known]
    rank = max(operand.rank for operand in known)
    return Elements(rank, tuple(function(row) for row in zip(*columns, strict=True)))


def _binary(node: ir.Node, lookup: Lookup) -> Elements | None:
    if len(node.inputs) != 2:
        return None
    function = _BINARY[node.op_type]
    operands = [lookup(value) for value in node.inputs]
    if node.op_type == "Mod" and facts.attribute(node, "fmod", 0):
        return None
    return _elementwise(operands, lambda items: function(items[0], items[1]))


def is_dim(item: Element) -> bool:
    """Whether an element is a dynamic dimension, by its name."""
    return isinstance(item, str) and not item.startswith("(")


def _expression(symbol: str, left: Element, right: Element, *, commutes: bool) -> Element:
    if left is None or right is None:
        return None
    # Names may hold spaces and signs.
    parts = [repr(part) if is_dim(part) else str(part) for part in (left, right)]
    if commutes:
        parts.sort()
    text = f"({parts[0]} {symbol} {parts[1]})"
    return text if len(text) <= _LONGEST_EXPRESSION else None


def _add(a: Element, b: Element) -> Element:
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    if a == 0 or b == 0:
        return b if a == 0 else a
    return _expression("+", a, b, commutes=True)


def _sub(a: Element, b: Element) -> Element:
    if isinstance(a, int) and isinstance(b, int):
        return a - b
    if b == 0:
        return a
    if a is not None and a == b:
        return 0
    return _expression("-", a, b, commutes=False)


def _mul(a: Element, b: Element) -> Element:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    if a == 0 or b == 0:
        return 0
    if a == 1 or b == 1:
        return b if a == 1 else a
    return _expression("*", a, b, commutes=True)


def _div(a: Element, b: Element) -> Element:
    """Integer division of ONNX rounds towards zero."""
    if isinstance(a, int) and isinstance(b, int):
        if b == 0:
            return None
        quotient = abs(a) // abs(b)
        return quotient if (a < 0) == (b < 0) else -quotient
    if b == 1:
        return a
    return _expression("/", a, b, commutes=False) if b != 0 else None


def _mod(a: Element, b: Element) -> Element:
    if isinstance(a, int) and isinstance(b, int):
        return a % b if b else None
    return _expression("%", a, b, commutes=False) if b != 0 else None


def _extreme(name: str, choose: Callable[[int, int], int]) -> Callable[[Element, Element], Element]:
    def extreme(a: Element, b: Element) -> Element:
        if isinstance(a, int) and isinstance(b, int):
            return choose(a, b)
        return a if a is not None and a == b else _expression(name, a, b, commutes=True)

    return extreme


def _equal(a: Element, b: Element) -> Element:
    if isinstance(a, int) and isinstance(b, int):
        return int(a == b)
    if a is not None and a == b:
        return 1
    # A dimension is never negative, so it is not the -1 that stands for "keep".
    if (is_dim(a) and isinstance(b, int) and b < 0) or (is_dim(b) and isinstance(a, int) and a < 0):
        return 0
    return None


def _less(a: Element, b: Element) -> Element:
    if isinstance(a, int) and isinstance(b, int):
        return int(a < b)
    if (a is not None and a == b) or (is_dim(a) and isinstance(b, int) and b <= 0):
        return 0
    return 1 if is_dim(b) and isinstance(a, int) and a < 0 else None


def _less_or_equal(a: Element, b: Element) -> Element:
    greater = _less(b, a)
    return 1 - greater if isinstance(greater, int) else None


def _and(a: Element, b: Element) -> Element:
    if a == 0 or b == 0:
        return 0
    return 1 if isinstance(a, int) and isinstance(b, int) else None


def _or(a: Element, b: Element) -> Element:
    if (isinstance(a, int) and a) or (isinstance(b, int) and b):
        return 1
    return 0 if isinstance(a, int) and isinstance(b, int) else None


_BINARY: dict[str, Callable[[Element, Element], Element]] = {
    "Add": _add,
    "And": _and,
    "Div": _div,
    "Equal": _equal,
    "Greater": lambda a, b: _less(b, a),
    "GreaterOrEqual": lambda a, b: _less_or_equal(b, a),
    "Less": _less,
    "LessOrEqual": _less_or_equal,
    "Max": _extreme("max", max),
    "Min": _extreme("min", min),
    "Mod": _mod,
    "Mul": _mul,
    "Or": _or,
    "Sub": _sub,
}

_EVALUATORS: dict[str, Callable[[ir.Node, Lookup], Elements | None]] = {
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Gather": _gather,
    "Identity": _same,
    "Neg": _unary,
    "Not": _unary,
    "Range": _range,
    "ReduceMax": _reduce,
    "ReduceMin": _reduce,
    "ReduceProd": _reduce,
    "ReduceSum": _reduce,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
