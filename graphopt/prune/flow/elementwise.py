"""Operators that work element by element, and those that mix whole axes: softmax, normalizations, reductions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import onnx_ir as ir

from graphopt.ir import facts
from graphopt.prune.flow.base import Flow, Rule
from graphopt.prune.labels import Axis


def _elementwise(flow: Flow, node: ir.Node) -> None:
    """Any number of operands that broadcast against each other (ONNX specification, Multidirectional Broadcasting)."""
    broadcast(flow, node, [value for value in node.inputs if value is not None])


def _first_only(flow: Flow, node: ir.Node) -> None:
    """Element by element over the first operand; the others are single numbers."""
    broadcast(flow, node, [value for value in node.inputs[:1] if value is not None])


def broadcast(flow: Flow, node: ir.Node, operands: Sequence[ir.Value], batch: int = 0) -> list[Axis]:
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


ELEMENTWISE = (
    "Add", "And", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip


UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Dropout",
    "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log",
    "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus",
    "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip


_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
)  # fmt: skip

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(UNARY, _first_only),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    "ArgMax": _arg_reduce,
    "ArgMin": _arg_reduce,
    "CumSum": _per_axis(keep=lambda node, rank: range(rank), reason="CumSum is over all of them"),
    "Hardmax": _per_axis(keep=_one_axis(-1), reason="Hardmax is over all of them"),
    "LRN": _per_axis(keep=lambda node, rank: [1], reason="LRN is over its neighbours"),
    "LayerNormalization": _per_axis(keep=_from_axis(-1), reason="LayerNormalization is over all of them"),
    "LogSoftmax": _per_axis(keep=_one_axis(-1), reason="LogSoftmax is over all of them"),
    "LpNormalization": _per_axis(keep=_one_axis(-1), reason="LpNormalization is over all of them"),
    "RMSNormalization": _per_axis(keep=_from_axis(-1), reason="RMSNormalization is over all of them"),
    "Softmax": _per_axis(keep=_one_axis(-1), reason="Softmax is over all of them"),
    "TopK": _per_axis(keep=_one_axis(-1), reason="TopK is over all of them"),
    "Trilu": _per_axis(keep=lambda node, rank: [-2, -1], reason="Trilu cuts by its place"),
}
"""By operator of ONNX."""

__all__ = ["ELEMENTWISE", "RULES", "UNARY", "broadcast"]
