"""Linear ops with constant weights, and the per-channel affine maps ``s * x + b`` that they can take in.

Weights are folded in float64 and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts, windows
from graphopt.rewrite import Builder, Refuse

Array = facts.Array
_ONE: Array = np.ones(())
_ZERO: Array = np.zeros(())


@dataclass(frozen=True)
class Affine:
    """``scale * x + shift``; each is a float64 scalar (shape ()) or a vector along ``axis``."""

    source: ir.Value
    scale: Array = field(default_factory=lambda: _ONE)
    shift: Array = field(default_factory=lambda: _ZERO)
    axis: int = 0

    @property
    def scales(self) -> bool:
        """Whether it is more than a shift."""
        return not bool(np.all(self.scale == 1))

    @property
    def shifts(self) -> bool:
        """Whether it is more than a factor."""
        return bool(np.any(self.shift != 0))

    @property
    def size(self) -> int:
        """Length of the vector, 1 where it is a scalar."""
        return max(self.scale.size, self.shift.size)

    @property
    def is_scalar(self) -> bool:
        """Whether it is the same for all channels."""
        return self.scale.ndim == 0 and self.shift.ndim == 0


def channel_vector(constant: ir.Value | None, other: ir.Value | None) -> tuple[Array, int] | None:
    """A finite constant that varies along one axis of ``other`` at most: its float64 content and that axis.

    None where its rank could enlarge that of ``other``.
    """
    if constant is None or other is None or not facts.is_float(constant) or not facts.is_float(other):
        return None
    shape, rank = facts.static_dims(constant), facts.rank(other)
    if not facts.is_constant(constant) or shape is None or 0 in shape or len(shape) > (rank or 0):
        return None
    wide = [axis for axis, dim in enumerate(shape) if dim != 1]
    if len(wide) > 1:
        return None
    array = facts.constant(constant)
    assert array is not None
    array = array.astype(np.float64)
    if not np.all(np.isfinite(array)):
        return None
    if not wide or rank is None:
        return array.reshape(()), 0
    return array.reshape(-1), rank - len(shape) + wide[0]


def read_affine(node: ir.Node) -> Affine | None:
    """The affine map that ``node`` computes of its one non-constant input, where it is one."""
    if node.domain or not node.inputs:
        return None
    if node.op_type == "BatchNormalization":
        return _read_batchnorm(node)
    first = node.inputs[0]
    if node.op_type == "Neg":
        if first is None or not facts.is_float(first) or facts.is_constant(first):
            return None
        return Affine(first, -_ONE)
    if node.op_type not in ("Add", "Sub", "Mul", "Div") or len(node.inputs) != 2:
        return None
    second = node.inputs[1]
    flipped = facts.is_constant(first)
    source, constant = (second, first) if flipped else (first, second)
    if source is None or facts.is_constant(source) or (flipped and node.op_type == "Div"):
        return None
    found = channel_vector(constant, source)
    if found is None:
        return None
    content, axis = found
    if node.op_type == "Add":
        return Affine(source, shift=content, axis=axis)
    if node.op_type == "Sub":
        return Affine(source, -_ONE if flipped else _ONE, content if flipped else -content, axis)
    if node.op_type == "Mul":
        return Affine(source, content, axis=axis)
    return Affine(source, 1.0 / content, axis=axis) if np.all(content != 0) else None


def _read_batchnorm(node: ir.Node) -> Affine | None:
    """In inference; scale, bias, mean and variance constant."""
    if len(node.inputs) != 5 or facts.attribute(node, "training_mode", 0):
        return None
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return None
    if node.inputs[0] is None or not facts.is_float(node.inputs[0]):
        return None
    parameters = [facts.constant(value) for value in node.inputs[1:]]
    scale, bias, mean, variance = (
        None if array is None else array.astype(np.float64) for array in parameters
    )
    if scale is None or bias is None or mean is None or variance is None:
        return None
    epsilon = facts.attribute(node, "epsilon", 1e-5)
    if np.any(variance + epsilon <= 0):
        return None
    scale = scale / np.sqrt(variance + epsilon)
    shift = bias - mean * scale
    if not (np.all(np.isfinite(scale)) and np.all(np.isfinite(shift))):
        return None
    return Affine(node.inputs[0], scale, shift, 1)


def rounded(array: Array, dtype: np.dtype[Any]) -> Array:
    """Round float64 to ``dtype``; refuses where that overflows, or where float16 loses much below its range."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        result = array.astype(dtype)
    if not np.all(np.isfinite(result.astype(np.float64))):
        raise Refuse("the folded constants would overflow their type")
    if dtype == np.float16:
        lost = (array != 0) & (np.abs(array) < float(np.finfo(np.float16).tiny))
        if np.count_nonzero(lost) * 100 > array.size:
            raise Refuse("the folded constants would be subnormal in float16")
    return result


@dataclass
class LinearOp:
    """Conv, ConvTranspose, Gemm, MatMul (with the bias added to it) or BatchNormalization, weights constant.

    Attributes:
        node: The op itself.
        last: ``node``, or the Add of a constant bias that follows a MatMul.
        weight: Its weight (of BatchNormalization: its scale).
        bias: float64 [outputs], scalar expanded; None where there is none.
        inputs: Number of input channels.
        outputs: Number of output channels.
    """

    node: ir.Node
    last: ir.Node
    weight: ir.Value
    bias: Array | None
    inputs: int
    outputs: int

    @property
    def source(self) -> ir.Value:
        """The data."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def kind(self) -> str:
        """Op type."""
        return self.node.op_type

    @property
    def group(self) -> int:
        """Number of groups of channels."""
        return int(facts.attribute(self.node, "group", 1))

    def takes_in(self, affine: Affine) -> bool:
        """Whether ``affine`` before this op can become part of it."""
        if self.kind == "Gemm" and facts.attribute(self.node, "transA", 0):
            return False
        if not affine.is_scalar and (self._axis(self.source) != affine.axis or affine.size != self.inputs):
            return False
        return not affine.shifts or self.uniform()

    def takes_out(self, affine: Affine) -> bool:
        """Whether ``affine`` after this op can become part of it."""
        fits = self._axis(self.node.outputs[0]) == affine.axis and affine.size == self.outputs
        return affine.is_scalar or fits

    def _axis(self, value: ir.Value) -> int | None:
        """The channel axis; None where the rank is unknown."""
        rank = facts.rank(value)
        return (None if rank is None else rank - 1) if self.kind == "MatMul" else 1

    def uniform(self) -> bool:
        """Whether a constant input gives a constant output: no implicit zeros at the borders."""
        if self.kind == "ConvTranspose":
            return False
        return self.kind != "Conv" or not windows.is_padded(self.node)

    def content(self) -> Array:
        """The effective weight in float64 (of Gemm: times alpha)."""
        array = facts.constant(self.weight)
        assert array is not None
        weight = array.astype(np.float64)
        return weight * facts.attribute(self.node, "alpha", 1.0) if self.kind == "Gemm" else weight

    def scaled(self, scale: Array, side: str) -> Array:
        """The weight with its outputs (``side`` "out") or inputs ("in") multiplied."""
        weight = self.content()
        if scale.ndim == 0 or self.kind == "BatchNormalization":
            return np.asarray(weight * scale)
        rows, columns = self.inputs, self.outputs
        if self.kind in ("Gemm", "MatMul"):
            transposed = self.kind == "Gemm" and facts.attribute(self.node, "transB", 0)
            by_row = (side == "in") != bool(transposed)
            return np.asarray(weight * (scale[:, None] if by_row else scale[None, :]))
        group, spatial = self.group, weight.shape[2:]
        if self.kind == "Conv":
            shape = (group, columns // group, rows // group)
            along = (group, -1, 1) if side == "out" else (group, 1, -1)
        else:
            shape = (group, rows // group, columns // group)
            along = (group, 1, -1) if side == "out" else (group, -1, 1)
        product = weight.reshape(*shape, *spatial) * scale.reshape(*along, *(1 for _ in spatial))
        return np.asarray(product.reshape(weight.shape))

    def response(self, shift: Array) -> Array:
        """The constant output [outputs] for the constant input ``shift`` (see :meth:`uniform`)."""
        shift = np.broadcast_to(shift, (self.inputs,))
        weight = self.content()
        if self.kind == "BatchNormalization":
            variance = facts.constant(self.node.inputs[4])
            assert variance is not None
            epsilon = facts.attribute(self.node, "epsilon", 1e-5)
            return np.asarray(weight * shift / np.sqrt(variance.astype(np.float64) + epsilon))
        if self.kind == "Conv":
            split = weight.reshape(self.group, self.outputs // self.group, self.inputs // self.group, -1)
            return np.asarray(np.einsum("gock,gc->go", split, shift.reshape(self.group, -1)).reshape(-1))
        if self.kind == "Gemm" and facts.attribute(self.node, "transB", 0):
            return np.asarray(weight @ shift)
        return np.asarray(shift @ weight)

    def after(self, affine: Affine, build: Builder, like: ir.Value) -> ir.Value:
        """This op followed by ``affine``, as one op (MatMul: and an Add)."""
        bias = np.zeros(self.outputs) if self.bias is None else self.bias
        bias = bias * affine.scale + affine.shift
        keeps = self.bias is not None or affine.shifts
        weight = self.scaled(affine.scale, "out") if affine.scales else None
        return self.rebuilt(build, self.source, weight, bias if keeps else None, like)

    def before(self, affine: Affine, build: Builder, source: ir.Value, like: ir.Value) -> ir.Value:
        """``affine`` of ``source`` followed by this op, as one op (MatMul: and an Add)."""
        bias = np.zeros(self.outputs) if self.bias is None else self.bias
        if affine.shifts:
            bias = bias + self.response(affine.shift)
        if self.kind == "BatchNormalization":
            mean = facts.constant(self.node.inputs[3])
            assert mean is not None
            bias = bias + self.response(mean.astype(np.float64) * (affine.scale - 1))
        keeps = self.bias is not None or affine.shifts
        weight = self.scaled(affine.scale, "in") if affine.scales else None
        return self.rebuilt(build, source, weight, bias if keeps else None, like)

    def rebuilt(
        self, build: Builder, source: ir.Value, weight: Array | None, bias: Array | None, like: ir.Value
    ) -> ir.Value:
        """This op over ``source`` with another effective weight (None: the same) and bias."""
        dtype = facts.numpy_dtype(self.weight)
        assert dtype is not None
        attributes: dict[str, Any] = dict(self.node.attributes)
        new_weight = self.weight if weight is None else rounded(weight, dtype)
        new_bias = None if bias is None else rounded(bias, dtype)
        if self.kind == "MatMul":
            product = build.op("MatMul", source, new_weight, like=like)
            return product if new_bias is None else build.op("Add", product, new_bias, like=like)
        if self.kind == "Gemm":
            attributes.pop("beta", None)
            if weight is not None:
                attributes.pop("alpha", None)
        rest = self.node.inputs[3:] if self.kind == "BatchNormalization" else ()
        if new_bias is None:
            return build.op(self.kind, source, new_weight, like=like, **attributes)
        return build.op(self.kind, source, new_weight, new_bias, *rest, like=like, **attributes)


def linear_at(node: ir.Node | None) -> LinearOp | None:
    """The linear op that ends at ``node``, where it is one with constant weights."""
    if node is None or node.domain:
        return None
    if node.op_type == "Add" and len(node.inputs) == 2:
        return _biased_matmul(node)
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"):
        return None
    if len(node.inputs) < 2 or node.inputs[0] is None or facts.is_constant(node.inputs[0]):
        return None
    weight = node.inputs[1]
    shape = facts.static_dims(weight)
    if weight is None or not facts.is_constant(weight) or not facts.is_float(weight) or shape is None:
        return None
    if node.op_type == "BatchNormalization":
        if _read_batchnorm(node) is None or len({value.dtype for value in node.inputs if value}) != 1:
            return None
        bias = facts.constant(node.inputs[2])
        assert bias is not None
        return LinearOp(node, node, weight, bias.astype(np.float64), shape[0], shape[0])
    if node.op_type == "MatMul":
        return LinearOp(node, node, weight, None, *shape) if len(shape) == 2 else None
    group = int(facts.attribute(node, "group", 1))
    if node.op_type == "Conv":
        inputs, outputs = shape[1] * group, shape[0]
    elif node.op_type == "ConvTranspose":
        inputs, outputs = shape[0], shape[1] * group
    else:
        inputs, outputs = shape[::-1] if facts.attribute(node, "transB", 0) else shape
    extra = node.inputs[2] if len(node.inputs) > 2 else None
    if extra is None:
        return LinearOp(node, node, weight, None, inputs, outputs)
    found = channel_vector(extra, node.outputs[0] if node.op_type == "Gemm" else extra)
    if found is None:
        return None
    vector, axis = found
    if vector.ndim and (vector.size != outputs or (node.op_type == "Gemm" and axis != 1)):
        return None
    beta = facts.attribute(node, "beta", 1.0) if node.op_type == "Gemm" else 1.0
    return LinearOp(node, node, weight, np.broadcast_to(vector * beta, (outputs,)), inputs, outputs)


def _biased_matmul(node: ir.Node) -> LinearOp | None:
    shifted = read_affine(node)
    if shifted is None or facts.producer_op(shifted.source) != "MatMul":
        return None
    inner = linear_at(shifted.source.producer())
    if inner is None or inner.node.graph is not node.graph or not inner.takes_out(shifted):
        return None
    bias = np.broadcast_to(shifted.shift, (inner.outputs,))
    return LinearOp(inner.node, node, inner.weight, bias, inner.inputs, inner.outputs)
