"""The ONNX graph  ==>  Relax, by TVM's frontend but for products with constant weights, which are packed here."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx_ir as ir

from graphopt.ir.windows import SAME
from graphopt.targets.tvm.adapter import Constant, IRModule, ONNXGraphImporter, onnx_input, relax
from graphopt.targets.tvm.executable import DEPTHWISE, END_OF_NUMBER, product_of
from graphopt.targets.tvm.integers import is_depthwise, pads_depend_on_sizes, why_no_convolution
from graphopt.targets.tvm.lower import compute, quantized
from graphopt.targets.tvm.lower.compute import Array, Window, number_or_size
from graphopt.targets.tvm.lower.layouts import (
    BROADCAST,
    ChannelsLast,
    known_sizes,
    made_alike,
    operator_of,
    static_shape,
)
from graphopt.targets.tvm.lower.products import Product
from graphopt.targets.tvm.lower.schedule import parts_of
from graphopt.targets.tvm.lower.tiles import Tile, Vectors, depthwise_tile

if TYPE_CHECKING:
    import onnx

_PAIRWISE = {"Sum": relax.op.add, "Max": relax.op.maximum, "Min": relax.op.minimum}
"""The frontend copies all operands into one tensor first."""
_ON_INTEGERS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"}
)
_SOFTMAX = frozenset({"LogSoftmax", "Softmax"})
_LONGEST_PART = 512
_NO_AXIS = 10**9
"""Elements, which no axis has: how exporters say that a slice goes to the end."""
_WINDOWS = frozenset({"AveragePool", "MaxPool"})
_BYTES = 256
_FUSES_EPILOGUE = 4
"""TVM's kOutEWiseFusable: what comes behind, element by element, may join the kernel."""


@dataclass(frozen=True)
class Products:
    """The products of a module.

    Attributes:
        count: How often each is in it, in the order of the numbers in the names of kernels.
        nodes: By what their kernels are called (:func:`graphopt.targets.tvm.executable.product_of`), in order: name of
            the node, its operator, and whether it computes on integers.
    """

    count: Counter[Product]
    nodes: Mapping[str, Sequence[tuple[str, str, bool]]]


def import_graph(proto: onnx.ModelProto) -> IRModule:
    """The graph as a Relax module, products as TVM has them; inputs and outputs in the order of the graph."""
    return _Importer().from_onnx(proto.graph, _opset(proto))


def import_packed(
    proto: onnx.ModelProto, vectors: Vectors, tiles: Mapping[str, Tile]
) -> tuple[IRModule, Products]:
    """The graph as a Relax module whose products have packed weights.

    Args:
        vectors: Of the processor.
        tiles: Found by tuning, by :attr:`Product.key`.

    Returns:
        The module, and the products in it.
    """
    importer = _Packing(vectors, tiles)
    module = importer.from_onnx(proto.graph, _opset(proto))
    return module, Products(importer.products, importer.nodes)


def _opset(proto: onnx.ModelProto) -> int:
    return next(int(entry.version) for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))


def number_of(kernel: str) -> int | None:
    """Of the product that a kernel computes; None for what is no product."""
    found = re.search(rf"(\d+){END_OF_NUMBER}$", product_of(kernel))
    return None if found is None else int(found[1])


class _Importer(ONNXGraphImporter):  # type: ignore[misc]
    """TVM's frontend, with what it computes otherwise put right."""

    def __init__(self) -> None:
        super().__init__({}, {}, sanitize=True)

    def _check_for_unsupported_ops(self, graph: Any) -> None:
        """Done before, op by op (:mod:`graphopt.targets.tvm.operators`)."""

    def _convert_operator(self, op_name: str, inputs: Any, attrs: dict[str, Any], opset: int) -> Any:
        made = None
        if op_name in _WINDOWS:
            attrs = self._with_pads(inputs, attrs)
        elif op_name == "Resize":
            inputs = onnx_input(self._by_whole_numbers(list(inputs)))
        elif op_name in BROADCAST and not any(isinstance(value, relax.ShapeExpr) for value in inputs):
            inputs = onnx_input(made_alike(self.bb, list(inputs)))
        elif op_name == "Concat" and not any(isinstance(value, relax.ShapeExpr) for value in inputs):
            inputs = onnx_input(made_alike(self.bb, list(inputs), self._axis(inputs, attrs)))
        if op_name == "Gather" and self._is_of_bytes(inputs):
            made = relax.op.take(inputs[0], inputs[1], axis=0)
        elif op_name == "Gather" and not isinstance(inputs[1], Constant):
            self._keep_inside(inputs, attrs)
        elif op_name == "Cast" and isinstance(inputs[0], Constant):
            made = relax.const(inputs[0].value.numpy().astype(ir.DataType(attrs["to"]).numpy()))
        elif op_name == "IsInf":
            made = _one_infinity(inputs[0], attrs)
        elif op_name == "Slice":
            made = self._to_the_end(list(inputs))
        elif op_name in _ON_INTEGERS:
            made = self._on_integers(op_name, list(inputs), attrs)
        elif op_name in _PAIRWISE:
            made = reduce(lambda left, right: self.bb.normalize(_PAIRWISE[op_name](left, right)), inputs)
        else:
            made = self._product_of(op_name, list(inputs), attrs)
        if made is not None:
            return self.bb.normalize(made)
        return super()._convert_operator(op_name, inputs, attrs, opset)

    def _to_the_end(self, inputs: list[Any]) -> Any | None:
        """A Slice whose end lies beyond an axis of an open size, with that size for the end; None for any other.

        Of the smaller of both TVM would make room for the number, were it the size.
        """
        data, *numbers = (*inputs, None, None)[:5]
        shape: Any = getattr(self.bb.normalize(data).ty, "shape", None)
        known = [_constant(value) for value in numbers]
        if (
            isinstance(data, relax.ShapeExpr)
            or not hasattr(shape, "values")
            or known[0] is None
            or known[1] is None
        ):
            return None
        starts, ends = (array.tolist() for array in known[:2] if array is not None)
        if any(value is not None and array is None for value, array in zip(numbers, known, strict=True)):
            return None
        axes = list(range(len(starts))) if known[2] is None else known[2].tolist()
        steps = [1] * len(starts) if known[3] is None else known[3].tolist()
        sizes = [number_or_size(shape.values[axis]) for axis in axes]
        beyond = [
            not isinstance(size, int) and start >= 0 and end >= _NO_AXIS and step == 1
            for size, start, end, step in zip(sizes, starts, ends, steps, strict=True)
        ]
        if not any(beyond):
            return None
        ends = [size if is_beyond else end for size, end, is_beyond in zip(sizes, ends, beyond, strict=True)]
        kept = [place for place, start in enumerate(starts) if start or not beyond[place]]
        if not kept:
            return data
        return relax.op.strided_slice(
            data, *([numbers[place] for place in kept] for numbers in (axes, starts, ends, steps))
        )

    def _by_whole_numbers(self, inputs: list[Any]) -> list[Any]:
        """Scales of a Resize as integers where they are, for open sizes: else TVM computes these in float."""
        scales = _constant(inputs[2]) if len(inputs) > 2 else None
        sizes = known_sizes(self.bb.normalize(inputs[0]))
        if scales is None or not scales.size or sizes is None or None not in sizes or np.any(scales % 1):
            return inputs
        return [*inputs[:2], relax.ShapeExpr([int(scale) for scale in scales]), *inputs[3:]]

    def _axis(self, inputs: Any, attrs: Mapping[str, Any]) -> int:
        axis = int(attrs.get("axis", 0))
        rank = max(len(known_sizes(self.bb.normalize(value)) or ()) for value in inputs)
        return axis % rank if rank else axis

    def _with_pads(self, inputs: Any, attrs: dict[str, Any]) -> dict[str, Any]:
        """Pads that are to be found from the sizes, found: TVM rounds them otherwise, and needs all sizes."""
        shape = known_sizes(self.bb.normalize(inputs[0]))
        is_same = attrs.get("auto_pad", b"NOTSET").decode() in SAME
        if not is_same or shape is None or _pads_are_open(shape, attrs):
            return attrs
        kernel = attrs["kernel_shape"]
        ones = (1,) * len(kernel)
        pads = _pads(attrs, shape[2:], kernel, attrs.get("strides", ones), attrs.get("dilations", ones))
        return {**attrs, "auto_pad": b"NOTSET", "pads": pads}

    def _on_integers(self, op_name: str, inputs: list[Any], attrs: Mapping[str, Any]) -> Any:
        if op_name == "ConvInteger":
            data, weight = (known_sizes(self.bb.normalize(value)) or () for value in inputs[:2])
            strides, dilations = attrs.get("strides", (1, 1)), attrs.get("dilations", (1, 1))
            pads = _pads(attrs, data[2:], weight[2:], strides, dilations)
            return quantized.convolution(self.bb, inputs, attrs, pads)
        if op_name == "DynamicQuantizeLinear":
            return quantized.quantize_dynamically(self.bb, inputs)
        if op_name == "MatMulInteger":
            return quantized.product(self.bb, inputs)
        convert = quantized.quantize if op_name == "QuantizeLinear" else quantized.dequantize
        return convert(self.bb, inputs, attrs)

    def _product_of(self, op_name: str, inputs: list[Any], attrs: Mapping[str, Any]) -> Any | None:
        """A Conv, Gemm or MatMul otherwise than TVM has it; None for what stays."""
        del op_name, inputs, attrs
        return None

    def _is_of_bytes(self, inputs: Any) -> bool:
        """Whether a table has a place for every byte and is asked for bytes: no index is negative or too large."""
        table, made, least = _constant(inputs[0]), self._call_of(inputs[1]), 0
        if table is None or table.ndim != 1 or len(table) < _BYTES:
            return False
        offset = _constant(made.args[1]) if operator_of(made) == "relax.add" else None
        if offset is not None and offset.size == 1:
            made, least = self._call_of(made.args[0]), -int(offset.reshape(-1)[0])
        if operator_of(made) != "relax.astype":
            return False
        dtype = str(self.bb.normalize(made.args[0]).ty.dtype)
        return (dtype, least) in (("uint8", 0), ("int8", -128))

    def _call_of(self, value: Any) -> Any:
        """The call that a variable is bound to."""
        return self.bb.lookup_binding(value) if isinstance(value, relax.Var) else value

    def _keep_inside(self, inputs: Any, attrs: Mapping[str, Any]) -> None:
        """Indices that are computed, cut off at the ends: TVM reads foreign memory for one beyond them."""
        shape = static_shape(self.bb.normalize(inputs[0]))
        if shape is not None and not isinstance(inputs[0], relax.ShapeExpr):
            size = shape[int(attrs.get("axis", 0))]
            inputs[1] = self.bb.emit(relax.op.clip(inputs[1], -size, size - 1))


@dataclass(frozen=True)
class _Operands:
    """Operands of a product of integers.

    Attributes:
        weight: int8, around zero.
        is_signed: Whether the data are int8, which become uint8 by adding 128.
        zero: Zero point of the data as uint8; a tensor of one int32 where it is computed.
        middle: Zero points of the weights, one or one for each output.
    """

    weight: Array
    is_signed: bool
    zero: Any
    middle: Array


class _Packing(_Importer):
    """Products with constant weights over packed weights; images with their channels last."""

    def __init__(self, vectors: Vectors, tiles: Mapping[str, Tile]) -> None:
        super().__init__()
        self.vectors = vectors
        self.products: Counter[Product] = Counter()
        self.nodes: dict[str, list[tuple[str, str, bool]]] = {}
        self._node = ("", "")
        self._tiles = tiles
        self._layouts = ChannelsLast(self.bb)

    def _convert_operator(self, op_name: str, inputs: Any, attrs: dict[str, Any], opset: int) -> Any:
        def convert(given: list[Any]) -> Any:
            return super(_Packing, self)._convert_operator(op_name, onnx_input(given), attrs, opset)

        self._node = (attrs["tvm_custom"]["name"], op_name)
        if op_name in _SOFTMAX:
            made = self._softmax(list(inputs), attrs, convert)
            if made is not None:
                return made
        lower = {"Conv": self._conv, "ConvInteger": self._integer_conv}.get(op_name)
        made = None if lower is None else lower(list(inputs), attrs)
        if made is not None:
            return self._layouts.add(made)
        made = self._layouts.convert(op_name, list(inputs), attrs, convert)
        return convert(list(inputs)) if made is None else made

    def _softmax(
        self, inputs: list[Any], attrs: Mapping[str, Any], convert: Callable[[list[Any]], Any]
    ) -> Any | None:
        """Over lines that no good number of parts divides, filled up to one that does; None where it stays.

        Exponentials of minus infinity add nothing to a sum; without parts, the error of a long one is large.
        """
        sizes = known_sizes(self.bb.normalize(inputs[0]))
        if sizes is None or sizes[-1] is None or int(attrs.get("axis", -1)) % len(sizes) != len(sizes) - 1:
            return None
        length, rank, dtype = sizes[-1], len(sizes), str(inputs[0].ty.dtype)
        if length // parts_of(length, self.vectors) < _LONGEST_PART or dtype != "float32":
            return None
        more = -length % self.vectors.lanes
        widths = [0] * (2 * rank - 1) + [more]
        filled = self.bb.emit(relax.op.nn.pad(inputs[0], widths, "constant", -np.inf))
        made = self.bb.emit(convert([filled, *inputs[1:]]))
        return relax.op.strided_slice(made, [rank - 1], [0], [length])

    def _on_integers(self, op_name: str, inputs: list[Any], attrs: Mapping[str, Any]) -> Any:
        made = self._integer_matmul(inputs) if op_name == "MatMulInteger" else None
        return super()._on_integers(op_name, inputs, attrs) if made is None else made

    def _product_of(self, op_name: str, inputs: list[Any], attrs: Mapping[str, Any]) -> Any | None:
        lower = {"Gemm": self._gemm, "MatMul": self._matmul}.get(op_name)
        return None if lower is None else lower(inputs, attrs)

    def _conv(self, inputs: list[Any], attrs: Mapping[str, Any]) -> Any | None:
        """With its channels last; None where it has no loops here."""
        weight = _constant(inputs[1])
        shape = known_sizes(self.bb.normalize(inputs[0]))
        if weight is None or shape is None or len(shape) not in (3, 4) or weight.dtype != np.float32:
            return None
        if shape[1] is None or _pads_are_open(shape, attrs):
            return None
        weight, window = _window(weight, shape, attrs)
        made = self._convolved(self._layouts.of(inputs[0]), (shape[0], *shape[2:], shape[1]), weight, window)
        if len(inputs) < 3 or inputs[2] is None:
            return made
        return relax.op.add(self.bb.emit(made), inputs[2])

    def _integer_conv(self, inputs: list[Any], attrs: Mapping[str, Any]) -> Any | None:
        """int32 with its channels last; None where it has no loops here."""
        operands = self._bytes(inputs)
        shape = known_sizes(self.bb.normalize(inputs[0]))
        if operands is None or shape is None or np.any(operands.middle):
            return None
        weight, groups = operands.weight, int(attrs.get("group", 1))
        if why_no_convolution(shape, weight.shape, groups) or _pads_are_open(shape, attrs):
            return None
        sums = weight.astype(np.int64).reshape(len(weight), -1).sum(axis=1)
        weight, window = _window(weight, shape, attrs)
        data = self._as_unsigned(self._layouts.of(inputs[0]), operands)
        zero = operands.zero
        if not isinstance(zero, int) and any(window.pads):
            # What is not known yet cannot be part of the loops.
            expression = partial(compute.padded_by, window=window)
            data = self.bb.emit(self.bb.call_te(expression, data, zero, primfunc_name_hint="pad"))
            window = replace(window, pads=(0, 0, 0, 0))
        made = self._convolved(
            data, known_sizes(data) or (), weight, window, zero if isinstance(zero, int) else 0
        )
        # Sums of each channel by itself are whole numbers in float32.
        in_float = is_depthwise(shape[1], weight.shape, groups)
        return self._without_zero(relax.op.astype(made, "int32") if in_float else made, operands, sums)

    def _integer_matmul(self, inputs: list[Any]) -> Any | None:
        """int32; None where it has no loops here."""
        operands = self._bytes(inputs)
        if operands is None or operands.weight.ndim != 2:
            return None
        data = self._as_unsigned(inputs[0], operands)
        made = self._product(data, operands.weight)
        if made is None:
            return None
        # (x - a) (w - b), added up, is x w - a (w - b) - b x.
        sums = (operands.weight.astype(np.int64) - operands.middle).sum(axis=0)
        made = self._without_zero(made, operands, sums)
        if np.any(operands.middle):
            rows = relax.op.sum(relax.op.astype(data, "int32"), axis=-1, keepdims=True)
            less = relax.op.multiply(self.bb.emit(rows), relax.const(operands.middle))
            made = relax.op.subtract(self.bb.emit(made), self.bb.emit(less))
        return made

    def _bytes(self, inputs: list[Any]) -> _Operands | None:
        """The operands of a product of integers, for the instruction there is; None where it does not fit."""
        data, weight, zero, middle = (*inputs, None, None)[:4]
        data, numbers = self.bb.normalize(data), _constant(weight)
        if not self.vectors.dots or numbers is None:
            return None
        centre = np.iinfo(numbers.dtype).min + 128
        around = np.zeros(1, np.int32) if middle is None else _constant(middle)
        if around is None or around.ndim > 1:
            return None
        centred = (numbers.astype(np.int16) - centre).astype(np.int8)
        is_signed = str(data.ty.dtype) == "int8"
        point = self._zero_point(zero, 128 if is_signed else 0)
        around = around.astype(np.int32).reshape(-1) - centre
        return None if point is None else _Operands(centred, is_signed, point, around)

    def _zero_point(self, zero: Any, shift: int) -> Any | None:
        """A zero point so much higher: a number, or a tensor of one int32 where it is computed; None for several."""
        if zero is None:
            return shift
        known, sizes = _constant(zero), static_shape(self.bb.normalize(zero))
        if sizes is None or math.prod(sizes) != 1:
            return None
        if known is not None:
            return int(known.reshape(-1)[0]) + shift
        higher = relax.op.add(relax.op.astype(zero, "int32"), relax.const(shift, "int32"))
        return self.bb.emit(relax.op.reshape(higher, ()))

    def _as_unsigned(self, data: Any, operands: _Operands) -> Any:
        return quantized.as_unsigned(self.bb, data) if operands.is_signed else data

    def _without_zero(self, made: Any, operands: _Operands, sums: Array) -> Any:
        """Less what the zero point of the data adds to each sum."""
        zero, wide = operands.zero, sums.astype(np.int32)
        if isinstance(zero, int):
            return relax.op.subtract(self.bb.emit(made), relax.const(zero * wide)) if zero else made
        return relax.op.subtract(self.bb.emit(made), relax.op.multiply(zero, relax.const(wide)))

    def _convolved(
        self, data: Any, shape: tuple[int | None, ...], weight: Array, window: Window, zero: int = 0
    ) -> Any:
        if is_depthwise(shape[-1], weight.shape, window.groups):
            return self._depthwise(data, shape, weight, window, zero)
        if window.is_pointwise(weight.shape[2:]):
            return self._product(data, weight[:, :, 0, 0].T)
        return self._tiled(Product(shape, weight.shape, window, weight.dtype == np.int8), data, weight, zero)

    def _depthwise(
        self, data: Any, shape: Sequence[int | None], weight: Array, window: Window, zero: int
    ) -> Any:
        tile = depthwise_tile(window.lines(shape, weight.shape[2:])[1], len(weight), self.vectors)
        expression = partial(compute.depthwise, outputs=len(weight), window=window, tile=tile, zero=zero)
        packed = compute.pack_depthwise(weight.astype(np.float32), tile.width)
        return self._kernel(DEPTHWISE, expression, data, packed)

    def _matmul(self, inputs: list[Any], attrs: Mapping[str, Any]) -> Any:
        del attrs
        weight = _constant(inputs[1])
        return None if weight is None or weight.ndim != 2 else self._product(inputs[0], weight)

    def _gemm(self, inputs: list[Any], attrs: Mapping[str, Any]) -> Any:
        weight = _constant(inputs[1])
        if weight is None or attrs.get("transA", 0):
            return None
        weight = weight.T if attrs.get("transB", 0) else weight
        made = self._product(inputs[0], weight * np.asarray(attrs.get("alpha", 1.0), weight.dtype))
        if made is None or len(inputs) < 3 or inputs[2] is None:
            return made
        bias = inputs[2]
        if attrs.get("beta", 1.0) != 1.0:
            bias = relax.op.multiply(bias, relax.const(attrs["beta"], "float32"))
        return relax.op.add(self.bb.emit(made), bias)

    def _product(self, data: Any, weight: Array) -> Any:
        data = self.bb.normalize(data)
        shape = known_sizes(data)
        if shape is None or len(shape) < 2 or weight.dtype not in (np.float32, np.int8):
            return None
        if shape[-1] != len(weight):
            return None  # open, so that it may still turn out to be one
        return self._tiled(Product(shape, weight.shape, integer=weight.dtype == np.int8), data, weight)

    def _tiled(self, product: Product, data: Any, weight: Array, zero: int = 0) -> Any:
        tiles = product.tiles(self.vectors)
        tuned = self._tiles.get(product.key)
        tile = tuned if tuned in tiles else tiles[0]
        self.products[product] += 1
        number = list(self.products).index(product)
        name = f"{'product' if product.window is None else 'convolution'}_{number}{END_OF_NUMBER}"
        return self._kernel(name, product.expression(tile, zero), data, product.pack(weight, tile))

    def _kernel(self, name: str, expression: Any, data: Any, weight: Array) -> Any:
        node, op_type = self._node
        self.nodes.setdefault(name, []).append((node, op_type, op_type in _ON_INTEGERS))
        return self.bb.call_te(
            expression, data, relax.const(weight),
            primfunc_name_hint=name, primfunc_attrs={"op_pattern": _FUSES_EPILOGUE},
        )  # fmt: skip


def _window(weight: Array, shape: Sequence[int | None], attrs: Mapping[str, Any]) -> tuple[Array, Window]:
    """How a convolution of a tensor of this shape moves, and its weights as those of an image."""
    spatial = len(shape) - 2
    strides = tuple(attrs.get("strides", (1,) * spatial))
    dilations = tuple(attrs.get("dilations", (1,) * spatial))
    pads = _pads(attrs, shape[2:], weight.shape[2:], strides, dilations)
    form: Literal["image", "line", "column"] = "image"
    if spatial == 1:
        form, weight = "line", weight[:, :, None]
        pads, strides, dilations = (0, pads[0], 0, pads[1]), (1, *strides), (1, *dilations)
    elif shape[3] == weight.shape[3] == 1 and not (pads[1] or pads[3]):
        form, weight = "column", weight.transpose(0, 1, 3, 2)
        pads, strides, dilations = (0, pads[0], 0, pads[2]), (1, strides[0]), (1, dilations[0])
    groups = int(attrs.get("group", 1))
    return np.ascontiguousarray(weight), Window(strides, pads, dilations, groups, form)  # type: ignore[arg-type]


def _pads_are_open(shape: Sequence[int | None], attrs: Mapping[str, Any]) -> bool:
    mode = attrs.get("auto_pad", b"NOTSET").decode()
    return pads_depend_on_sizes(mode, shape[2:], attrs.get("strides", ()))


def _pads(
    attrs: Mapping[str, Any], sizes: Sequence[int | None], kernel: Sequence[int | None], strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[int, ...]:  # fmt: skip
    """All beginnings, then all ends; found from the sizes where ``auto_pad`` says so (ONNX specification, Conv)."""
    automatic = attrs.get("auto_pad", b"NOTSET")
    if automatic == b"NOTSET":
        return tuple(attrs.get("pads", (0,) * (2 * len(sizes))))
    if automatic == b"VALID":
        return (0,) * (2 * len(sizes))
    less, more = [], []
    for size, width, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        assert width is not None
        if stride == 1:
            size = 1  # the pads do not depend on it
        assert size is not None
        whole = max((-(-size // stride) - 1) * stride + dilation * (width - 1) + 1 - size, 0)
        less.append(whole // 2)
        more.append(whole - whole // 2)
    return (*less, *more) if automatic == b"SAME_UPPER" else (*more, *less)


def _one_infinity(data: Any, attrs: Mapping[str, Any]) -> Any | None:
    """IsInf of one sign; the frontend finds both."""
    negative, positive = attrs.get("detect_negative", 1), attrs.get("detect_positive", 1)
    if negative == positive:
        return None
    return relax.op.equal(data, relax.const(-np.inf if negative else np.inf, str(data.ty.dtype)))


def _constant(value: Any) -> Array | None:
    """The numbers of a Relax constant; None for anything else."""
    return value.value.numpy() if isinstance(value, Constant) else None
