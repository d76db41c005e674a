"""Which nodes TVM computes as ONNX says, and why not the others; told before anything is built.

Found by running the operator cases of ONNX's own suite through TVM 0.27 (``tests/targets/test_tvm_operators.py``). An
operator that is not in the list was not seen to work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from graphopt.errors import TargetError, listed
from graphopt.ir import facts
from graphopt.targets.tvm.integers import pads_are_open

_MOST_NAMED = 5

CHECKED = frozenset((
    "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh",
    "AveragePool", "BatchNormalization", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor",
    "Cast", "CastLike", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv", "ConvInteger", "ConvTranspose",
    "Cos", "Cosh", "CumSum", "DepthToSpace", "DequantizeLinear", "Div", "Dropout",
    "DynamicQuantizeLinear", "Einsum", "Elu", "Equal", "Erf", "Exp",
    "Expand", "EyeLike", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm",
    "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "GridSample", "GroupNormalization",
    "HardSigmoid", "HardSwish", "Hardmax", "Identity", "If", "InstanceNormalization", "IsInf", "IsNaN", "LRN",
    "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "MatMul", "MatMulInteger", "Max",
    "MaxPool", "Mean",  "Min", "Mish", "Mod", "Mul", "Neg", "Not", 
    "Or", "PRelu", "Pad", "Pow", "QuantizeLinear", "RMSNormalization", "Range", "Reciprocal", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "Relu", "Reshape", "Resize", "Round", "ScatterElements", "ScatterND", "Selu", "Shape",
    "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Size", "Slice", "Softmax", "Softplus", "Softsign",
    "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tan", "Tanh", "ThresholdedRelu", "Tile",
    "TopK", "Transpose", "Trilu", "Unsqueeze", "Upsample", "Where", "Xor",
))  # fmt: skip


def check(model: ir.Model) -> None:
    """Nothing, where every node can be lowered.

    Raises:
        TargetError: Names the nodes that cannot, with the reason.
    """
    unknown = [value.name or "" for value in model.graph.inputs if value.shape is None]
    if unknown:
        raise TargetError(
            f"TVM needs the number of axes of each input, and that of {listed(unknown)} is not known",
            hint="fix them with --input-shape NAME:SIZE,SIZE,...",
        )
    found = []
    for node in model.graph.all_nodes():
        reason = why_not(node)
        if reason:
            found.append(f"{node.op_type} {node.name!r}: {reason}")
    if found:
        more = f", and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
        raise TargetError(
            f"TVM cannot take the model: {'; '.join(found[:_MOST_NAMED])}{more}",
            hint="compile it for another target: --target ort-cpu",
        )


def why_not(node: ir.Node) -> str:
    """Why a node cannot be lowered; empty where it can."""
    if node.domain not in ("", "ai.onnx"):
        return f"it is of the domain {node.domain}"
    if node.op_type not in CHECKED:
        if node.op_type in _IN_STEPS and facts.static_dims(node.inputs[0]) is None:
            return "the number of its steps, or of its rows, is open (--input-shape fixes it)"
        return "TVM has no such operator"
    for value in (*node.inputs[:1], *node.outputs):
        dims = () if value is None else facts.dims(value) or ()
        if 0 in dims:
            return f"{value.name!r} is empty"  # type: ignore[union-attr]
    if node.op_type in _ONE_OUTPUT and any(_is_read(output) for output in node.outputs[1:]):
        return "TVM gives its first output only"
    condition = _CONDITIONS.get(node.op_type)
    return "" if condition is None else condition(node)


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _dropout(node: ir.Node) -> str:
    trains = len(node.inputs) > 2 and node.inputs[2] is not None
    return "TVM does not train" if trains else ""


def _float64(node: ir.Node) -> str:
    return "TVM has no erf of float64" if node.outputs[0].dtype == ir.DataType.DOUBLE else ""


def _bit_shift(node: ir.Node) -> str:
    unsigned = {ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64}
    return "" if node.outputs[0].dtype in unsigned else "TVM shifts signed numbers otherwise"


def _batch_normalization(node: ir.Node) -> str:
    return "TVM does not train" if facts.attribute(node, "training_mode", 0) else ""


def _conv_transpose(node: ir.Node) -> str:
    return "TVM ignores its output_shape" if facts.attribute(node, "output_shape", None) else ""


def _mod(node: ir.Node) -> str:
    return "TVM has other signs of zero and other infinities" if facts.is_float(node.outputs[0]) else ""


def _resize(node: ir.Node) -> str:
    if facts.attribute(node, "antialias", 0):
        return "TVM ignores its antialiasing"
    if facts.attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return "TVM ignores keep_aspect_ratio_policy"
    before, after = facts.dims(node.inputs[0]), facts.dims(node.outputs[0])
    if before is None or after is None or before[:2] != after[:2]:
        return "TVM resizes the axes behind the second only"
    scales = facts.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if scales is None or not scales.size:
        return ""
    if len(scales) != len(before):
        return "TVM takes scales of all axes"
    exact = all(
        float(scale).is_integer() or (old is not None and new == old * float(scale))
        for old, new, scale in zip(before, after, scales, strict=True)
    )
    return "" if exact else "TVM takes the scales from the sizes"


def _pool(node: ir.Node) -> str:
    return "its pads depend on sizes that are open" if pads_are_open(node) else ""


def _scatter_elements(node: ir.Node) -> str:
    data, indices = facts.dims(node.inputs[0]), facts.dims(node.inputs[1])
    if data is None or indices is None:
        return "its shapes are not known"
    axis = facts.attribute(node, "axis", 0) % len(data)
    others = [pair for place, pair in enumerate(zip(data, indices, strict=True)) if place != axis]
    alike = all(isinstance(size, int) and size == given for size, given in others)
    return "" if alike else "TVM scatters otherwise where the indices are fewer than the data"


def _is_inf(node: ir.Node) -> str:
    none = not (facts.attribute(node, "detect_negative", 1) or facts.attribute(node, "detect_positive", 1))
    return "it looks for no infinity" if none else ""


def _space_to_depth(node: ir.Node) -> str:
    return "TVM orders depth first" if facts.attribute(node, "mode", "DCR") != "DCR" else ""


def _quantized(node: ir.Node) -> str:
    """Q and DQ of integers of 8 and 16 bits (DQ: and of 32), with one scale or one for each place along an axis."""
    integers = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    numbers = node.inputs[0] if node.op_type == "QuantizeLinear" else node.outputs[0]
    known = _INTEGERS if node.op_type == "QuantizeLinear" else _INTEGERS | {ir.DataType.INT32}
    if (
        integers is None
        or integers.dtype not in known
        or numbers is None
        or numbers.dtype != ir.DataType.FLOAT
    ):
        return "it is not between float32 and integers of 8 or 16 bits"
    if facts.attribute(node, "block_size", 0):
        return "its scales are those of blocks"
    rank = facts.rank(node.inputs[1])
    if rank is None or rank > 1:
        return "its scales do not lie along one axis"
    return ""


def _conv_integer(node: ir.Node) -> str:
    weight, data = facts.static_dims(node.inputs[1]), facts.dims(node.inputs[0])
    if weight is None or data is None or data[1] is None:
        return "its sizes are not known"
    if pads_are_open(node):
        return "its pads depend on sizes that are open"
    return "" if len(weight) in (3, 4) else "it is neither of an image nor of a line"


_INTEGERS = {ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.UINT16, ir.DataType.INT16}
_IN_STEPS = frozenset({"GRU", "LSTM", "RNN"})
"""What legalisation makes steps of, where it can."""
_ONE_OUTPUT = frozenset({"Dropout", "LayerNormalization", "MaxPool", "RMSNormalization"})
_CONDITIONS: Mapping[str, Callable[[ir.Node], str]] = {
    "AveragePool": _pool,
    "ConvInteger": _conv_integer,
    "DequantizeLinear": _quantized,
    "Dropout": _dropout,
    "IsInf": _is_inf,
    "MaxPool": _pool,
    "ScatterElements": _scatter_elements,
    "BatchNormalization": _batch_normalization,
    "BitShift": _bit_shift,
    "ConvTranspose": _conv_transpose,
    "Erf": _float64,
    "Gelu": _float64,
    "Mod": _mod,
    "QuantizeLinear": _quantized,
    "Resize": _resize,
    "SpaceToDepth": _space_to_depth,
}
