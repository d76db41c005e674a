"""How the heads of attention operands come about: transposes, reshapes and copies of heads before the products."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir.dims import Dim, Dims, product
from graphopt.ir.symbolic import Shapes
from graphopt.rewrite import Builder

HEADS_FIRST = (0, 2, 1, 3)


@dataclass(frozen=True)
class Operand:
    """A query, key or value: ``base`` transposed by ``perm``, and then reshaped to ``dims`` where ``reshaped``.

    Attributes:
        dims: [batch, heads, length, head size], or [batch, length, size] without heads.
        value: The value in the graph that is this operand, if there is one.
        base_dims: Dimensions of ``base``, for a reshape.
    """

    base: ir.Value
    perm: tuple[int, ...]
    dims: Dims
    value: ir.Value | None = None
    reshaped: bool = False
    base_dims: Dims = ()

    def build(self, build: Builder) -> ir.Value | None:
        """The operand as a value; None where a reshape to dynamic dimensions would be needed."""
        if self.value is not None:
            return self.value
        result = self.base
        if self.perm != tuple(range(len(self.perm))):
            result = build.op("Transpose", result, perm=self.perm)
            base_dims = self.base.shape
            if base_dims is not None:
                result.shape = ir.Shape([base_dims[axis] for axis in self.perm])
        if not self.reshaped:
            return result
        target = self._target(build, result)
        return None if target is None else build.op("Reshape", result, target, shape=_shape(self.dims))

    def _target(self, build: Builder, source: ir.Value) -> ir.Value | facts.Array | None:
        """The shape to reshape ``source`` to; dynamic dimensions are taken from it where it has them."""
        given = [self.base_dims[axis] for axis in self.perm] if self.base_dims else []
        parts: list[ir.Value | facts.Array] = []
        for dim in self.dims:
            if dim.known is None and dim in given:
                axis = given.index(dim)
                size = build.op("Shape", source, dtype=ir.DataType.INT64, shape=[1], start=axis, end=axis + 1)
                parts.append(size)
            else:
                parts.append(np.array([-1 if dim.known is None else dim.known], dtype=np.int64))
        arrays = [part for part in parts if isinstance(part, np.ndarray)]
        if sum(int(part[0]) == -1 for part in arrays) > 1:
            return None
        if len(arrays) == len(parts):
            return np.concatenate(arrays)
        return build.op("Concat", *parts, dtype=ir.DataType.INT64, shape=[len(parts)], axis=0)


def plain(shapes: Shapes, value: ir.Value) -> Operand | None:
    """The operand that ``value`` is."""
    dims = shapes.of(value)
    if dims is None:
        return None
    node = value.producer()
    if node is not None and node.op_type == "Transpose" and not node.domain and node.inputs[0] is not None:
        perm = facts.attribute(node, "perm")
        if perm is not None:
            return Operand(node.inputs[0], perm, dims, value)
    return Operand(value, tuple(range(len(dims))), dims, value)


def transposed(shapes: Shapes, value: ir.Value) -> Operand | None:
    """The operand whose last two dimensions are exchanged in ``value``, if no new work is needed for it.

    PyTorch writes the transpose of a key as Reshape to rank 3, Transpose, Reshape to rank 4.
    """
    dims = shapes.of(value)
    node = value.producer()
    if dims is None or len(dims) < 3 or node is None or node.domain:
        return None
    wanted = _swap(dims)
    if node.op_type == "Transpose":
        return _unswapped(shapes, node, wanted)
    inner = node.inputs[0].producer() if node.op_type == "Reshape" and node.inputs[0] is not None else None
    if inner is None or inner.op_type != "Transpose" or inner.domain or len(dims) != 4:
        return None
    source = inner.inputs[0]
    inner_dims = shapes.of(inner.outputs[0])
    perm = facts.attribute(inner, "perm")
    if source is None or perm is None or inner_dims is None or len(inner_dims) != 3:
        return None
    if inner_dims[1:] != dims[2:]:
        return None
    reshape = source.producer()
    if perm == (0, 2, 1) and reshape is not None and reshape.op_type == "Reshape" and not reshape.domain:
        origin = reshape.inputs[0]
        origin_dims = shapes.of(origin)
        if origin is not None and origin_dims == wanted:
            return plain(shapes, origin)
        if origin is not None and origin_dims is not None and product(origin_dims) == product(wanted):
            axes = tuple(range(len(origin_dims)))
            return Operand(origin, axes, wanted, reshaped=True, base_dims=origin_dims)
    source_dims = shapes.of(source) or ()
    return Operand(source, (perm[0], perm[2], perm[1]), wanted, reshaped=True, base_dims=source_dims)


def _unswapped(shapes: Shapes, node: ir.Node, wanted: Dims) -> Operand | None:
    source, perm = node.inputs[0], facts.attribute(node, "perm")
    if source is None or perm is None:
        return None
    perm = (*perm[:-2], perm[-1], perm[-2])
    if perm == tuple(range(len(perm))):
        operand = plain(shapes, source)
        return None if operand is None else replace(operand, dims=wanted)
    return Operand(source, perm, wanted)


def without_copies(shapes: Shapes, operand: Operand) -> Operand:
    """The operand before its heads were repeated for groups of queries (Unsqueeze, Expand or Tile, Reshape)."""
    if operand.perm != tuple(range(len(operand.perm))) or len(operand.dims) != 4:
        return operand
    copies: ir.Value | None = operand.base
    if not operand.reshaped:
        node = operand.base.producer()
        if node is None or node.op_type != "Reshape" or node.domain:
            return operand
        copies = node.inputs[0]
    node = None if copies is None else copies.producer()
    if copies is None or node is None or node.op_type not in ("Expand", "Tile") or node.domain:
        return operand
    unsqueezed = node.inputs[0]
    unsqueeze = None if unsqueezed is None else unsqueezed.producer()
    if unsqueeze is None or unsqueeze.op_type != "Unsqueeze" or unsqueeze.domain:
        return operand
    source = unsqueeze.inputs[0]
    before, after = shapes.of(source), shapes.of(copies)
    if source is None or before is None or after is None or len(before) != 4 or len(after) != 5:
        return operand
    if facts.ints(unsqueeze.inputs[1]) not in ((2,), (-3,)):
        return operand
    batch, heads, length, size = before
    groups = after[2]
    if after != (batch, heads, groups, length, size) or heads.known is None or groups.known is None:
        return operand
    if operand.dims != (batch, heads.times(groups), length, size):
        return operand
    return plain(shapes, source) or operand


class Merger:
    """Turns operands with heads into rank 3, [batch, length, heads * head size], so that transposes vanish."""

    def __init__(self, shapes: Shapes, build: Builder) -> None:
        self._shapes = shapes
        self._build = build
        self._splits: dict[ir.Value, ir.Node] = {}

    def can(self, operand: Operand) -> bool:
        """Whether :meth:`merge` works for ``operand``."""
        if len(operand.dims) != 4 or operand.reshaped:
            return False
        if operand.dims[1].known is None or operand.dims[3].known is None:
            return False
        return operand.perm == HEADS_FIRST or _packed(self._shapes, operand) is not None

    def merge(self, operand: Operand) -> ir.Value:
        """The operand as [batch, length, heads * head size]."""
        heads, size = operand.dims[1].known, operand.dims[3].known
        assert heads is not None and size is not None
        packed = _packed(self._shapes, operand)
        if packed is None:
            return self._flat(operand.base, heads * size)
        base, index, count = packed
        if base not in self._splits:
            whole = self._flat(base, count * heads * size)
            sizes = np.full(count, heads * size, dtype=np.int64)
            first = self._build.op("Split", whole, sizes, outputs=count, axis=-1)
            node = first.producer()
            assert node is not None
            for output in node.outputs:
                output.type = whole.type
                output.shape = _last(whole.shape, heads * size)
            self._splits[base] = node
        return self._splits[base].outputs[index]

    def _flat(self, base: ir.Value, size: int) -> ir.Value:
        """``base`` [batch, length, ...] with all but two dimensions merged: what was split, or a new Reshape."""
        dims = self._shapes.of(base)
        assert dims is not None
        node = base.producer()
        if node is not None and node.op_type == "Reshape" and not node.domain:
            source = node.inputs[0]
            if source is not None and self._shapes.of(source) == (*dims[:2], Dim(size)):
                return source
        target = np.array([0, 0, size], dtype=np.int64)
        merged = self._build.op("Reshape", base, target)
        if base.shape is not None:
            merged.shape = ir.Shape([base.shape[0], base.shape[1], size])
        return merged


def _packed(shapes: Shapes, operand: Operand) -> tuple[ir.Value, int, int] | None:
    """(base, index, count) where the operand is one part of [batch, length, count, heads, size] transposed."""
    if operand.perm != (0, 1, 2, 3):
        return None
    node = operand.base.producer()
    if node is None or node.domain:
        return None
    whole: ir.Value | None
    index: int | None
    if node.op_type == "Gather" and facts.attribute(node, "axis", 0) == 0:
        chosen = facts.ints(node.inputs[1])
        index = chosen[0] if chosen and facts.rank(node.inputs[1]) == 0 else None
        whole = node.inputs[0]
    elif node.op_type == "Squeeze" and len(node.inputs) > 1 and facts.ints(node.inputs[1]) == (0,):
        part = node.inputs[0]
        whole, index = (None, None) if part is None else _part(part)
    else:
        return None
    permute = None if whole is None else whole.producer()
    if permute is None or index is None or permute.op_type != "Transpose" or permute.domain:
        return None
    base = permute.inputs[0]
    dims = shapes.of(base)
    if base is None or dims is None or facts.attribute(permute, "perm") != (2, 0, 3, 1, 4):
        return None
    count = dims[2].known
    if count is None or not -count <= index < count:
        return None
    return base, index % count, count


def _part(part: ir.Value) -> tuple[ir.Value | None, int | None]:
    node = part.producer()
    if node is None or node.domain:
        return None, None
    if node.op_type == "Split" and facts.attribute(node, "axis", 0) == 0:
        dims = facts.dims(part)
        even = (
            dims is not None and dims[0] == 1 and all((facts.dims(o) or (0,))[0] == 1 for o in node.outputs)
        )
        return node.inputs[0], node.outputs.index(part) if even else None
    if node.op_type == "Slice":
        bounds = [facts.ints(operand) for operand in node.inputs[1:]]
        if len(bounds) >= 3 and bounds[2] == (0,) and bounds[0] is not None and bounds[1] is not None:
            step = bounds[3] if len(bounds) > 3 else (1,)
            if step == (1,) and bounds[0][0] >= 0 and bounds[1][0] == bounds[0][0] + 1:
                return node.inputs[0], bounds[0][0]
    return None, None


def _swap(dims: Dims) -> Dims:
    return (*dims[:-2], dims[-1], dims[-2])


def _shape(dims: Dims) -> ir.Shape:
    return ir.Shape([dim.known for dim in dims])


def _last(shape: ir.Shape | None, size: int) -> ir.Shape | None:
    return None if shape is None else ir.Shape([*list(shape)[:-1], size])
