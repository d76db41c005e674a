"""x * cos + rotate_half(x) * sin  ==>  RotaryEmbedding(x, cos[..., :half], sin[..., :half])

Forms: rotary position embedding (https://arxiv.org/abs/2104.09864). Hugging Face's Llama and its kin rotate the two
halves (Slice or Split, Neg, Concat); GPT-NeoX rotates the first part of each head and concatenates the
rest (``rotary_embedding_dim``); GPT-J and RoFormer rotate neighbours (``interleaved``: Slices of step 2, Neg,
Unsqueeze, Concat, Reshape). x is [batch, heads, length, size] or [batch, length, heads, size]; a Transpose between
the two is put after the rotation, where attention takes it.

Times as fast (``benchmarks/rewrites.py``, 2 threads, AMD EPYC with AVX-512): 1.52 for one token with 12 heads of
64, 6.31 for 128 tokens.

Refuses: cos and sin whose halves are not provably equal; one that varies with the head; element types without a kernel
in ONNX Runtime (double); inner values that are read elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.ir.dims import ONE, Dims
from graphopt.ir.symbolic import ShapeCache, Shapes
from graphopt.passes._heads import HEADS_FIRST, Merger, Operand, plain
from graphopt.rewrite import Builder, Numerics, Refuse, Rewrite, check_private

_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


@dataclass(frozen=True)
class _Part:
    """``source[..., start:stop:step]``."""

    source: ir.Value
    start: int
    stop: int
    step: int


@dataclass(frozen=True)
class _Rotation:
    x: ir.Value
    interleaved: bool
    covered: tuple[ir.Node, ...]


class Rotary(Rewrite):
    """RotaryEmbedding, ONNX operator of opset 23 and newer."""

    name = "rotary-embedding"
    roots = ("Add", "Concat")
    numerics = Numerics.REASSOCIATES

    def __init__(self) -> None:
        self._cache = ShapeCache()

    def apply(self, node: ir.Node, build: Builder) -> ir.Value | None:
        """The rotation at an Add; a rotation of a part of each head at a Concat."""
        rewrite = _partial if node.op_type == "Concat" else _full
        return rewrite(node, build, self._cache)


def _full(node: ir.Node, build: Builder, cache: ShapeCache) -> ir.Value | None:
    left, right = (None if value is None else value.producer() for value in node.inputs)
    if left is None or right is None or left.op_type != "Mul" or right.op_type != "Mul":
        return None
    shapes = cache.of(node)
    for straight, turned in ((left, right), (right, left)):
        for rotated, sin in (turned.inputs, reversed(turned.inputs)):
            rotation = _rotation(shapes, rotated)
            if rotation is None or sin is None or rotation.x not in straight.inputs:
                continue
            cos = straight.inputs[1 - straight.inputs.index(rotation.x)]
            if cos is None:
                continue
            check_private(node, (straight, turned, *rotation.covered))
            return _rotate(node, build, shapes, rotation, cos, sin)
    return None


def _rotation(shapes: Shapes, value: ir.Value | None) -> _Rotation | None:
    """What ``value`` is concat(-x2, x1) of."""
    node = None if value is None else value.producer()
    if node is None or value is None or node.domain:
        return None
    covered = [node]
    interleaved = False
    if node.op_type == "Reshape":
        inner = node.inputs[0].producer() if node.inputs[0] is not None else None
        if inner is None or inner.op_type != "Concat" or inner.domain:
            return None
        interleaved, node = True, inner
        covered.append(node)
    if node.op_type != "Concat" or len(node.inputs) != 2 or not _is_last_axis(node, node.outputs[0]):
        return None
    first, second = node.inputs
    if interleaved:
        first, second = _unsqueezed(first, covered), _unsqueezed(second, covered)
    negative = None if first is None else first.producer()
    if negative is None or negative.op_type != "Neg" or negative.domain:
        return None
    covered.append(negative)
    x2, x1 = _part(shapes, negative.inputs[0], covered), _part(shapes, second, covered)
    if x1 is None or x2 is None or x1.source is not x2.source:
        return None
    dims = shapes.of(x1.source)
    size = None if dims is None else dims[-1].known
    if size is None or size % 2 or (interleaved and shapes.of(value) != dims):
        return None
    expected = ((0, size, 2), (1, size, 2)) if interleaved else ((0, size // 2, 1), (size // 2, size, 1))
    if ((x1.start, x1.stop, x1.step), (x2.start, x2.stop, x2.step)) != expected:
        return None
    return _Rotation(x1.source, interleaved, tuple(covered))


def _unsqueezed(value: ir.Value | None, covered: list[ir.Node]) -> ir.Value | None:
    node = None if value is None else value.producer()
    if node is None or value is None or node.op_type != "Unsqueeze":
        return None
    if facts.ints(node.inputs[1]) not in ((-1,), ((facts.rank(value) or 0) - 1,)):
        return None
    covered.append(node)
    return node.inputs[0]


def _part(shapes: Shapes, value: ir.Value | None, covered: list[ir.Node]) -> _Part | None:
    """A slice of the last axis; the end is written as the size where it reaches it."""
    node = None if value is None else value.producer()
    if node is None or value is None or node.domain or node.inputs[0] is None:
        return None
    source = node.inputs[0]
    dims = shapes.of(source)
    size = dims[-1].known if dims else None
    if dims is None or size is None:
        return None
    if node.op_type == "Split" and _is_last_axis(node, source) and len(node.outputs) == 2:
        sizes = [facts.dims(output) for output in node.outputs]
        if any(found is None or found[-1] is None for found in sizes):
            return None
        covered.append(node)
        middle = (sizes[0] or ())[-1] or 0
        return _Part(source, 0, middle, 1) if value is node.outputs[0] else _Part(source, middle, size, 1)
    if node.op_type != "Slice" or len(node.inputs) < 4:
        return None
    start, stop = shapes.elements(node.inputs[1]), shapes.elements(node.inputs[2])
    step = facts.ints(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else (1,)
    if start is None or stop is None or step is None or not len(start) == len(stop) == len(step) == 1:
        return None
    if facts.ints(node.inputs[3]) not in ((-1,), (len(dims) - 1,)):
        return None
    if start[0].known is None or stop[0].known is None or step[0] < 1:
        return None
    covered.append(node)
    places = facts.sliced(size, start[0].known, stop[0].known)
    return None if places is None else _Part(source, places.start, places.stop, step[0])


def _is_last_axis(node: ir.Node, value: ir.Value) -> bool:
    rank = facts.rank(value)
    return rank is not None and facts.attribute(node, "axis", 0) in (-1, rank - 1)


def _rotate(
    node: ir.Node, build: Builder, shapes: Shapes, rotation: _Rotation, cos: ir.Value, sin: ir.Value
) -> ir.Value | None:
    x = plain(shapes, rotation.x)
    if x is None or len(x.dims) != 4:
        return None
    if rotation.x.dtype not in _TYPES:
        raise Refuse(f"no kernel for rotary embedding of {rotation.x.dtype}")
    cos_dims, sin_dims = shapes.of(cos), shapes.of(sin)
    if cos_dims is None or cos_dims != sin_dims:
        raise Refuse("cos and sin do not have the same known shape")
    heads_axis = _heads_axis(x.dims, cos_dims)
    if heads_axis is None:
        raise Refuse("cos and sin do not fit [batch, length, size]")
    caches = []
    for value in (cos, sin):
        if not _repeats(shapes, value, rotation.interleaved):
            raise Refuse("the two halves of cos or sin are not known to be equal")
        caches.append(_cache(build, value, heads_axis, rotation.interleaved))
    full = [_per_batch(build, cache, x, cos_dims) for cache in caches]
    return _emit(
        node, build, shapes, x, full, heads_axis, {"interleaved": 1 if rotation.interleaved else None}
    )


def _heads_axis(x: Dims, cos: Dims) -> int | None:
    """Axis of x that counts the heads, where cos and sin are [1 or batch, length, size] without it."""
    if len(cos) < 2 or len(cos) > 4:
        return None
    padded = (ONE,) * (4 - len(cos)) + cos
    if padded[3] != x[3] or padded[0] not in (ONE, x[0]):
        return None
    if padded[1] == ONE and padded[2] == x[2]:
        return 1
    return 2 if len(cos) >= 3 and padded[2] == ONE and padded[1] == x[1] else None


def _repeats(shapes: Shapes, value: ir.Value | None, interleaved: bool, depth: int = 8) -> bool:
    """Whether both halves (or each pair of neighbours) hold the same numbers."""
    if value is None or depth == 0:
        return False
    array = facts.constant(value)
    if array is not None:
        if interleaved:
            return bool(np.array_equal(array[..., ::2], array[..., 1::2]))
        half = array.shape[-1] // 2
        return bool(np.array_equal(array[..., :half], array[..., half:]))
    node = value.producer()
    if node is None or node.domain:
        return False
    if node.op_type in ("Cos", "Sin", "Cast", "Unsqueeze", "Identity"):
        return _repeats(shapes, node.inputs[0], interleaved, depth - 1)
    if node.op_type == "Mul":
        for factor, other in (node.inputs, reversed(node.inputs)):
            if facts.scalar(factor) is not None:
                return _repeats(shapes, other, interleaved, depth - 1)
    if node.op_type == "Concat" and not interleaved:
        last = _is_last_axis(node, value)
        return last and len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
    return False


def _cache(build: Builder, value: ir.Value, heads_axis: int, interleaved: bool) -> ir.Value | facts.Array:
    """[1 or batch, length, half]."""
    array = facts.constant(value)
    rank = facts.rank(value) or 0
    if array is not None:
        half = array.shape[-1] // 2
        array = array[..., ::2] if interleaved else array[..., :half]
        return array.reshape(-1, *np.delete(array.shape, heads_axis)[1:]) if rank == 4 else _rank3(array)
    node = value.producer()
    axis = heads_axis - (4 - rank)
    if node is not None and node.op_type == "Unsqueeze" and facts.ints(node.inputs[1]) == (axis,):
        squeezed = node.inputs[0]
        assert squeezed is not None
    elif axis >= 0:
        squeezed = build.op("Squeeze", value, np.array([axis]))
        squeezed.shape = _without(value.shape, axis)
    else:
        squeezed = value
    size = facts.dims(value)
    half = ((size or (0,))[-1] or 0) // 2
    begin, end, step = (0, 2 * half, 2) if interleaved else (0, half, 1)
    bounds = [np.array([number]) for number in (begin, end, -1, step)]
    part = build.op("Slice", squeezed, *bounds)
    if squeezed.shape is not None:
        part.shape = ir.Shape([*list(squeezed.shape)[:-1], half])
    if (facts.rank(squeezed) or 0) == 2:
        shape = None if part.shape is None else ir.Shape([1, *part.shape])
        part = build.op("Unsqueeze", part, np.array([0]), shape=shape)
    return part


def _rank3(array: facts.Array) -> facts.Array:
    """[length, size], [1, length, size] or [length, 1, size] as [1, length, size]."""
    return array.reshape(1, -1, array.shape[-1])


def _per_batch(build: Builder, cache: ir.Value | facts.Array, x: Operand, dims: Dims) -> ir.Value:
    """ONNX Runtime demands the batch size of x: repeats a cache of batch size 1."""
    value = build.constant(cache) if isinstance(cache, np.ndarray) else cache
    batch = x.dims[0]
    if len(dims) == 4 and dims[0] == batch:
        return value
    if batch.known is not None:
        if isinstance(cache, np.ndarray):
            build.initializers.remove(value)
            return build.constant(np.broadcast_to(cache, (batch.known, *cache.shape[1:])))
        target: ir.Value = build.constant(np.array([batch.known, 1, 1]))
    else:
        source = x.value if x.value is not None else x.base
        count = build.op("Shape", source, dtype=ir.DataType.INT64, shape=[1], start=0, end=1)
        target = build.op("Concat", count, np.array([1, 1]), dtype=ir.DataType.INT64, shape=[3], axis=0)
    shape = None if value.shape is None else ir.Shape([batch.known, *list(value.shape)[1:]])
    return build.op("Expand", value, target, shape=shape)


def _emit(
    node: ir.Node,
    build: Builder,
    shapes: Shapes,
    x: Operand,
    caches: list[ir.Value],
    heads_axis: int,
    attrs: dict[str, Any],
) -> ir.Value:
    """The rotation; on [batch, length, heads * size] where a Transpose or nothing stood between."""
    old = node.outputs[0]
    value = x.value if x.value is not None else x.base
    last = Operand(x.base, HEADS_FIRST, x.dims) if x.perm == HEADS_FIRST and heads_axis == 1 else None
    if heads_axis == 2:
        batch, length, heads, size = x.dims
        last = Operand(value, HEADS_FIRST, (batch, heads, length, size))
    merger = Merger(shapes, build)
    if last is None or not merger.can(last):
        return build.op("RotaryEmbedding", value, *caches, like=old, **attrs)
    heads_count, size_known = last.dims[1].known, last.dims[3].known
    merged = merger.merge(last)
    rotated = build.op("RotaryEmbedding", merged, *caches, like=merged, num_heads=heads_count, **attrs)
    target = np.array([0, 0, heads_count, size_known])
    if heads_axis == 2:
        return build.op("Reshape", rotated, target, like=old)
    split = build.op("Reshape", rotated, target, shape=_permuted(old.shape))
    return build.op("Transpose", split, like=old, perm=HEADS_FIRST)


def _partial(node: ir.Node, build: Builder, cache: ShapeCache) -> ir.Value | None:
    """Concat(RotaryEmbedding(x[..., :n]), x[..., n:])."""
    if len(node.inputs) != 2 or not _is_last_axis(node, node.outputs[0]):
        return None
    rotary = node.inputs[0].producer() if node.inputs[0] is not None else None
    if rotary is None or rotary.op_type != "RotaryEmbedding" or rotary.domain or None in rotary.inputs[:3]:
        return None
    if len(rotary.inputs) > 3 or any(
        facts.attribute(rotary, key) for key in ("num_heads", "rotary_embedding_dim")
    ):
        return None
    if facts.rank(rotary.inputs[0]) != 4 or facts.sole_consumer(rotary.outputs[0]) is not node:
        return None
    shapes = cache.of(node)
    covered: list[ir.Node] = []
    turned, rest = _part(shapes, rotary.inputs[0], covered), _part(shapes, node.inputs[1], covered)
    if (
        turned is None
        or rest is None
        or turned.source is not rest.source
        or turned.step != 1
        or rest.step != 1
    ):
        return None
    x = plain(shapes, turned.source)
    if x is None or turned.start or turned.stop != rest.start or rest.stop != x.dims[-1].known:
        return None
    caches = [value for value in rotary.inputs[1:3] if value is not None]
    attrs: dict[str, Any] = {
        "rotary_embedding_dim": turned.stop,
        "interleaved": facts.attribute(rotary, "interleaved"),
    }
    if x.dims[1].known is None and x.perm != HEADS_FIRST:
        raise Refuse("a rotation of a part of each head needs a known number of heads")
    return _emit_partial(node, build, shapes, x, caches, attrs)


def _emit_partial(
    node: ir.Node,
    build: Builder,
    shapes: Shapes,
    x: Operand,
    caches: list[ir.Value],
    attrs: dict[str, Any],
) -> ir.Value:
    attrs = attrs | ({} if x.dims[1].known is None else {"num_heads": x.dims[1].known})
    if x.perm == HEADS_FIRST and Merger(shapes, build).can(Operand(x.base, HEADS_FIRST, x.dims)):
        attrs.pop("num_heads", None)
    return _emit(node, build, shapes, x, caches, 1, attrs)


def _permuted(shape: ir.Shape | None) -> ir.Shape | None:
    return None if shape is None else ir.Shape([shape[axis] for axis in HEADS_FIRST])


def _without(shape: ir.Shape | None, axis: int) -> ir.Shape | None:
    if shape is None:
        return None
    return ir.Shape([dim for index, dim in enumerate(shape) if index != axis % len(shape)])
