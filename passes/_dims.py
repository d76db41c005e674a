"""Dimensions as symbolic products, for rewrites that must know that two dynamic dimensions are equal.

Shape inference names a dynamic dimension anew after each Reshape whose target is computed
(``Concat(Shape(x)[0], -1, 64)``), so equal dimensions carry different names. Here such targets are evaluated:
a dimension is a product of an integer and of the names at which its derivation ends.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import onnx_ir as ir

from graphopt.ir import facts

_BUDGET = 400
_SAME_SHAPE = frozenset(
    "Abs Cast Clip Dropout Elu Erf Exp Gelu HardSigmoid HardSwish Identity IsNaN LayerNormalization LeakyRelu Log "
    "Mish Neg Not RMSNormalization Reciprocal Relu Sigmoid Softmax Sqrt Tanh".split()
)
_BROADCAST = frozenset("Add And Div Mul Or Pow Sub Where Equal Greater GreaterOrEqual Less LessOrEqual".split())


class Dim(NamedTuple):
    """``factor`` times the product of ``symbols`` (sorted)."""

    factor: int
    symbols: tuple[str, ...] = ()

    @property
    def known(self) -> int | None:
        """The dimension as a number where it is one."""
        return None if self.symbols else self.factor

    def times(self, other: Dim) -> Dim:
        return Dim(self.factor * other.factor, tuple(sorted(self.symbols + other.symbols)))

    def over(self, other: Dim) -> Dim | None:
        """The quotient where it is a product again."""
        left, right = Counter(self.symbols), Counter(other.symbols)
        if other.factor == 0 or self.factor % other.factor or right - left:
            return None
        return Dim(self.factor // other.factor, tuple(sorted((left - right).elements())))


Dims = tuple[Dim, ...]
ONE = Dim(1)


def product(dims: Dims) -> Dim:
    """The number of elements."""
    total = ONE
    for dim in dims:
        total = total.times(dim)
    return total


class Shapes:
    """Derives dimensions; keeps what it found, and gives up (opaque names) after a fixed number of steps."""

    def __init__(self) -> None:
        self._shapes: dict[ir.Value, Dims | None] = {}
        self._elements: dict[ir.Value, Dims | None] = {}
        self._left = _BUDGET

    def of(self, value: ir.Value | None) -> Dims | None:
        """Dimensions of ``value``; None where its rank is unknown."""
        if value is None:
            return None
        if value not in self._shapes:
            own = _declared(value)
            static = own is not None and all(dim.known is not None for dim in own)
            self._shapes[value] = own
            derived = None
            if not static and self._left > 0:
                self._left -= 1
                derived = self._derive(value)
            if derived is not None and (own is None or len(own) == len(derived)):
                own = derived if own is None else tuple(map(_sharper, own, derived))
            self._shapes[value] = own
        return self._shapes[value]

    def elements(self, value: ir.Value | None) -> Dims | None:
        """The elements of an integer tensor of rank 0 or 1 that holds dimensions; -1 stays ``Dim(-1)``."""
        if value is None:
            return None
        if value not in self._elements:
            self._elements[value] = None
            if self._left > 0:
                self._left -= 1
                self._elements[value] = self._evaluate(value)
        return self._elements[value]

    def reshaped(self, node: ir.Node) -> Dims | None:
        """Dimensions of the output of a Reshape."""
        source, target = self.of(node.inputs[0]), self.elements(node.inputs[1])
        if source is None or target is None:
            return None
        dims: list[Dim | None] = []
        for axis, wanted in enumerate(target):
            if wanted.factor == 0 and not facts.attribute(node, "allowzero", 0):
                if axis >= len(source):
                    return None
                dims.append(source[axis])
            else:
                dims.append(None if wanted.factor == -1 else wanted)
        if dims.count(None) > 1:
            return None
        if None in dims:
            known = product(tuple(dim for dim in dims if dim is not None))
            rest = product(source).over(known)
            axis = dims.index(None)
            dims[axis] = rest if rest is not None else _opaque(node.outputs[0], axis)
        return tuple(dim for dim in dims if dim is not None)

    def _derive(self, value: ir.Value) -> Dims | None:
        node = value.producer()
        if node is None or node.domain or not node.inputs:
            return None
        kind, first = node.op_type, node.inputs[0]
        if kind == "Reshape":
            return self.reshaped(node)
        if kind in _BROADCAST:
            return self._broadcast(node)
        source = self.of(first)
        if source is None:
            return None
        if kind in _SAME_SHAPE and value is node.outputs[0]:
            return source
        if kind == "Transpose":
            perm = facts.attribute(node, "perm", tuple(reversed(range(len(source)))))
            return tuple(source[axis] for axis in perm)
        if kind == "MatMul":
            weight = facts.static_dims(node.inputs[1])
            return (*source[:-1], Dim(weight[1])) if weight is not None and len(weight) == 2 else None
        if kind == "Expand":
            return _expanded(source, self.elements(node.inputs[1]))
        if kind == "Tile":
            repeats = facts.ints(node.inputs[1])
            if repeats is None or len(repeats) != len(source):
                return None
            return tuple(dim.times(Dim(count)) for dim, count in zip(source, repeats, strict=True))
        if kind in ("Unsqueeze", "Squeeze"):
            return _squeezed(source, facts.ints(node.inputs[1]) if len(node.inputs) > 1 else None, kind)
        if kind == "Split":
            axis = facts.attribute(node, "axis", 0) % len(source)
            own = _declared(value)
            size = own[axis] if own is not None else _opaque(value, axis)
            return (*source[:axis], size, *source[axis + 1 :])
        return None

    def _broadcast(self, node: ir.Node) -> Dims | None:
        shapes = [self.of(operand) for operand in node.inputs]
        rank = max((len(shape) for shape in shapes if shape is not None), default=0)
        result: list[Dim] = []
        for axis in range(-rank, 0):
            candidates: set[Dim] = set()
            for shape in shapes:
                if shape is None:
                    return None
                if len(shape) >= -axis:
                    candidates.add(shape[axis])
            candidates.discard(ONE)
            numbers = [dim for dim in candidates if dim.known is not None]
            if len(candidates) > 1 and not numbers:
                return None
            result.append(numbers[0] if numbers else next(iter(candidates), ONE))
        return tuple(result)

    def _evaluate(self, value: ir.Value) -> Dims | None:
        fixed = facts.ints(value)
        if fixed is not None:
            return tuple(Dim(number) for number in fixed)
        node = value.producer()
        if node is None or node.domain or not node.inputs:
            return None
        kind = node.op_type
        if kind == "Shape":
            shape = self.of(node.inputs[0])
            if shape is None:
                return None
            return shape[slice(facts.attribute(node, "start", 0), facts.attribute(node, "end"))]
        if kind == "Concat":
            parts = [self.elements(part) for part in node.inputs]
            return None if None in parts else tuple(dim for part in parts for dim in part or ())
        inner = self.elements(node.inputs[0])
        if inner is None:
            return None
        if kind in ("Cast", "Squeeze", "Unsqueeze", "Identity"):
            return inner
        if kind == "Reshape":
            return inner if facts.rank(value) == 1 else None
        if kind == "Gather":
            indices = facts.ints(node.inputs[1])
            in_range = indices is not None and all(-len(inner) <= index < len(inner) for index in indices)
            return tuple(inner[index] for index in indices) if indices is not None and in_range else None
        if kind == "Slice":
            bounds = [facts.ints(operand) for operand in node.inputs[1:]]
            if any(bound is None or len(bound) != 1 for bound in bounds):
                return None
            start, stop, *rest = (bound[0] for bound in bounds if bound)
            step = rest[1] if len(rest) > 1 else 1
            return inner[start:stop:step] if step > 0 else None
        return None


def _declared(value: ir.Value) -> Dims | None:
    if value.shape is None:
        return None
    return tuple(
        Dim(dim) if isinstance(dim, int) else Dim(1, (str(dim.value),)) if dim.value else _opaque(value, axis)
        for axis, dim in enumerate(value.shape)
    )


def _expanded(source: Dims, target: Dims | None) -> Dims | None:
    if target is None:
        return None
    rank = max(len(source), len(target))
    left = (ONE,) * (rank - len(source)) + source
    right = (ONE,) * (rank - len(target)) + target
    if any(ONE not in (a, b) and a != b for a, b in zip(left, right, strict=True)):
        return None
    return tuple(b if a == ONE else a for a, b in zip(left, right, strict=True))


def _opaque(value: ir.Value, axis: int) -> Dim:
    return Dim(1, (f"{value.name}.{axis}@{id(value)}",))


def _sharper(declared: Dim, derived: Dim) -> Dim:
    return declared if declared.known is not None else derived


def _squeezed(source: Dims, axes: tuple[int, ...] | None, kind: str) -> Dims | None:
    if axes is None:
        return None
    if kind == "Squeeze":
        dropped = {axis % len(source) for axis in axes}
        return tuple(dim for axis, dim in enumerate(source) if axis not in dropped)
    rank = len(source) + len(axes)
    added = {axis % rank for axis in axes}
    rest = iter(source)
    return tuple(ONE if axis in added else next(rest) for axis in range(rank))
