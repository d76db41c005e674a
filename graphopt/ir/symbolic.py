"""Shapes with symbolic dimensions, for rewrites that must know that two dynamic dimensions are equal.

Shape inference names a dynamic dimension anew after each Reshape whose target is computed
(``Concat(Shape(x)[0], -1, 64)``), so equal dimensions carry different names. Here such targets are evaluated:
a dimension is a product of an integer and of the names at which its derivation ends.
"""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Callable

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir.dims import ONE, Dim, Dims, broadcast, combine, expanded, least, product, squeezed
from graphopt.ir.operators import BROADCAST, KEEPS_SHAPE, REDUCTIONS

_BUDGET = 400
_DEEPEST = 60
_LONGEST = 32
_PRODUCT = re.compile(r"[A-Za-z_]\w*|\w+(\*\w+)+")


class Shapes:
    """Derives dimensions; keeps what it found, and gives up (opaque names) after a fixed number of steps.

    Args:
        trusting: Take the beginning of a constant table, ``table[:, :length]``, to have that length: a model that asks
            for more positions than its table holds hardly ever runs. Else it has the smaller of both.
    """

    def __init__(self, *, trusting: bool = True) -> None:
        self._trusting = trusting
        self._shapes: dict[ir.Value, Dims | None] = {}
        self._elements: dict[ir.Value, Dims | None] = {}
        self._left = _BUDGET
        self._depth = 0

    def renew(self) -> Shapes:
        """Allow as many steps again."""
        self._left = _BUDGET
        return self

    def of(self, value: ir.Value | None) -> Dims | None:
        """Dimensions of ``value``; None where its rank is unknown."""
        if value is None:
            return None
        if value not in self._shapes:
            own = _declared(value)
            static = own is not None and all(dim.known is not None for dim in own)
            self._shapes[value] = own
            derived = None if static else self._step(self._derive, value)
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
            self._elements[value] = self._step(self._evaluate, value)
        return self._elements[value]

    def entries(self, value: ir.Value | None) -> list[Dim | None] | None:
        """As :meth:`elements`, None for each element that is not known; None where their number is not."""
        known = self.elements(value)
        if value is None or known is not None:
            return None if known is None else list(known)
        node = value.producer()
        if node is None or node.op_type != "Concat" or node.domain:
            dims = facts.static_dims(value)
            return None if dims is None or len(dims) != 1 or dims[0] > _LONGEST else [None] * dims[0]
        parts = [self.entries(part) for part in node.inputs]
        return None if None in parts else [entry for part in parts for entry in part or ()]

    def _step(self, derive: Callable[[ir.Value], Dims | None], value: ir.Value) -> Dims | None:
        if self._left <= 0 or self._depth >= _DEEPEST:
            return None
        self._left -= 1
        self._depth += 1
        found = derive(value)
        self._depth -= 1
        return found

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
                dims.append(None if wanted == Dim(-1) else wanted)
        if dims.count(None) > 1 or any(dim.factor < 0 for dim in dims if dim is not None):
            return None
        if None in dims:
            total, known = product(source), product(tuple(dim for dim in dims if dim is not None))
            # The quotient has a name of its own where it is no product: it is the same wherever it occurs.
            rest = total.over(known) or Dim(1, (f"{tuple(total)}/{tuple(known)}",))
            dims[dims.index(None)] = rest
        return tuple(dim for dim in dims if dim is not None)

    def number(self, value: ir.Value | None, depth: int = 8) -> float | None:
        """A scalar computed from constants and known dimensions, as ``1 / sqrt(shape(q)[-1])`` is."""
        fixed = facts.scalar(value)
        node = None if value is None else value.producer()
        if fixed is not None or node is None or node.domain or depth == 0:
            return fixed
        if value is not None and value.dtype is not None and value.dtype.is_integer():
            dims = self.elements(value)
            return None if dims is None or len(dims) != 1 or dims[0].symbols else float(dims[0].factor)
        operands = [self.number(operand, depth - 1) for operand in node.inputs]
        if not operands or any(operand is None for operand in operands):
            return None
        known = [operand for operand in operands if operand is not None]
        if node.op_type in ("Cast", "Identity", "Squeeze", "Unsqueeze"):
            return known[0]
        if node.op_type == "Mul":
            return known[0] * known[1]
        if node.op_type == "Div" and known[1] != 0:
            return known[0] / known[1]
        power = {"Sqrt": 0.5, "Reciprocal": -1.0, "Pow": known[-1]}.get(node.op_type)
        return float(known[0] ** power) if power is not None and known[0] > 0 else None

    def _derive(self, value: ir.Value) -> Dims | None:
        node = value.producer()
        if node is None or node.domain or not node.inputs:
            return None
        kind, first = node.op_type, node.inputs[0]
        if kind == "Reshape":
            return self.reshaped(node)
        if kind in BROADCAST:
            return broadcast([self.of(operand) for operand in node.inputs])
        if kind == "Range" and facts.scalar(first) == 0.0 and facts.scalar(node.inputs[2]) == 1.0:
            return self.elements(node.inputs[1])
        if kind == "ConstantOfShape":
            return self.elements(first)
        source = self.of(first)
        if source is None:
            return None
        if kind in KEEPS_SHAPE and value is node.outputs[0]:
            return source
        if kind == "Flatten":
            axis = facts.attribute(node, "axis", 1)
            return product(source[:axis]), product(source[axis:])
        if kind in REDUCTIONS:
            return self._reduced(node, source)
        if kind == "Transpose":
            perm = facts.attribute(node, "perm", tuple(reversed(range(len(source)))))
            return tuple(source[axis] for axis in perm)
        if kind == "MatMul":
            other = self.of(node.inputs[1])
            if other is None or len(other) < 2 or len(source) < 2:
                return None
            lead = broadcast([source[:-2], other[:-2]])
            return None if lead is None else (*lead, source[-2], other[-1])
        if kind == "GatherElements":
            return self.of(node.inputs[1])
        if kind == "Attention" and value is node.outputs[0]:
            values = self.of(node.inputs[2])
            return None if len(source) != 4 or values is None else (*source[:-1], values[-1])
        if kind == "Gemm":
            weight = self.of(node.inputs[1])
            flip = facts.attribute(node, "transA", 0), 1 - facts.attribute(node, "transB", 0)
            return None if weight is None or len(source) != 2 else (source[flip[0]], weight[flip[1]])
        if kind == "Gather":
            axis, indices = facts.attribute(node, "axis", 0) % max(len(source), 1), self.of(node.inputs[1])
            return None if indices is None else (*source[:axis], *indices, *source[axis + 1 :])
        if kind in ("Concat", "Slice"):
            return self._along_axes(node, source)
        if kind == "Expand":
            return expanded(source, self.elements(node.inputs[1]))
        if kind == "Tile":
            repeats = self.elements(node.inputs[1])
            if repeats is None or len(repeats) != len(source):
                return None
            return tuple(dim.times(count) for dim, count in zip(source, repeats, strict=True))
        if kind in ("Unsqueeze", "Squeeze"):
            return squeezed(source, facts.ints(node.inputs[1]) if len(node.inputs) > 1 else None, kind)
        if kind == "Pad":
            return self._padded(node, source)
        if kind == "Resize":
            sizes = self.elements(node.inputs[3]) if len(node.inputs) > 3 else None
            stretched = facts.attribute(node, "keep_aspect_ratio_policy", "stretch") == "stretch"
            whole = sizes is not None and len(sizes) == len(source) and "axes" not in node.attributes
            return sizes if whole and stretched else None
        if kind == "TopK":
            axis, count = (
                facts.attribute(node, "axis", -1) % max(len(source), 1),
                self.elements(node.inputs[1]),
            )
            return (*source[:axis], *count, *source[axis + 1 :]) if count and len(count) == 1 else None
        if kind == "Split":
            axis, own = facts.attribute(node, "axis", 0) % len(source), _declared(value)
            size = own[axis] if own is not None else _opaque(value, axis)
            return (*source[:axis], size, *source[axis + 1 :])
        return None

    def _evaluate(self, value: ir.Value) -> Dims | None:
        if facts.is_constant(value):
            fixed = facts.constant(value) if facts.constant_nbytes(value) <= 8 * _LONGEST else None
            integers = fixed is not None and fixed.dtype.kind in "iub" and fixed.ndim < 2
            return (
                tuple(Dim(int(number)) for number in fixed.reshape(-1))
                if integers and fixed is not None
                else None
            )
        node = value.producer()
        if node is None or node.domain or not node.inputs:
            return None
        kind = node.op_type
        if kind == "Shape":
            shape, start = self.of(node.inputs[0]), facts.attribute(node, "start", 0)
            return None if shape is None else shape[start : facts.attribute(node, "end")]
        if kind == "ConstantOfShape":
            counts, fill = facts.ints(node.inputs[0]), node.attributes.get("value")
            content = 0 if fill is None else int(fill.as_tensor().numpy().reshape(-1)[0])
            small = counts is not None and len(counts) == 1 and counts[0] <= _LONGEST
            return (Dim(content),) * counts[0] if small and counts else None
        if kind in ("Mul", "Add", "Sub", "Div", "Equal", "Where"):
            return self._elementwise(node)
        if kind == "Concat":
            parts = [self.elements(part) for part in node.inputs]
            return None if None in parts else tuple(dim for part in parts for dim in part or ())
        inner = self.elements(node.inputs[0])
        if inner is None:
            return None
        if kind in ("Cast", "Squeeze", "Unsqueeze", "Identity") or (
            kind == "Reshape" and facts.rank(value) == 1
        ):
            return inner
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
            places = facts.sliced(len(inner), start, stop, step)
            return None if places is None else tuple(inner[place] for place in places)
        return None

    def _along_axes(self, node: ir.Node, source: Dims) -> Dims | None:
        """Slice and Concat change some axes, whose sizes shape inference knows if anyone does."""
        value = node.outputs[0]
        own = _declared(value)
        axes: tuple[int, ...] | None = (facts.attribute(node, "axis", 0),)
        if node.op_type == "Slice":
            axes = facts.ints(node.inputs[3]) if len(node.inputs) > 3 else tuple(range(len(source)))
        if axes is None:
            return None
        changed = {axis % len(source) for axis in axes}
        if node.op_type == "Slice" and len(axes) == 1:
            size = self._slice_size(node, source[axes[0] % len(source)])
            if size is not None:
                return tuple(size if axis in changed else dim for axis, dim in enumerate(source))
        if node.op_type == "Slice" and len(changed) == 1 and facts.is_constant(node.inputs[0]):
            end, step = self.elements(node.inputs[2]), node.inputs[4] if len(node.inputs) > 4 else None
            from_start = facts.ints(node.inputs[1]) == (0,) and (step is None or facts.ints(step) == (1,))
            held = source[min(changed)].known
            if end is not None and end[0].symbols and from_start and held is not None:
                length = end[0] if self._trusting else least(end[0], held)
                return tuple(length if axis in changed else dim for axis, dim in enumerate(source))
        return tuple(
            dim if axis not in changed else own[axis] if own is not None else _opaque(value, axis)
            for axis, dim in enumerate(source)
        )

    def _reduced(self, node: ir.Node, source: Dims) -> Dims | None:
        """Reductions, from opset 18 on in the form that has its axes as an input."""
        operand = node.inputs[1] if len(node.inputs) > 1 else None
        axes = tuple(range(len(source))) if operand is None else facts.ints(operand)
        if operand is None and facts.attribute(node, "noop_with_empty_axes", 0):
            return source
        if not axes or any(not -len(source) <= axis < len(source) for axis in axes):
            return None
        gone = {axis % len(source) for axis in axes}
        if facts.attribute(node, "keepdims", 1):
            return tuple(ONE if axis in gone else dim for axis, dim in enumerate(source))
        return tuple(dim for axis, dim in enumerate(source) if axis not in gone)

    def _padded(self, node: ir.Node, source: Dims) -> Dims | None:
        """Sizes grow by what is put before and behind, where that is known."""
        given = node.inputs[3] if len(node.inputs) > 3 else None
        axes = tuple(range(len(source))) if given is None else facts.ints(given)
        if axes is None:
            return None
        pads = self.entries(node.inputs[1]) or [None] * (2 * len(axes))
        found = list(source)
        for axis, before, after in zip(axes, pads, pads[len(axes) :], strict=False):
            size, added = (
                source[axis % len(source)],
                [None if pad is None else pad.known for pad in (before, after)],
            )
            if added == [0, 0]:
                continue
            known = (
                None if None in added or size.known is None else size.known + sum(pad or 0 for pad in added)
            )
            found[axis % len(source)] = _opaque(node.outputs[0], axis) if known is None else Dim(known)
        return tuple(found)

    def _slice_size(self, node: ir.Node, size: Dim) -> Dim | None:
        bounds = [self.elements(operand) for operand in (*node.inputs[1:3], *node.inputs[4:5])]
        sizes = [bound[0].known for bound in bounds if bound is not None and len(bound) == 1]
        numbers = [number for number in sizes if number is not None]
        if len(numbers) != len(bounds) or size.known is None:
            return None
        places = facts.sliced(size.known, *numbers)
        return None if places is None else Dim(len(places))

    def _elementwise(self, node: ir.Node) -> Dims | None:
        """Arithmetic on dimensions; ``Where(Equal(target, -1), 1, target)`` is what PyTorch's expand becomes."""
        operands = [self.elements(operand) for operand in node.inputs]
        known = [operand for operand in operands if operand is not None]
        size = max(map(len, known), default=0)
        if not size or len(known) < len(operands) or any(len(operand) not in (1, size) for operand in known):
            return None
        rows = zip(*(operand * (size // len(operand)) for operand in known), strict=True)
        result = [combine(node.op_type, row) for row in rows]
        return None if None in result else tuple(dim for dim in result if dim is not None)


def refine(graph: ir.Graph) -> bool:
    """Write what shape inference did not find into the shapes of a graph's values: sizes, and the names of dynamic
    dimensions in place of names that it made up.

    Returns:
        Whether anything was written.
    """
    shapes, written = Shapes(trusting=False), False
    for node in graph:
        for value in node.outputs:
            own = value.shape
            if own is None or own.is_static() or value.is_graph_output():
                continue
            found = shapes.renew().of(value)
            if found is None:
                continue
            better = tuple(map(_written, own, found))
            if better != own.dims:
                value.shape, written = ir.Shape(better), True
    return written


def _written(own: int | ir.SymbolicDim, found: Dim) -> int | ir.SymbolicDim:
    """A dimension as a shape has it: what was found where that is a size or one name."""
    if isinstance(own, int):
        return own
    if found.known is not None:
        return found.known
    name = found.symbols[0]
    return ir.SymbolicDim(name) if found == Dim(1, (name,)) and name.isidentifier() else own


class ShapeCache:
    """Keeps what is known about one graph from one rewrite to the next: dimensions do not change by rewriting.

    In a deep model the derivation then starts, layer by layer, where that of the layer before ended.
    """

    def __init__(self) -> None:
        self._graph: weakref.ref[ir.Graph] | None = None
        self._shapes = Shapes()

    def of(self, node: ir.Node) -> Shapes:
        """The shapes of the graph that ``node`` is in."""
        graph = node.graph
        known = None if self._graph is None else self._graph()
        if isinstance(graph, ir.Graph) and known is graph:
            return self._shapes.renew()
        self._graph = weakref.ref(graph) if isinstance(graph, ir.Graph) else None
        self._shapes = Shapes()
        return self._shapes


def _declared(value: ir.Value) -> Dims | None:
    if value.shape is None:
        return None
    return tuple(
        Dim(dim) if isinstance(dim, int) else _named(str(dim.value)) if dim.value else _opaque(value, axis)
        for axis, dim in enumerate(value.shape)
    )


def _named(text: str) -> Dim:
    """A dimension by its name; PyTorch's exporter names products of dimensions as such ("2*batch*s0")."""
    if not _PRODUCT.fullmatch(text):
        return Dim(1, (text,))
    factors = text.split("*")
    number = math.prod(int(factor) for factor in factors if factor.isdigit())
    return Dim(number, tuple(sorted(factor for factor in factors if not factor.isdigit())))


def _opaque(value: ir.Value, axis: int) -> Dim:
    return Dim(1, (f"{value.name}.{axis}@{id(value)}",))


def _sharper(declared: Dim, derived: Dim) -> Dim:
    """The one that more is known of: a number, a product of names, a name."""
    if declared.known is not None:
        return declared
    return declared if _is_open(derived) and not _is_open(declared) else derived


def _is_open(dim: Dim) -> bool:
    """Whether a name in it is one that was made up here."""
    return any("@" in symbol or "/" in symbol for symbol in dim.symbols)
