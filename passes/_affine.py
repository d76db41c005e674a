"""Which ops an affine map passes through, and how a linear op further up or down takes it in."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts, windows
from graphopt.passes._affine_linear import Affine, Array, LinearOp, linear_at, read_affine, rounded
from graphopt.passes._shapes import VIEWS
from graphopt.rewrite import Builder, Refuse

MOST_STEPS = 6
MOST_READERS = 16


def passes_through(node: ir.Node, affine: Affine, *, up: bool) -> bool:
    """Whether ``node(affine(x)) == affine(node(x))``, the axis aside (see :func:`across`), for data input 0.

    Sources: ONNX operator specifications. A positive factor passes through anything homogeneous of degree one.

    Args:
        up: Whether ``affine`` has the axis of the node's output, not of its input.
    """
    kind = node.op_type
    if node.domain or any(out.uses() or out.is_graph_output() for out in node.outputs[1:]):
        return False
    positive = bool(np.all(affine.scale > 0))
    if kind in ("Relu", "LeakyRelu", "PRelu"):
        return positive and not affine.shifts
    if kind in ("MaxPool", "GlobalMaxPool"):
        return positive and (affine.is_scalar or affine.axis == 1)
    if kind in ("AveragePool", "GlobalAveragePool"):
        if not affine.is_scalar and affine.axis != 1:
            return False
        return not affine.shifts or kind == "GlobalAveragePool" or _averages_only_data(node)
    if kind in ("ReduceMean", "ReduceMax", "ReduceSum"):
        if affine.shifts and kind == "ReduceSum":
            return False
        if kind == "ReduceMax" and not positive:
            return False
        return affine.is_scalar or _keeps_axis(node, affine.axis)
    if kind == "Transpose":
        return affine.is_scalar or facts.attribute(node, "perm") is not None
    if kind == "Resize":
        if facts.attribute(node, "coordinate_transformation_mode") == "tf_crop_and_resize":
            return False
        return affine.is_scalar and (not affine.shifts or facts.attribute(node, "mode", "nearest") != "cubic")
    if kind in VIEWS:
        return affine.is_scalar or _axis_of_view(node, affine.axis, up=up) is not None
    return affine.is_scalar and kind in ("Slice", "DepthToSpace", "SpaceToDepth", "Identity")


def _axis_of_view(node: ir.Node, axis: int, *, up: bool) -> int | None:
    """The axis on the other side of a view whose positions are those of ``axis``: as long, with as much behind it.

    None where there is none, or where sizes behind it are not known.
    """
    here, there = facts.dims(node.outputs[0]), facts.dims(node.inputs[0])
    if not up:
        here, there = there, here
    if here is None or there is None:
        return None
    behind = [size for size in here[axis:] if isinstance(size, int) and size > 0]
    if len(behind) < len(here) - axis:
        return None
    size, inner = behind[0], math.prod(behind[1:])
    product = 1
    for index in reversed(range(len(there))):
        length = there[index]
        if not isinstance(length, int) or product > inner:
            return None
        if product == inner and length == size:
            return index
        product *= length
    return None


def _averages_only_data(node: ir.Node) -> bool:
    """Whether no zeros of the padding enter the average."""
    if not facts.attribute(node, "count_include_pad", 0):
        return True
    return not windows.is_padded(node) and not facts.attribute(node, "ceil_mode", 0)


def _keeps_axis(node: ir.Node, axis: int) -> bool:
    rank = facts.rank(node.inputs[0])
    axes = facts.ints(node.inputs[1]) if len(node.inputs) > 1 else None
    if not facts.attribute(node, "keepdims", 1) or rank is None or not axes:
        return False
    return axis not in {entry % rank for entry in axes}


def across(node: ir.Node, affine: Affine, *, up: bool) -> Affine:
    """The same map on the other side of ``node``, which it passes through."""
    if node.op_type == "Transpose" and not affine.is_scalar:
        perm = facts.attribute(node, "perm")
        return replace(affine, axis=perm[affine.axis] if up else perm.index(affine.axis))
    if node.op_type in VIEWS and not affine.is_scalar:
        axis = _axis_of_view(node, affine.axis, up=up)
        assert axis is not None  # passes_through said so
        return replace(affine, axis=axis)
    return affine


def shifted_constant(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """Source and constant of an Add or Sub of a constant that does not enlarge its rank."""
    if node.domain or node.op_type not in ("Add", "Sub") or len(node.inputs) != 2:
        return None
    first, second = node.inputs
    if first is None or second is None or facts.is_constant(first) == facts.is_constant(second):
        return None
    source, constant = (second, first) if facts.is_constant(first) else (first, second)
    if not facts.is_float(constant) or not facts.same_shape(source, node.outputs[0]):
        return None
    return source, constant


def rescaled(constant: ir.Value, scale: Array, axis: int, rank: int | None) -> Array | None:
    """A constant that is added, times a scalar or a vector along ``axis``; None where it would grow."""
    array = facts.constant(constant)
    dtype = facts.numpy_dtype(constant)
    if array is None or dtype is None:
        return None
    if scale.ndim:
        if rank is None:
            return None
        scale = scale.reshape(-1, *(1 for _ in range(rank - 1 - axis)))
    with np.errstate(all="ignore"):
        product = array.astype(np.float64) * scale
    return rounded(product, dtype) if product.size <= max(array.size, scale.size) else None


_SMALL_BYTES = 256 * 1024


def copy_of(node: ir.Node, source: ir.Value, build: Builder, shift: Array | None = None) -> ir.Value:
    """``node`` over another data input (and another constant, where it is an Add or Sub of one)."""
    attributes: dict[str, Any] = dict(node.attributes)
    if shift is None:
        return build.op(node.op_type, source, *node.inputs[1:], like=node.outputs[0], **attributes)
    flipped = facts.is_constant(node.inputs[0])
    operands = (shift, source) if flipped else (source, shift)
    return build.op(node.op_type, *operands, like=node.outputs[0])


def must_be_alone(value: ir.Value) -> None:
    """Refuse where ``value`` has more than one reader or leaves the graph."""
    if facts.sole_consumer(value) is None:
        raise Refuse(f"the inner value {value.name!r} is used elsewhere")


def must_own_weight(linear: LinearOp) -> None:
    """Refuse where another node reads a large weight too: a changed copy would add to the model."""
    if facts.constant_nbytes(linear.weight) <= _SMALL_BYTES:
        return
    if len(linear.weight.uses()) != 1 or linear.weight.is_graph_output():
        raise Refuse(f"the weight {linear.weight.name!r} is shared")


def absorb_upwards(node: ir.Node, build: Builder) -> ir.Value | None:
    """Make the affine map at ``node`` part of the linear op that its input comes from.

    Between the two may lie ops that the map passes through, each read by nothing else.
    """
    affine = read_affine(node)
    if affine is None:
        return None
    value, path = affine.source, list[tuple[ir.Node, Affine]]()
    linear: LinearOp | None = None
    for _ in range(MOST_STEPS):
        producer = value.producer()
        if producer is None or producer.graph is not node.graph or value is not producer.outputs[0]:
            return None
        linear = linear_at(producer)
        if linear is not None and linear.takes_out(affine):
            break
        linear = None
        shifted = None if affine.shifts else shifted_constant(producer)
        if shifted is None and not passes_through(producer, affine, up=True):
            return None
        path.append((producer, affine))
        affine = across(producer, affine, up=True)
        source = producer.inputs[0] if shifted is None else shifted[0]
        if source is None:
            return None
        value = source
    if linear is None:
        return None
    if linear.kind == "MatMul" and linear.bias is None and not affine.scales:
        return None
    for inner in (linear.node, linear.last, *(step for step, _ in path)):
        must_be_alone(inner.outputs[0])
    if affine.scales:
        must_own_weight(linear)
    result = linear.after(affine, build, linear.last.outputs[0])
    for step, here in reversed(path):
        constant = shifted_constant(step)
        if constant is None:
            result = copy_of(step, result, build)
            continue
        content = rescaled(constant[1], here.scale, here.axis, facts.rank(step.outputs[0]))
        if content is None:
            raise Refuse("a constant would grow")
        result = copy_of(step, result, build, content)
    return result


def absorb_downwards(node: ir.Node, build: Builder, makers: frozenset[str]) -> ir.Value | None:
    """Make an affine map (a node of one of the types ``makers``) part of the linear op that ends at ``node``.

    Done only where every reader of the map can take it in, so that the map goes away; each such reader is
    rewritten when the driver comes to it.
    """
    linear = linear_at(node)
    if linear is None or (node.op_type == "MatMul" and has_bias(node)):
        return None
    value, path = linear.source, list[ir.Node]()
    for _ in range(MOST_STEPS):
        producer = value.producer()
        if producer is None or producer.graph is not node.graph or producer.domain:
            return None
        if producer.op_type in makers:
            break
        if producer.op_type not in _PASSABLE or producer.inputs[0] is None:
            return None
        path.append(producer)
        value = producer.inputs[0]
    affine = None if producer is None else read_affine(producer)
    if producer is None or affine is None or value is not producer.outputs[0]:
        return None
    if not affine.is_scalar and (facts.dims(affine.source) or ())[affine.axis] != affine.size:
        return None  # the constant enlarges its operand
    at_linear = affine
    for step in reversed(path):
        if not passes_through(step, at_linear, up=False):
            return None
        at_linear = across(step, at_linear, up=False)
    if not linear.takes_in(at_linear):
        if at_linear.shifts and linear.takes_in(replace(at_linear, shift=np.zeros(()))):
            raise Refuse("the op pads with zeros, which the added constant must not reach")
        return None
    adds_sum = linear.kind == "MatMul" and linear.bias is None and at_linear.shifts
    if adds_sum and not affine.scales and linear.outputs > linear.inputs:
        raise Refuse("the sum would move to a larger tensor")
    for step in path:
        must_be_alone(step.outputs[0])
    if linear.last is not linear.node:
        must_be_alone(linear.node.outputs[0])
    if at_linear.scales:
        must_own_weight(linear)
    if not all_absorb(producer.outputs[0], affine):
        raise Refuse(f"another reader of {producer.outputs[0].name!r} keeps it alive")
    source = affine.source
    for step in reversed(path):
        source = copy_of(step, source, build)
    return linear.before(at_linear, build, source, node.outputs[0])


_PASSABLE = frozenset(
    (
        *VIEWS,
        "AveragePool",
        "DepthToSpace",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Identity",
        "LeakyRelu",
        "MaxPool",
        "PRelu",
        "ReduceMax",
        "ReduceMean",
        "ReduceSum",
        "Relu",
        "Resize",
        "Slice",
        "SpaceToDepth",
        "Transpose",
    )
)


def has_bias(node: ir.Node) -> bool:
    """Whether the Add of a constant bias follows a MatMul; then that Add is where the linear op ends."""
    follower = facts.sole_consumer(node.outputs[0])
    return follower is not None and follower.op_type == "Add" and linear_at(follower) is not None


def all_absorb(value: ir.Value, affine: Affine) -> bool:
    """Whether all that reads ``value`` is a linear op that takes ``affine`` in, ops that it passes through between."""
    left = [MOST_READERS]

    def check(value: ir.Value, affine: Affine) -> bool:
        if value.is_graph_output():
            return False
        for use in value.uses():
            left[0] -= 1
            reader = use.node
            if left[0] < 0 or use.idx != 0 or reader.graph is not (value.producer() or reader).graph:
                return False
            linear = linear_at(reader)
            if linear is not None and linear.node is reader:
                shared = affine.scales and len(linear.weight.uses()) != 1
                if shared or not linear.takes_in(affine):
                    return False
            else:
                passable = reader.op_type in _PASSABLE and passes_through(reader, affine, up=False)
                if not passable or not check(reader.outputs[0], across(reader, affine, up=False)):
                    return False
        return True

    return check(value, affine)
