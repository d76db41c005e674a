"""Which nodes OpenVINO computes as ONNX says, and why not the others.

Found by running every operator case of ONNX's own suite and several hundred more through OpenVINO 2026.4 beside ONNX
Runtime (``tests/targets/test_openvino_*.py``). An operator that is not in the list was not seen to work, and is refused
before anything is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.errors import TargetError
from graphopt.ir import facts, windows
from graphopt.ir.views import is_made_of

_CHECKED = frozenset(
    {
        *(
            "Abs",
            "Acos",
            "Acosh",
            "Add",
            "AffineGrid",
            "And",
            "ArgMax",
            "ArgMin",
            "Asin",
            "Asinh",
            "Atan",
            "Atanh",
        ),
        *(
            "Attention",
            "AveragePool",
            "BatchNormalization",
            "BitwiseAnd",
            "BitwiseNot",
            "BitwiseOr",
            "BitwiseXor",
        ),
        *(
            "BlackmanWindow",
            "Cast",
            "CastLike",
            "Ceil",
            "Celu",
            "CenterCropPad",
            "Clip",
            "Col2Im",
            "Compress",
            "Concat",
        ),
        *("Constant", "ConstantOfShape", "Conv", "ConvInteger", "ConvTranspose", "Cos", "Cosh", "CumSum"),
        *(
            "DepthToSpace",
            "DequantizeLinear",
            "Div",
            "Dropout",
            "DynamicQuantizeLinear",
            "Einsum",
            "Elu",
            "Equal",
            "Erf",
        ),
        *(
            "Exp",
            "Expand",
            "EyeLike",
            "Flatten",
            "Floor",
            "GRU",
            "Gather",
            "GatherElements",
            "GatherND",
            "Gelu",
            "Gemm",
        ),
        *(
            "GlobalAveragePool",
            "GlobalMaxPool",
            "Greater",
            "GreaterOrEqual",
            "GridSample",
            "GroupNormalization",
        ),
        *("HammingWindow", "HannWindow", "HardSigmoid", "HardSwish", "Hardmax", "Identity", "If"),
        *(
            "InstanceNormalization",
            "IsInf",
            "IsNaN",
            "LRN",
            "LSTM",
            "LayerNormalization",
            "LeakyRelu",
            "Less",
        ),
        *(
            "LessOrEqual",
            "Log",
            "LogSoftmax",
            "Loop",
            "LpNormalization",
            "LpPool",
            "MatMul",
            "MatMulInteger",
            "Max",
        ),
        *(
            "MaxPool",
            "Mean",
            "MeanVarianceNormalization",
            "Min",
            "Mish",
            "Mod",
            "Mul",
            "Neg",
            "NonZero",
            "Not",
            "OneHot",
        ),
        *(
            "Or",
            "PRelu",
            "Pad",
            "Pow",
            "QLinearConv",
            "QLinearMatMul",
            "QuantizeLinear",
            "RMSNormalization",
            "RNN",
        ),
        *(
            "Range",
            "Reciprocal",
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceMax",
            "ReduceMean",
        ),
        *(
            "ReduceMin",
            "ReduceProd",
            "ReduceSum",
            "ReduceSumSquare",
            "Relu",
            "Reshape",
            "Resize",
            "ReverseSequence",
        ),
        *(
            "RotaryEmbedding",
            "Round",
            "Scan",
            "ScatterElements",
            "ScatterND",
            "Selu",
            "Shape",
            "Shrink",
            "Sigmoid",
        ),
        *(
            "Sign",
            "Sin",
            "Sinh",
            "Size",
            "Slice",
            "Softmax",
            "Softplus",
            "Softsign",
            "SpaceToDepth",
            "Split",
            "Sqrt",
        ),
        *(
            "Squeeze",
            "Sub",
            "Sum",
            "Swish",
            "Tan",
            "Tanh",
            "ThresholdedRelu",
            "Tile",
            "TopK",
            "Transpose",
            "Trilu",
        ),
        *("Unique", "Unsqueeze", "Where", "Xor"),
    }
)
_NEWEST_OPSET = 24
"""Operators that ONNX changed after this opset are read as what they were before: new attributes are ignored."""

_TYPES = frozenset(
    {
        *(ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BOOL, ir.DataType.INT32, ir.DataType.INT64),
        *(ir.DataType.INT8, ir.DataType.UINT8),
    }
)
"""Element types that it computes with; float64 becomes float32 in it, other integers become int32."""
_BYTES = frozenset({ir.DataType.INT8, ir.DataType.UINT8})
_INT32 = np.iinfo(np.int32)
_MOST_FACTOR = 1 << 16
_COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "IsInf", "Less", "LessOrEqual"})
_SATURATES = frozenset({"Slice", "Clip"})


def check(model: ir.Model) -> None:
    """Refuse a model that OpenVINO would reject, or compute otherwise than ONNX says.

    Raises:
        TargetError: Names the node and says why.
    """
    for value in model.graph.inputs:
        if value.dtype not in _TYPES or not isinstance(value.type, ir.TensorType):
            raise _refused(f"the input {value.name!r}", f"it is {_type_name(value)}")
    for node in model.graph.all_nodes():
        reason = why_not(node, model.opset_imports.get("", 0))
        if reason:
            raise _refused(f"{node.op_type} {node.name!r}", reason)


def why_not(node: ir.Node, opset: int) -> str:
    """Why OpenVINO cannot take a node; empty where it can."""
    if node.domain not in ("", "ai.onnx"):
        return f"OpenVINO has no operator {node.op_type} of {node.domain}"
    if node.op_type not in _CHECKED:
        return _REASONS.get(node.op_type, "OpenVINO has no such operator, or it was not checked")
    if opset > _NEWEST_OPSET and _changed_at(node.op_type, opset) > _NEWEST_OPSET:
        return f"OpenVINO does not know what it became after opset {_NEWEST_OPSET}"
    for value in node.outputs:
        if (
            value.dtype is not None
            and value.dtype not in _TYPES
            and (value.uses() or value.is_graph_output())
        ):
            return f"OpenVINO does not compute with {_type_name(value)}"
    reason = _wide_constant(node)
    condition = _CONDITIONS.get(node.op_type)
    return reason or ("" if condition is None else condition(node))


def _refused(what: str, reason: str) -> TargetError:
    return TargetError(
        f"OpenVINO cannot take the model: {what}: {reason}",
        hint="compile it for another target: --target ort-cpu",
    )


def _type_name(value: ir.Value) -> str:
    return "of an unknown type" if value.dtype is None else str(value.dtype.name).lower()


def _changed_at(op_type: str, opset: int) -> int:
    import onnx

    return int(onnx.defs.get_schema(op_type, opset).since_version)


def _has_input(node: ir.Node, index: int) -> bool:
    return len(node.inputs) > index and node.inputs[index] is not None


def _wide_constant(node: ir.Node) -> str:
    """OpenVINO computes integers in 32 bits; a bound that lies beyond is cut off to the same effect."""
    for value in node.inputs:
        if value is None or value.dtype is not ir.DataType.INT64 or not facts.is_constant(value):
            continue
        array = facts.constant(value)
        if array is None or array.size == 0:
            continue
        if int(array.min()) < _INT32.min or int(array.max()) > _INT32.max:
            return (
                "" if node.op_type in _SATURATES else f"the constant {value.name!r} does not fit into 32 bits"
            )
    return ""


def _integer_product(node: ir.Node) -> str:
    """Sizes and indices stay small; a product of other integers may need 64 bits, which OpenVINO has not."""
    reason = _byte_arithmetic(node)
    if reason or node.outputs[0].dtype is not ir.DataType.INT64:
        return reason
    data = [value for value in node.inputs if value is not None and not _is_size(value)]
    factors = [
        facts.constant(value) for value in node.inputs if value is not None and facts.is_constant(value)
    ]
    small = all(
        array is not None and (array.size == 0 or np.abs(array).max() <= _MOST_FACTOR) for array in factors
    )
    if not data or (len(data) == 1 and small and node.op_type == "Mul"):
        return ""
    return "its 64-bit product may exceed the 32 bits in which OpenVINO computes"


def _is_size(value: ir.Value) -> bool:
    """Whether a value is made of constants and shapes alone."""
    return is_made_of(
        value, lambda leaf: facts.is_constant(leaf) or facts.producer_op(leaf) in ("Shape", "Size")
    )


def _byte_arithmetic(node: ir.Node) -> str:
    return "OpenVINO saturates 8-bit sums and products" if node.outputs[0].dtype in _BYTES else ""


def _attention(node: ir.Node) -> str:
    if any(value is not None for value in node.inputs[4:]):
        return "OpenVINO computes attention over keys of earlier steps otherwise"
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return "OpenVINO gives only the first of its outputs as ONNX does"
    return ""


def _lstm(node: ir.Node) -> str:
    if _has_input(node, 7):
        return "OpenVINO ignores its peephole weights"
    if facts.attribute(node, "input_forget", 0):
        return "OpenVINO ignores that its input and forget gates are coupled"
    return ""


def _max_pool(node: ir.Node) -> str:
    if facts.attribute(node, "storage_order", 0) and len(node.outputs) > 1:
        return "OpenVINO counts indices by rows only"
    return _window_in_padding(node)


def _average_pool(node: ir.Node) -> str:
    counted = facts.attribute(node, "ceil_mode", 0) and facts.attribute(node, "count_include_pad", 0)
    if counted and windows.is_padded(node):
        return "OpenVINO counts its padding otherwise where ceil_mode adds a window"
    return ""


def _window_in_padding(node: ir.Node) -> str:
    """With ceil_mode OpenVINO keeps a last window that begins in the padding; ONNX (opset 19) leaves it out."""
    if not facts.attribute(node, "ceil_mode", 0):
        return ""
    kernel: Sequence[int] = facts.attribute(node, "kernel_shape", ())
    rank = len(kernel)
    strides, dilations = windows.steps(node, "strides", rank), windows.steps(node, "dilations", rank)
    pads = windows.pads(node)
    if pads is None:
        # By ``auto_pad`` SAME no window begins behind the data.
        return ""
    dims = facts.dims(node.inputs[0])
    for axis in range(rank):
        extent = dilations[axis] * (kernel[axis] - 1) + 1
        if strides[axis] + pads[rank + axis] <= extent:
            continue
        size = dims[axis + 2] if dims is not None and len(dims) == rank + 2 else None
        if not isinstance(size, int):
            return "with ceil_mode, OpenVINO may keep a window that begins in the padding"
        steps = -(-(size + pads[axis] + pads[rank + axis] - extent) // strides[axis])
        if steps * strides[axis] >= size + pads[axis]:
            return "with ceil_mode, OpenVINO keeps a window that begins in the padding"
    return ""


def _resize(node: ir.Node) -> str:
    if facts.attribute(node, "antialias", 0):
        return "OpenVINO ignores its antialiasing"
    if facts.attribute(node, "exclude_outside", 0):
        return "OpenVINO ignores exclude_outside"
    if facts.attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return "OpenVINO ignores keep_aspect_ratio_policy"
    mode = facts.attribute(node, "coordinate_transformation_mode", "half_pixel")
    if mode in ("tf_crop_and_resize", "half_pixel_symmetric"):
        return f"OpenVINO has no {mode}"
    return ""


def _tile(node: ir.Node) -> str:
    return "" if facts.is_constant(node.inputs[1]) else "OpenVINO repeats by constant numbers only"


def _pad(node: ir.Node) -> str:
    return "OpenVINO does not wrap" if facts.attribute(node, "mode", "constant") == "wrap" else ""


def _reduce_log_sum(node: ir.Node) -> str:
    if facts.attribute(node, "noop_with_empty_axes", 0) and not _has_input(node, 1):
        return "OpenVINO takes no logarithm where there are no axes"
    return ""


def _reduce_extreme(node: ir.Node) -> str:
    """Of infinities alone, or of nothing, OpenVINO's ReduceMax gives the lowest finite number (and so ReduceMin)."""
    if not facts.is_float(node.outputs[0]):
        return ""
    if 0 in (facts.dims(node.inputs[0]) or ()):
        return "OpenVINO gives no infinity for the extreme of nothing"
    if any(use.node.op_type in _COMPARISONS for use in node.outputs[0].uses()):
        return "OpenVINO gives no infinity for the extreme of infinities, and a node compares it"
    return ""


def _grid_sample(node: ir.Node) -> str:
    rank = facts.rank(node.inputs[0])
    return "" if rank == 4 else "OpenVINO samples images only (rank 4)"


def _training(node: ir.Node) -> str:
    return "OpenVINO does not train" if facts.attribute(node, "training_mode", 0) else ""


def _dropout(node: ir.Node) -> str:
    return "OpenVINO does not train" if _has_input(node, 2) else ""


_CONDITIONS: Mapping[str, Callable[[ir.Node], str]] = {
    "Add": _byte_arithmetic,
    "Attention": _attention,
    "AveragePool": _average_pool,
    "BatchNormalization": _training,
    "Dropout": _dropout,
    "GridSample": _grid_sample,
    "LSTM": _lstm,
    "MatMul": _integer_product,
    "MaxPool": _max_pool,
    "Mul": _integer_product,
    "Pad": _pad,
    "Pow": _integer_product,
    "ReduceLogSum": _reduce_log_sum,
    "ReduceMax": _reduce_extreme,
    "ReduceMin": _reduce_extreme,
    "ReduceProd": _integer_product,
    "Resize": _resize,
    "Sub": _byte_arithmetic,
    "Tile": _tile,
}

_REASONS: Mapping[str, str] = {
    "BitShift": "OpenVINO shifts negative numbers otherwise",
    "NonMaxSuppression": "OpenVINO suppresses boxes whose overlap equals the threshold",
    "RoiAlign": "ONNX Runtime has no kernel to compare with",
}
