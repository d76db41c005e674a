"""How large the elements of a value can become, over all inputs of a model that are integers.

A bound that is finite also proves that no element is NaN or infinite. Floating-point inputs have no bound;
a layer normalisation narrows one that is known, as in exact arithmetic (a row is at most the root of its length).
"""

from __future__ import annotations

import math
import weakref

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts

UNKNOWN = math.inf
_MOST_STEPS = 100_000
_SLACK = 1.001
_INTEGERS = {
    ir.DataType.BOOL: 1.0,
    ir.DataType.INT8: 2.0**8,
    ir.DataType.UINT8: 2.0**8,
    ir.DataType.INT16: 2.0**16,
    ir.DataType.UINT16: 2.0**16,
    ir.DataType.INT32: 2.0**32,
    ir.DataType.UINT32: 2.0**32,
    ir.DataType.INT64: 2.0**64,
    ir.DataType.UINT64: 2.0**64,
}
_NO_LARGER = frozenset(
    {
        "Abs",
        "Cast",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Gelu",
        "HardSwish",
        "Identity",
    }
    | {"Neg", "ReduceMax", "ReduceMin", "Relu", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose"}
    | {"Trilu", "Unsqueeze"}
)
_AT_MOST_ONE = frozenset({"Cos", "Erf", "HardSigmoid", "Sigmoid", "Sin", "Tanh"})
_OF_ALL = frozenset({"Add", "Clip", "Concat", "Div", "Gemm", "MatMul", "Max", "Min", "Mul", "Sub"})
_NORMALISED = frozenset({"LayerNormalization", "RMSNormalization"})


class Bounds:
    """Derives bounds, and keeps them: what a value can hold does not change while a graph is rewritten."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[ir.Value, float] = weakref.WeakKeyDictionary()

    def magnitude(self, value: ir.Value) -> float:
        """A number that the magnitude of no element exceeds, or ``UNKNOWN``."""
        stack = [value]
        for _ in range(_MOST_STEPS):
            if not stack:
                break
            top = stack[-1]
            if top not in self._known:
                missing = [operand for operand in _reads(top) if operand not in self._known]
                if missing:
                    stack += missing
                    continue
                self._known[top] = self._evaluate(top)
            stack.pop()
        return self._known.get(value, UNKNOWN)

    def softmax_is_finite(self, node: ir.Node) -> bool:
        """Whether no row of a Softmax over the last axis can be NaN: none holds NaN or +inf, or -inf throughout."""
        source = node.inputs[0]
        if source is None or source.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
            return False
        largest = _largest(source)
        # Adding less than half a unit in the last place of the largest number cannot make that overflow.
        harmless = largest * (2.0**-26 if source.dtype == ir.DataType.FLOAT else 2.0**-13)
        summands = _summands(source)
        if len(summands) == 1:
            return self.magnitude(source) <= largest
        for scores, mask in (summands, summands[::-1]):
            size, limit = self.magnitude(scores), _row_bound(mask)
            limit = self.magnitude(mask) if limit is None else limit
            if size + limit < largest / _SLACK or (size <= harmless and limit <= largest):
                return True
        return False

    def _evaluate(self, value: ir.Value) -> float:
        array = facts.constant(value)
        if array is not None:
            return _largest_element(array)
        if value.dtype in _INTEGERS:
            return _INTEGERS[value.dtype]
        node = value.producer()
        if node is None or node.domain or (value is not node.outputs[0] and node.op_type != "Split"):
            return UNKNOWN
        sizes = [self._known.get(operand, UNKNOWN) for operand in _reads(value)]
        kind = node.op_type
        if kind in _NO_LARGER:
            return _checked(value, sizes[0]) if kind == "Cast" else sizes[0]
        if kind in _AT_MOST_ONE:
            return 1.0 if sizes[0] < UNKNOWN else UNKNOWN
        if kind == "Softmax":
            return 1.0 if _over_last_axis(node) and self.softmax_is_finite(node) else UNKNOWN
        if kind == "Where":
            return 1.0 if guarded_softmax(value) is not None else max(sizes)
        if UNKNOWN in sizes or not sizes:
            return UNKNOWN
        return _checked(value, _combined(node, sizes))


def guarded_softmax(value: ir.Value | None) -> ir.Node | None:
    """The Softmax of ``Where(IsNaN(p), 0, p)`` with ``p`` a Softmax over the last axis, where ``value`` is that."""
    guard = None if value is None else value.producer()
    if guard is None or guard.op_type != "Where" or guard.domain or None in guard.inputs:
        return None
    condition, zero, weights = guard.inputs
    assert condition is not None and weights is not None
    test, softmax = condition.producer(), weights.producer()
    if test is None or test.op_type != "IsNaN" or test.domain or test.inputs[0] is not weights:
        return None
    if softmax is None or softmax.op_type != "Softmax" or softmax.domain or facts.scalar(zero) != 0:
        return None
    zero_rank, rank = facts.rank(zero), facts.rank(weights)
    if zero_rank and (rank is None or zero_rank > rank):
        return None
    return softmax if _over_last_axis(softmax) else None


def _over_last_axis(softmax: ir.Node) -> bool:
    rank = facts.rank(softmax.inputs[0])
    return facts.attribute(softmax, "axis", -1) in (-1, None if rank is None else rank - 1)


def _summands(value: ir.Value) -> list[ir.Value]:
    node = value.producer()
    if node is None or node.op_type != "Add" or node.domain:
        return [value]
    return [operand for operand in node.inputs if operand is not None]


def _reads(value: ir.Value) -> list[ir.Value]:
    """The values that the bound of ``value`` depends on."""
    node = value.producer()
    if node is None or node.domain or value.dtype in _INTEGERS or facts.is_constant(value):
        return []
    kind = node.op_type
    if kind == "Softmax":
        return _summands(node.inputs[0]) if node.inputs[0] is not None else []
    if kind in _OF_ALL or kind in _NORMALISED:
        return [operand for operand in node.inputs if operand is not None]
    if kind == "Where":
        return [operand for operand in node.inputs[1:] if operand is not None]
    if kind in _NO_LARGER or kind in _AT_MOST_ONE:
        return [operand for operand in node.inputs[:1] if operand is not None]
    return []


def _combined(node: ir.Node, sizes: list[float]) -> float:
    kind = node.op_type
    if kind in ("Clip", "Concat", "Max", "Min"):
        return max(sizes)
    if kind in ("Add", "Sub"):
        return sum(sizes)
    if kind == "Mul":
        return sizes[0] * sizes[1]
    if kind == "Div":
        divisor = facts.constant(node.inputs[1])
        smallest = 0.0 if divisor is None or divisor.size == 0 else float(np.abs(divisor).min())
        return sizes[0] / smallest if smallest else UNKNOWN
    if kind in _NORMALISED:
        scale = facts.static_dims(node.inputs[1])
        if scale is None or sizes[0] > 1e18:
            return UNKNOWN
        return math.sqrt(math.prod(scale)) * sizes[1] + sum(sizes[2:])
    left = node.inputs[0]
    weights = None if left is None else left.producer()
    if (
        kind == "MatMul"
        and weights is not None
        and (weights.op_type == "Softmax" or guarded_softmax(left) is not None)
    ):
        return sizes[1]
    terms = _inner_size(node)
    if terms is None:
        return UNKNOWN
    product = sizes[0] * sizes[1] * terms
    if kind == "Gemm":
        product *= abs(facts.attribute(node, "alpha", 1.0))
        product += sum(sizes[2:]) * abs(facts.attribute(node, "beta", 1.0))
    return product


def _inner_size(node: ir.Node) -> int | None:
    """Number of products that each element of a MatMul or Gemm sums."""
    left, right = facts.dims(node.inputs[0]), facts.dims(node.inputs[1])
    if left and right and node.op_type == "Gemm":
        rows = left[0 if facts.attribute(node, "transA", 0) else 1]
        return rows or right[1 if facts.attribute(node, "transB", 0) else 0]
    if left and left[-1] is not None:
        return left[-1]
    return right[max(len(right) - 2, 0)] if right else None


def _largest(value: ir.Value) -> float:
    return 65504.0 if value.dtype == ir.DataType.FLOAT16 else float(np.finfo(np.float32).max)


def _checked(value: ir.Value, size: float) -> float:
    """``size`` with room for rounding, unless a computation of that size may overflow."""
    return size * _SLACK if size < 0.9 * _largest(value) else UNKNOWN


def _largest_element(array: facts.Array) -> float:
    if array.size == 0:
        return 0.0
    if array.dtype.kind not in "biuf":
        return UNKNOWN
    # Of minimum and maximum, both of which pass NaN on; np.abs would copy the weights.
    size = max(abs(float(array.min())), abs(float(array.max())))
    return size if math.isfinite(size) else UNKNOWN


def _row_bound(mask: ir.Value) -> float | None:
    """Largest finite magnitude of a constant mask each of whose rows keeps a finite entry; None for another."""
    array = facts.constant(mask)
    if array is None or array.dtype.kind != "f" or array.size == 0 or array.ndim == 0:
        return None
    finite = np.isfinite(array)
    if not finite.any(axis=-1).all() or np.isnan(array).any() or np.isposinf(array).any():
        return None
    return float(np.abs(array[finite]).max())
