"""Images with their channels last, for as long as what computes on them can have them so.

ONNX has the channels of an image before its rows. A tensor that a convolution makes has a *twin* here with its channels
last, and operators that do not care for the order are computed on twins; the tensor itself is made of its twin where
something wants it as ONNX has it, and else left out as unused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from graphopt.targets.tvm.adapter import Analyzer, Constant, relax
from graphopt.targets.tvm.lower.compute import number_or_size

Convert = Callable[[list[Any]], Any]
"""An operator, as TVM's frontend converts it, of other inputs."""

_ELEMENTWISE = frozenset((
    "Abs", "Cast", "Ceil", "Clip", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid",
    "HardSwish", "Identity", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu",
    "Shrink", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu",
))  # fmt: skip
"""Of their first input; the others are numbers."""
BROADCAST = frozenset((
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mul",
    "Or", "PRelu", "Pow", "Sub", "Sum", "Where",
))  # fmt: skip


class ChannelsLast:
    """The twins of a graph's tensors.

    Args:
        builder: Of the Relax function.
    """

    def __init__(self, builder: Any) -> None:
        self._builder = builder
        self._twins: dict[Any, Any] = {}
        self._rules: Mapping[str, Callable[[list[Any], Mapping[str, Any], Convert], Any | None]] = {
            **dict.fromkeys(_ELEMENTWISE, self._elementwise),
            **dict.fromkeys(BROADCAST, self._broadcast),
            "AveragePool": partial(self._pool, relax.op.nn.avg_pool2d),
            "BatchNormalization": self._batch_normalization,
            "Concat": self._concat,
            "DequantizeLinear": self._quantize,
            "Flatten": self._reshape,
            "Gather": self._gather,
            "GlobalAveragePool": partial(self._whole, relax.op.mean),
            "GlobalMaxPool": partial(self._whole, relax.op.max),
            "MaxPool": partial(self._pool, relax.op.nn.max_pool2d),
            "QuantizeLinear": self._quantize,
            "ReduceMean": self._reduce_mean,
            "Reshape": self._reshape,
            "Resize": self._resize,
            "Slice": self._slice,
            "Softmax": self._softmax,
            "Split": self._split,
            "Squeeze": self._reshape,
            "Transpose": self._transpose,
        }

    def add(self, twin: Any) -> Any:
        """The tensor of a twin."""
        made = self._builder.emit(twin)
        rank = len(made.ty.shape)
        tensor = self._builder.emit(relax.op.permute_dims(made, (0, rank - 1, *range(1, rank - 1))))
        self._twins[tensor] = made
        return tensor

    def of(self, tensor: Any) -> Any:
        """The twin of a tensor of at least three axes, made where it has none."""
        if tensor not in self._twins:
            rank = len(self._builder.normalize(tensor).ty.shape)
            self._twins[tensor] = self._builder.emit(relax.op.permute_dims(tensor, (0, *range(2, rank), 1)))
        return self._twins[tensor]

    def convert(
        self, op_name: str, inputs: list[Any], attrs: Mapping[str, Any], convert: Convert
    ) -> Any | None:
        """What an operator makes, computed on twins; None where it needs tensors as they are."""
        rule = self._rules.get(op_name)
        if rule is None or not any(value in self._twins for value in inputs if value is not None):
            return None
        return rule(inputs, attrs, convert)

    def _elementwise(self, inputs: list[Any], attrs: Mapping[str, Any], convert: Convert) -> Any | None:
        twin = self._twins.get(inputs[0])
        return None if twin is None else self.add(convert([twin, *inputs[1:]]))

    def _quantize(self, inputs: list[Any], attrs: Mapping[str, Any], convert: Convert) -> Any | None:
        """With one scale."""
        sizes = static_shape(self._builder.normalize(inputs[1]))
        return self._elementwise(inputs, attrs, convert) if sizes in ((), (1,)) else None

    def _broadcast(self, inputs: list[Any], attrs: Mapping[str, Any], convert: Convert) -> Any | None:
        del attrs
        rank = max(len(self._twins[value].ty.shape) for value in inputs if value in self._twins)
        twins = [self._broadcastable(value, rank) for value in inputs]
        return None if any(twin is None for twin in twins) else self.add(convert(twins))

    def _broadcastable(self, value: Any, rank: int) -> Any | None:
        """What is combined with twins of so many axes."""
        if isinstance(value, Constant):
            array = value.value.numpy()
            if array.ndim > rank:
                return None
            if array.size == 1:
                return value
            return relax.const(
                np.moveaxis(array.reshape((1,) * (rank - array.ndim) + array.shape), 1, -1).copy()
            )
        shape = getattr(self._builder.normalize(value).ty, "shape", None)
        if shape is None or isinstance(value, relax.ShapeExpr) or len(shape) not in (0, rank):
            return None
        return self.of(value) if len(shape) else value

    def _concat(self, inputs: list[Any], attrs: Mapping[str, Any], convert: Convert) -> Any | None:
        del convert
        known = [value for value in inputs if value in self._twins]
        if 2 * len(known) < len(inputs) or any(isinstance(value, relax.ShapeExpr) for value in inputs):
            return None
        rank = len(known[0].ty.shape)
        axis = _place(int(attrs.get("axis", 0)), rank)
        twins = made_alike(self._builder, [self.of(value) for value in inputs], axis)
        return self.add(relax.op.concat(twins, axis))

    def _gather(self, inputs: list[Any], attrs: Mapping[str, Any], convert: Convert) -> Any | None:
        """From a list of numbers."""
        table, place = inputs
        if not isinstance(table, Constant) or len(table.ty.shape) != 1 or place not in self._twins:
            return None
        return self.add(convert([table, self._twins[place]]))

    def _whole(self, reduce: Any, inputs: list[Any], attrs: Mapping[str, Any], convert: Convert) -> Any:
        """One number of each channel."""
        del attrs, convert
        twin = self._twins[inputs[0]]
        return self.add(reduce(twin, list(range(1, len(twin.ty.shape) - 1)), keepdims=True))

    def _reduce_mean(self, inputs: list[Any], attrs: Mapping[str, Any], convert: Convert) -> Any | None:
        del convert
        twin = self._twins.get(inputs[0])
        axes = attrs.get("axes")
        if len(inputs) > 1 and isinstance(inputs[1], Constant):
            axes = inputs[1].value.numpy().tolist()
        if twin is None or not axes or (len(inputs) > 1 and not isinstance(inputs[1], Constant | type(None))):
            return None
        rank = len(twin.ty.shape)
        places = sorted(_place(int(axis), rank) for axis in axes)
        if attrs.get("keepdims", 1):
            return self.add(relax.op.mean(twin, places, keepdims=True))
        # Without the rows and columns there is nothing left to be in another order.
        return self._builder.emit(relax.op.mean(twin, places)) if places == list(range(1, rank - 1)) else None

    def _batch_normalization(
        self, inputs: list[Any], attrs: Mapping[str, Any], convert: Convert
    ) -> Any | None:
        """With statistics that are known: one factor and one term for each channel, as ONNX Runtime has it."""
        del convert
        numbers = [value.value.numpy() for value in inputs[1:] if isinstance(value, Constant)]
        if len(numbers) != 4 or any(array.dtype != np.float32 for array in numbers):
            return None
        scale, bias, mean, variance = numbers
        factor = scale / np.sqrt(variance + np.float32(attrs.get("epsilon", 1e-5)))
        scaled = self._builder.emit(relax.op.multiply(self._twins[inputs[0]], relax.const(factor)))
        return self.add(relax.op.add(scaled, relax.const(bias - mean * factor)))

    def _resize(self, inputs: list[Any], attrs: Mapping[str, Any], convert: Convert) -> Any | None:
        del attrs
        call = convert(list(inputs))
        if operator_of(call) != "relax.image.resize2d":
            return None
        how = call.attrs
        return self.add(
            relax.op.image.resize2d(
                self._twins[inputs[0]],
                call.args[1],
                tuple(float(number) for number in how.roi),
                "NHWC",
                how.method,
                how.coordinate_transformation_mode,
                how.rounding_method,
                how.cubic_alpha,
                how.cubic_exclude,
                how.extrapolation_value,
            )
        )

    def _split(self, inputs: list[Any], attrs: Mapping[str, Any], convert: Convert) -> Any | None:
        del attrs
        call, twin = convert(list(inputs)), self._twins[inputs[0]]
        if operator_of(call) != "relax.split" or not hasattr(call.attrs.indices_or_sections, "__iter__"):
            return None
        places = [int(place) for place in call.attrs.indices_or_sections]
        if not places:
            return None
        axis = _place(int(call.attrs.axis), len(twin.ty.shape))
        parts = self._builder.emit(relax.op.split(twin, places, axis))
        return relax.Tuple(
            [self.add(relax.TupleGetItem(parts, place)) for place in range(len(parts.ty.fields))]
        )

    def _slice(self, inputs: list[Any], attrs: Mapping[str, Any], convert: Convert) -> Any | None:
        del attrs
        call, twin = convert(list(inputs)), self._twins.get(inputs[0])
        if twin is None or operator_of(call) != "relax.strided_slice":
            return None
        rank = len(twin.ty.shape)
        axes = [_place(int(axis), rank) for axis in call.args[1]]
        return self.add(relax.op.strided_slice(twin, axes, *call.args[2:]))

    def _softmax(self, inputs: list[Any], attrs: Mapping[str, Any], convert: Convert) -> Any | None:
        del attrs
        call, twin = convert(list(inputs)), self._twins[inputs[0]]
        # Before opset 13 it is over all axes behind one, which the frontend counts through first.
        if operator_of(call) != "relax.nn.softmax" or not call.args[0].same_as(inputs[0]):
            return None
        return self.add(relax.op.nn.softmax(twin, _place(int(call.attrs.axis), len(twin.ty.shape))))

    def _pool(self, pool: Any, inputs: list[Any], attrs: Mapping[str, Any], convert: Convert) -> Any | None:
        del convert
        twin, kernel = self._twins[inputs[0]], attrs["kernel_shape"]
        if len(kernel) != 2 or attrs.get("auto_pad", b"NOTSET") != b"NOTSET":
            return None
        return self.add(
            pool(
                twin,
                kernel,
                attrs.get("strides", (1, 1)),
                attrs.get("pads", (0, 0, 0, 0)),
                attrs.get("dilations", (1, 1)),
                bool(attrs.get("ceil_mode", 0)),
                bool(attrs.get("count_include_pad", 0)),
                layout="NHWC",
            )
        )

    def _transpose(self, inputs: list[Any], attrs: Mapping[str, Any], convert: Convert) -> Any:
        del convert
        twin = self._twins[inputs[0]]
        rank = len(twin.ty.shape)
        perm = attrs.get("perm", tuple(reversed(range(rank))))
        order = [_place(int(axis), rank) for axis in perm]
        return twin if order == list(range(rank)) else self._builder.emit(relax.op.permute_dims(twin, order))

    def _reshape(self, inputs: list[Any], attrs: Mapping[str, Any], convert: Convert) -> Any | None:
        """Where batch and channels stay, and the places between are counted through; or of an image of one point."""
        del attrs
        twin = self._twins.get(inputs[0])
        before = static_shape(inputs[0])
        after = static_shape(self._builder.normalize(convert(list(inputs))))
        if twin is None or before is None or after is None:
            return None
        if len(after) > 2 and before[:2] == after[:2]:
            return self.add(relax.op.reshape(twin, (after[0], *after[2:], after[1])))
        # The numbers of one point are in the same order either way.
        is_point = all(size == 1 for size in before[2:])
        return self._builder.emit(relax.op.reshape(twin, after)) if is_point else None


def made_alike(builder: Any, values: list[Any], axis: int | None = None) -> list[Any]:
    """Operands of one operator, with open sizes that have to be the same known to be the same.

    Sizes that were divided and multiplied on different ways are different expressions for TVM, which then gives up on
    the shape of what is made of them. That they are the same is checked when the model runs.

    Args:
        axis: Along which sizes may differ.
    """
    shapes = [_shape_of(builder, value) for value in values]
    rank = max((len(shape) for shape in shapes if shape is not None), default=0)
    whole = [place for place, shape in enumerate(shapes) if shape is not None and len(shape) == rank]
    cast = set()
    for at in range(rank):
        sizes = [shapes[place][at] for place in whole]  # type: ignore[index]
        wanted = next((size for size in sizes if isinstance(size, int) and size > 1), None)
        wanted = next((size for size in sizes if not isinstance(size, int)), 1) if wanted is None else wanted
        if at == axis or all(isinstance(size, int) for size in sizes):
            continue
        for place, size in zip(whole, sizes, strict=True):
            if not isinstance(size, int) and not Analyzer().can_prove_equal(size, wanted):
                shapes[place][at] = wanted  # type: ignore[index]
                cast.add(place)
    return [
        builder.match_cast(value, relax.TensorType(shapes[place], value.ty.dtype)) if place in cast else value
        for place, value in enumerate(values)
    ]


def _shape_of(builder: Any, value: Any) -> list[Any] | None:
    if not isinstance(value, relax.Expr) or isinstance(value, relax.ShapeExpr):
        return None
    shape: Any = getattr(builder.normalize(value).ty, "shape", None)
    return None if not hasattr(shape, "values") else [number_or_size(size) for size in shape.values]


def known_sizes(value: Any) -> tuple[int | None, ...] | None:
    """The shape of a tensor, None for each size that is open; None where its axes are not known."""
    shape = getattr(value.ty, "shape", None)
    if shape is None or not hasattr(shape, "values"):
        return None
    sizes = map(number_or_size, shape.values)
    return tuple(size if isinstance(size, int) else None for size in sizes)


def static_shape(value: Any) -> tuple[int, ...] | None:
    """The shape of a tensor whose sizes are all known."""
    sizes = known_sizes(value)
    return None if sizes is None or None in sizes else sizes  # type: ignore[return-value]


def operator_of(expression: Any) -> str:
    """Name of the Relax operator that an expression calls; empty for what is none."""
    return getattr(getattr(expression, "op", None), "name", "")


def _place(axis: int, rank: int) -> int:
    """Where an axis of a tensor is in its twin."""
    axis %= rank
    return axis if axis == 0 else (rank - 1 if axis == 1 else axis - 1)
