"""Which values ONNX Runtime's CPU provider keeps in its blocked layout (NCHWc), and per-channel affine maps.

The rules are those of ONNX Runtime 1.31's NchwcTransformer, seen in dumps of its optimised graphs. They only steer
what is worth rewriting; no result depends on them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts

BLOCK = 16
"""Channels to a block with AVX-512; 8 with AVX2, which what is a multiple of 16 suits too."""
_ALIGNMENT = 4
_DEEPEST = 6
_POINTWISE = frozenset(("HardSigmoid", "HardSwish", "Relu", "Sigmoid", "Tanh"))
_POOLS = frozenset(("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"))


def is_blocked(value: ir.Value | None, depth: int = _DEEPEST) -> bool:
    """Whether ``value`` lies in the blocked layout where ONNX Runtime computes it."""
    shape, node = facts.dims(value), None if value is None else value.producer()
    if node is None or node.domain or shape is None or len(shape) != 4 or depth == 0:
        return False
    kind, inputs = node.op_type, node.inputs
    if kind == "Conv":
        return is_blocked_conv(node)
    if kind in _POOLS:
        return shape[1] is not None and shape[1] % BLOCK == 0
    if kind in _POINTWISE or kind == "BatchNormalization":
        return is_blocked(inputs[0], depth - 1)
    if (
        kind in ("Add", "Mul", "Sum")
        and len(inputs) == 2
        and all(facts.same_shape(each, value) for each in inputs)
    ):
        return all(is_blocked(each, depth - 1) for each in inputs)
    if kind == "Concat" and facts.attribute(node, "axis") in (1, -3) and len(inputs) <= 8:
        sizes = [(facts.dims(each) or (None,) * 2)[1] for each in inputs]
        return all(size is not None and size % BLOCK == 0 for size in sizes) and all(
            is_blocked(each, depth - 1) for each in inputs
        )
    return False


def is_blocked_conv(node: ir.Node) -> bool:
    """Whether ONNX Runtime runs this Conv in the blocked layout."""
    weight = facts.static_dims(node.inputs[1])
    if weight is None or len(weight) != 4 or not facts.is_constant(node.inputs[1]):
        return False
    if node.inputs[1] is None or node.inputs[1].dtype != ir.DataType.FLOAT:
        return False
    outputs, inputs = weight[:2]
    group = facts.attribute(node, "group", 1)
    if group == 1:
        return inputs < BLOCK or inputs % _ALIGNMENT == 0
    if inputs == 1 and group == outputs:
        return bool(outputs % _ALIGNMENT == 0)
    return inputs % BLOCK == 0 and outputs // group % BLOCK == 0


def reads_blocked(node: ir.Node, value: ir.Value) -> bool:
    """Whether ``node`` reads ``value`` in the blocked layout, where it can have it so."""
    if node.domain:
        return False
    if node.op_type == "Conv":
        return node.inputs[0] is value and is_blocked_conv(node)
    if node.op_type in _POOLS:
        channels = (facts.dims(value) or (None,) * 2)[1]
        return channels is not None and channels % BLOCK == 0
    if node.op_type in ("Add", "Mul", "Sum"):
        return len(node.inputs) == 2 and all(
            facts.same_shape(each, node.outputs[0]) and (each is value or is_blocked(each))
            for each in node.inputs
        )
    return node.op_type in _POINTWISE or node.op_type == "BatchNormalization"


@dataclass(frozen=True)
class ChannelMap:
    """``scale * x + shift`` with float64 vectors over the channels, axis 1 of a tensor of rank 4."""

    source: ir.Value
    scale: facts.Array
    shift: facts.Array

    def after(self, inner: ChannelMap) -> ChannelMap:
        """This map of the result of ``inner``, as one."""
        return ChannelMap(inner.source, self.scale * inner.scale, self.scale * inner.shift + self.shift)


def channel_map(node: ir.Node) -> ChannelMap | None:
    """The affine map by channel that ``node`` computes of its one input that is no constant, where it is one."""
    if node.domain or node.outputs[0].dtype != ir.DataType.FLOAT:
        return None
    if node.op_type == "BatchNormalization":
        return _batchnorm_map(node)
    if node.op_type not in ("Add", "Div", "Mul", "Sub") or len(node.inputs) != 2:
        return None
    left, right = node.inputs
    flipped = facts.is_constant(left)
    source, constant = (right, left) if flipped else (left, right)
    if source is None or facts.is_constant(source) or not facts.is_constant(constant):
        return None
    vector = _by_channel(constant, source)
    if vector is None or (node.op_type == "Div" and (flipped or not np.all(vector))):
        return None
    one, zero = np.ones(len(vector)), np.zeros(len(vector))
    if node.op_type == "Add":
        return ChannelMap(source, one, vector)
    if node.op_type == "Sub":
        return ChannelMap(source, -one, vector) if flipped else ChannelMap(source, one, -vector)
    return ChannelMap(source, vector if node.op_type == "Mul" else 1 / vector, zero)


def _by_channel(constant: ir.Value | None, source: ir.Value) -> facts.Array | None:
    """A finite constant that differs by channel at most, as a vector; None where it could enlarge ``source``."""
    shape, own = facts.dims(source), facts.static_dims(constant)
    if shape is None or len(shape) != 4 or own is None or len(own) > 4 or shape[1] is None:
        return None
    full = (1,) * (4 - len(own)) + own
    if any(full[axis] != 1 for axis in (0, 2, 3)) or full[1] not in (1, shape[1]):
        return None
    content = facts.constant(constant)
    if content is None or content.dtype != np.float32 or not np.isfinite(content).all():
        return None
    return np.broadcast_to(content.astype(np.float64).reshape(-1), (shape[1],))


def _batchnorm_map(node: ir.Node) -> ChannelMap | None:
    source = node.inputs[0]
    if source is None or facts.rank(source) != 4 or facts.attribute(node, "training_mode", 0):
        return None
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return None
    contents = [facts.constant(value) for value in node.inputs[1:]]
    scale, bias, mean, variance = (None if each is None else each.astype(np.float64) for each in contents)
    if scale is None or bias is None or mean is None or variance is None:
        return None
    spread = variance + facts.attribute(node, "epsilon", 1e-5)
    if np.any(spread <= 0):
        return None
    scale = scale / np.sqrt(spread)
    shift = bias - mean * scale
    return ChannelMap(source, scale, shift) if np.isfinite(scale).all() and np.isfinite(shift).all() else None
