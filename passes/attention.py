"""softmax(scale * q @ transpose(k) + mask) @ v  ==>  Attention(q, k, v, mask)

Forms: scaled dot-product attention (https://arxiv.org/abs/1706.03762) as exporters decompose it. torch.onnx scales
both q and transpose(k) by the root of the scale and guards the softmax with IsNaN and Where; Hugging Face's eager
models, timm, PaddleOCR's SVTR and Keras (once its Einsums are MatMuls) scale q, k or the product, by Mul or
Div; masks are added, or put in by Where; Gemma caps the scores by Tanh; Softmax of opset 12 and older stands
between Flatten and Reshape. Heads may be split by Reshape and Transpose (these vanish: Attention then takes
[batch, length, size]), packed into one projection, be absent (rank 3), or be copies for groups of queries
(https://arxiv.org/abs/2305.13245: the copies vanish). A constant causal mask becomes the attribute.

A row whose mask is -inf throughout is NaN without the guard, but zero in Attention; one of the lowest finite number
weights all keys alike, but ONNX Runtime 1.31 makes it zero as well. Where these cannot be excluded, the mask is
changed so that the numbers stay (``_masks.settle``). The guard goes: NaN in q or k is no longer turned into zero. Where
puts a mask in whatever the score, Attention adds it: NaN or infinity in a key that is masked reaches the result. ONNX
Runtime's Attention takes no batch and no sequence of size 0.

Times as fast (``benchmarks/rewrites.py``, 2 threads, AMD EPYC with AVX-512): 1.70, 1.85 and 1.23 with merged heads
for 1 x 16, 8 x 128 and 1 x 512 tokens, 0.83, 0.99 and 1.05 with heads first, 1.60, 1.31 and 1.07 with grouped
queries for 16, 128 and 512 tokens.

Refuses: inner values that are read elsewhere (attention weights as an output); element types other than float16
and float32 (ONNX Runtime has no other kernel); a scale that is not positive; batches or heads not known to be
equal; a mask that may enlarge the scores; a row that may be wholly masked where the mask is as large as the scores,
or of float16 (which rounds such a row to uniform weights where ONNX Runtime's float32 arithmetic does not); in ONNX
Runtime 1.27 and older, whose Attention makes NaN of a row of -inf, a guard where such a row cannot be excluded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts, kernels
from graphopt.ir.dims import ONE, Dim, Dims
from graphopt.ir.symbolic import ShapeCache, Shapes
from graphopt.passes import _masks
from graphopt.passes._heads import HEADS_FIRST, Merger, Operand, plain, transposed, without_copies
from graphopt.rewrite import Builder, Numerics, Refuse, Rewrite, check_private

_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


@dataclass(frozen=True)
class _Fill:
    """Where puts a low number in place of scores: where ``condition`` holds (``closed``), or where it does not."""

    condition: ir.Value
    number: float
    closed: bool


@dataclass
class _Scores:
    """What was found between the softmax and the product of queries and keys; masks from the inside to the outside."""

    query: ir.Value
    key_transposed: ir.Value
    scale: float
    softcap: float = 0.0
    masks: list[ir.Value | _Fill] = field(default_factory=list)
    covered: list[ir.Node] = field(default_factory=list)


class Attention(Rewrite):
    """Attention, ONNX operator of opset 23 and newer."""

    name = "attention"
    roots = ("MatMul",)
    numerics = Numerics.REASSOCIATES

    def __init__(self) -> None:
        self._cache = ShapeCache()

    def apply(self, node: ir.Node, build: Builder) -> list[ir.Value | None] | None:
        """Either the output itself is replaced (heads first), or its Transpose (heads merged)."""
        weights, value = node.inputs
        found = _softmax(weights)
        if found is None or value is None:
            return None
        inner, guarded, covered = found
        shapes = self._cache.of(node)
        scores = next(_scores(shapes, inner), None)
        if scores is None:
            return None
        k = transposed(shapes, scores.key_transposed)
        q, v = plain(shapes, scores.query), plain(shapes, value)
        if q is None or k is None or v is None or not len(q.dims) == len(k.dims) == len(v.dims):
            return None
        if len(q.dims) not in (3, 4):
            return None
        check_private(node, [*covered, *scores.covered])
        if value.dtype not in _TYPES or scores.query.dtype != value.dtype:
            raise Refuse(f"no kernel for attention of {value.dtype}")
        if not scores.scale > 0:
            raise Refuse("the scale is not positive")
        k, v = _grouped(shapes, q, k, v)
        _check_heads(q, k, v)
        mask, causal = _mask(build, shapes, scores, guarded, q, k)
        attrs: dict[str, Any] = {
            "scale": scores.scale,
            "is_causal": causal,
            "softcap": scores.softcap or None,
        }
        if len(q.dims) == 3:
            if v.dims[-1].known is None:
                # ONNX's inference takes 0 for it: 3-D values times heads of an unknown size.
                raise Refuse("the size of a value is dynamic")
            k3, v3 = k.build(build), v.build(build)
            if k3 is None or v3 is None:
                return None
            attrs |= {"q_num_heads": 1, "kv_num_heads": 1}
            return [build.op("Attention", scores.query, k3, v3, mask, like=node.outputs[0], **attrs)]
        merged = _heads_last(node, build, shapes, (q, k, v), mask, attrs)
        if merged:
            return [None]
        k4, v4 = k.build(build), v.build(build)
        if k4 is None or v4 is None:
            return None
        return [build.op("Attention", scores.query, k4, v4, mask, like=node.outputs[0], **attrs)]


def _softmax(weights: ir.Value | None) -> tuple[ir.Value, bool, list[ir.Node]] | None:
    """(input of the softmax, whether NaN is turned into zero after it, nodes covered)."""
    node = None if weights is None else weights.producer()
    if node is None or weights is None or node.domain:
        return None
    covered: list[ir.Node] = []
    guarded = False
    if node.op_type == "Where":
        test = node.inputs[0].producer() if node.inputs[0] is not None else None
        inner = node.inputs[2]
        if test is None or test.op_type != "IsNaN" or test.inputs[0] is not inner or inner is None:
            return None
        if facts.scalar(node.inputs[1]) != 0.0:
            return None
        covered += [node, test]
        guarded, weights, node = True, inner, inner.producer()
    if node is not None and node.op_type == "Reshape":
        return _flattened(node, covered, guarded)
    if node is None or node.op_type != "Softmax" or node.domain or node.inputs[0] is None:
        return None
    axis, rank = facts.attribute(node, "axis", -1), facts.rank(node.inputs[0])
    if rank is None or axis not in (-1, rank - 1):
        return None
    return node.inputs[0], guarded, [*covered, node]


def _flattened(
    node: ir.Node, covered: list[ir.Node], guarded: bool
) -> tuple[ir.Value, bool, list[ir.Node]] | None:
    """Reshape(Softmax(Flatten(x)), Shape(x)), as an upgrade from opset 12 leaves it."""
    softmax = node.inputs[0].producer() if node.inputs[0] is not None else None
    shape = node.inputs[1].producer() if node.inputs[1] is not None else None
    if softmax is None or shape is None or softmax.op_type != "Softmax" or shape.op_type != "Shape":
        return None
    flatten = softmax.inputs[0].producer() if softmax.inputs[0] is not None else None
    if flatten is None or flatten.op_type != "Flatten" or facts.attribute(softmax, "axis", -1) not in (-1, 1):
        return None
    source = flatten.inputs[0]
    rank = facts.rank(source)
    if source is None or rank is None or shape.inputs[0] is not source or shape.attributes:
        return None
    if facts.attribute(flatten, "axis", 1) not in (-1, rank - 1):
        return None
    return source, guarded, [*covered, node, softmax, flatten, shape]


def _scores(shapes: Shapes, value: ir.Value, depth: int = 4) -> Iterator[_Scores]:
    """Ways in which ``value`` is masked scores, the likeliest first."""
    node = value.producer()
    if node is None or node.domain or len(node.inputs) < 2:
        return
    left, right = node.inputs[:2]
    if depth and node.op_type == "Add" and left is not None and right is not None:
        for inner, mask in ((left, right), (right, left)):
            for found in _scores(shapes, inner, depth - 1):
                found.masks.append(mask)
                found.covered.append(node)
                yield found
    elif depth and node.op_type == "Where" and left is not None:
        for index, inner_value in ((1, node.inputs[2]), (2, node.inputs[1])):
            low = facts.scalar(node.inputs[index])
            # A wholly masked row of float16 would be rounded to uniform weights.
            limit = -np.inf if value.dtype == ir.DataType.FLOAT16 else _masks.CLOSED
            if low is None or low > limit or inner_value is None:
                continue
            for found in _scores(shapes, inner_value, depth - 1):
                found.masks.append(_Fill(left, low, index == 1))
                found.covered.append(node)
                yield found
    else:
        yield from _capped(shapes, value)


def _capped(shapes: Shapes, value: ir.Value) -> Iterator[_Scores]:
    """softcap * tanh(scores / softcap), or plain scores."""
    cap, inner, outer = _scaled(shapes, value)
    node = inner.producer()
    if node is not None and node.op_type == "Tanh" and not node.domain and node.inputs[0] is not None:
        inverse, argument, path = _scaled(shapes, node.inputs[0])
        if cap <= 0:
            return
        for found in _product(shapes, argument, 1.0, path):
            # The scale may have been folded with the cap: what is left of it belongs to the scores.
            found.scale *= inverse * cap
            found.softcap = cap
            found.covered += [*outer, node]
            yield found
    else:
        yield from _product(shapes, inner, cap, outer)


def _product(shapes: Shapes, value: ir.Value, scale: float, path: list[ir.Node]) -> Iterator[_Scores]:
    node = value.producer()
    if node is None or node.op_type != "MatMul" or node.domain or None in node.inputs:
        return
    left, right = node.inputs
    assert left is not None and right is not None
    left_scale, query, _ = _scaled(shapes, left)
    right_scale, key, _ = _scaled(shapes, right)
    yield _Scores(query, key, scale * left_scale * right_scale, covered=[*path, node])


def _scaled(shapes: Shapes, value: ir.Value) -> tuple[float, ir.Value, list[ir.Node]]:
    """(product of constant factors, what they multiply, nodes that do)."""
    scale, path = 1.0, list[ir.Node]()
    for _ in range(3):
        node = value.producer()
        if node is None or node.domain or node.op_type not in ("Mul", "Div") or not facts.is_float(value):
            break
        left, right = node.inputs
        number, inner = shapes.number(right), left
        if number is None and node.op_type == "Mul":
            number, inner = shapes.number(left), right
        fixed = right if inner is left else left
        if not number or inner is None or (facts.rank(fixed) or 0) > (facts.rank(inner) or 0):
            break
        scale = scale * number if node.op_type == "Mul" else scale / number
        value = inner
        path.append(node)
    return scale, value, path


def _grouped(shapes: Shapes, q: Operand, k: Operand, v: Operand) -> tuple[Operand, Operand]:
    """Keys and values before their heads were copied, where both were."""
    k1, v1 = without_copies(shapes, k), without_copies(shapes, v)
    if len(q.dims) == 4 and k1.dims[1] == v1.dims[1] and k1.dims[1].known is not None:
        return k1, v1
    return k, v


def _check_heads(q: Operand, k: Operand, v: Operand) -> None:
    if not q.dims[0] == k.dims[0] == v.dims[0]:
        raise Refuse("queries, keys and values are not known to have the same batch size")
    if len(q.dims) == 4:
        queries, keys = q.dims[1], k.dims[1]
        if v.dims[1] != keys:
            raise Refuse("keys and values are not known to have the same heads")
        if queries != keys and not (queries.known and keys.known and queries.known % keys.known == 0):
            raise Refuse("queries and keys are not known to have the same heads")


def _mask(
    build: Builder, shapes: Shapes, scores: _Scores, guarded: bool, q: Operand, k: Operand
) -> tuple[ir.Value | None, int | None]:
    """The additive mask at [..., query length, key length], or the attribute ``is_causal``."""
    only = scores.masks[0] if len(scores.masks) == 1 else None
    if isinstance(only, ir.Value) and _masks.is_causal(only):
        _check_fits(shapes.of(only), q, k)
        if q.dims[-2] == k.dims[-2] and q.dims[-2] != ONE:
            return None, 1
    terms = _terms(build, shapes, scores, q, k)
    if not terms:
        return None, None
    total, dims = _sum(build, terms)
    bounds = [bound for _, _, bound in terms]
    heads = q.dims[1] if len(q.dims) == 4 else ONE
    if not _masks.stays_open([mask for mask, _, _ in terms], bounds):
        if total.dtype == ir.DataType.FLOAT16:
            raise Refuse("a row that is masked wholly would not be uniform in float16")
        finite = sum(bounds) >= _masks.limit(total.dtype)
        if guarded and not finite and not kernels.attention_zeroes_closed_rows():
            raise Refuse(
                "the installed ONNX Runtime makes NaN of a row that is masked wholly, and the guard zero"
            )
        if not finite and not guarded and len(dims) >= 3 and heads != ONE and dims[-3] != ONE:
            raise Refuse("a row that is masked wholly would become zero instead of NaN")
        total = _masks.settle(build, total, sum(bounds), guarded)
    if len(q.dims) == 3 and len(dims) == 3:
        total = build.op("Unsqueeze", total, np.array([1]))
        total.shape = ir.Shape([dims[0].known, 1, dims[1].known, dims[2].known])
        dims = (dims[0], ONE, *dims[1:])
    if dims[-2:] != (q.dims[-2], k.dims[-2]) or len(dims) < 2:
        total = _widened(build, total, dims, q, k)
    return total, None


_Term: TypeAlias = tuple[ir.Value, Dims, float]
"""A mask to be added, its dimensions, a bound from below."""


def _terms(build: Builder, shapes: Shapes, scores: _Scores, q: Operand, k: Operand) -> list[_Term]:
    """What is to be added to the scores for its masks."""
    dtype = scores.query.dtype
    _check_fills(scores.masks, _masks.limit(dtype))
    terms: list[_Term] = []
    for mask in scores.masks:
        dims = shapes.of(mask.condition if isinstance(mask, _Fill) else mask)
        _check_fits(dims, q, k)
        assert dims is not None
        if isinstance(mask, ir.Value):
            terms.append((mask, dims, _masks.lowest(mask)))
            continue
        # Added to scores, whose place it took, it must swallow any of them: the spacing of floats at -1e9 is 64.
        low = _masks.above_limit(dtype) if np.isfinite(mask.number) else -np.inf
        inner: ir.Value | facts.Array = np.array(0.0, dtype=facts.numpy_dtype(scores.query))
        bound = low
        if np.isfinite(low) and terms:
            # What is beneath it does not count, so that entries masked twice are like those masked once.
            inner, more = _sum(build, terms)
            dims, bound = _join(dims, more), min(low, sum(bound for _, _, bound in terms))
            terms.clear()
        number = np.array(low, dtype=facts.numpy_dtype(scores.query))
        arms = (number, inner) if mask.closed else (inner, number)
        filled = build.op("Where", mask.condition, *arms, dtype=dtype, shape=[dim.known for dim in dims])
        terms.append((filled, dims, bound))
    return terms


def _check_fills(masks: Sequence[ir.Value | _Fill], limit: float) -> None:
    """Refuse finite fills for which the lowest number cannot stand: beside masks that may be about as low as they are.

    Between two entries of a row that is masked wholly, it counts which one is lower.
    """
    finite = [mask.number for mask in masks if isinstance(mask, _Fill) and np.isfinite(mask.number)]
    if all(number <= limit for number in finite):
        return
    if len(set(finite)) > 1:
        raise Refuse("masks put in different numbers")
    below = True
    for mask in masks:
        if isinstance(mask, _Fill):
            below = below and not np.isfinite(mask.number)
        elif not below or _masks.lowest(mask) < finite[0] / 2:
            raise Refuse("a mask that is added may be as low as the number that another puts in")


def _sum(build: Builder, terms: Sequence[_Term]) -> tuple[ir.Value, Dims]:
    total, dims, _ = terms[0]
    for mask, more, _ in terms[1:]:
        dims = _join(dims, more)
        total = build.op("Add", total, mask, shape=ir.Shape([dim.known for dim in dims]))
    return total, dims


def _check_fits(dims: Dims | None, q: Operand, k: Operand) -> None:
    full = (*q.dims[:-1], k.dims[-2])
    if dims is None or len(dims) > len(full):
        raise Refuse("the mask may enlarge the scores")
    for dim, limit in zip(reversed(dims), reversed(full), strict=False):
        if dim not in (ONE, limit):
            raise Refuse("the mask may enlarge the scores")


def _join(left: Dims, right: Dims) -> Dims:
    rank = max(len(left), len(right))
    left, right = (ONE,) * (rank - len(left)) + left, (ONE,) * (rank - len(right)) + right
    return tuple(b if a == ONE else a for a, b in zip(left, right, strict=True))


def _widened(build: Builder, mask: ir.Value, dims: Dims, q: Operand, k: Operand) -> ir.Value:
    """``mask`` with both lengths written out: ONNX Runtime does not broadcast them."""
    lengths = [_length(build, q), _length(build, k)]
    lead = np.ones(max(len(dims) - 2, 0), dtype=np.int64)
    shape = [dim.known for dim in (*dims[:-2], q.dims[-2], k.dims[-2])]
    if all(isinstance(length, int) for length in lengths):
        target: ir.Value | facts.Array = np.concatenate([lead, np.array(lengths, dtype=np.int64)])
    else:
        parts = [np.array([part], dtype=np.int64) if isinstance(part, int) else part for part in lengths]
        if lead.size:
            parts.insert(0, lead)
        target = build.op("Concat", *parts, dtype=ir.DataType.INT64, shape=[lead.size + 2], axis=0)
    return build.op("Expand", mask, target, shape=shape)


def _length(build: Builder, operand: Operand) -> int | ir.Value:
    known = operand.dims[-2].known
    if known is not None:
        return known
    value = operand.value if operand.value is not None else operand.base
    axis = len(operand.dims) - 2 if operand.value is not None else operand.perm[-2]
    return build.op("Shape", value, dtype=ir.DataType.INT64, shape=[1], start=axis, end=axis + 1)


def _heads_last(
    node: ir.Node,
    build: Builder,
    shapes: Shapes,
    operands: tuple[Operand, Operand, Operand],
    mask: ir.Value | None,
    attrs: dict[str, Any],
) -> bool:
    """Attention on [batch, length, size], in the place of the Transpose that reads ``node``; False if impossible."""
    transpose = facts.sole_consumer(node.outputs[0])
    merger = Merger(shapes, build)
    if transpose is None or transpose.op_type != "Transpose" or transpose.graph is not node.graph:
        return False
    if facts.attribute(transpose, "perm") != HEADS_FIRST or not all(map(merger.can, operands)):
        return False
    q, k, v = operands
    heads, size = q.dims[1].known, v.dims[3].known
    assert heads is not None and size is not None
    merged = [merger.merge(operand) for operand in operands]
    old = transpose.outputs[0]
    batch_and_length = list(old.shape)[:2] if old.shape is not None else [None, None]
    attrs = attrs | {"q_num_heads": heads, "kv_num_heads": k.dims[1].known}
    result = build.op("Attention", *merged, mask, shape=ir.Shape([*batch_and_length, heads * size]), **attrs)
    reshape = facts.sole_consumer(old)
    wanted = (q.dims[0], q.dims[2], Dim(heads * size))
    if reshape is not None and reshape.op_type == "Reshape" and shapes.reshaped(reshape) == wanted:
        build.replace(reshape.outputs[0], result)
    else:
        split = build.op("Reshape", result, np.array([0, 0, heads, size], dtype=np.int64), like=old)
        build.replace(old, split)
    return True
