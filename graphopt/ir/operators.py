"""Operators of ONNX's default domain by what they do; facts that several passes share."""

from __future__ import annotations

import onnx_ir as ir

# fmt: off
UNARY = frozenset((
    "Abs", "Cast", "Ceil", "Celu", "Clip", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish",
    "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid",
    "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
))
"""Each element of the output is a function of the same element of the first input."""

BROADCAST = frozenset((
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Or",
    "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
))
"""Each element of the output is a function of one element of each input; the shapes broadcast."""

SOFTMAX = frozenset(("LogSoftmax", "Softmax"))
"""Normalised over one axis; the shape stays."""

KEEPS_SHAPE = UNARY | SOFTMAX | {
    "BatchNormalization", "CumSum", "DequantizeLinear", "Dropout", "GroupNormalization", "Identity",
    "InstanceNormalization", "LRN", "LayerNormalization", "LpNormalization", "QuantizeLinear", "RMSNormalization",
    "RotaryEmbedding", "ScatterElements", "ScatterND", "Trilu",
}
"""The first output has the shape of the first input."""

REDUCTIONS = frozenset((
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
))
"""Over the axes that the second input holds."""

RANDOM = frozenset((
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
))
"""Two runs differ, and so do two nodes that look the same."""
# fmt: on


def is_random(node: ir.Node) -> bool:
    """Whether a node may give another result each time: one of :data:`RANDOM`, or a Dropout that trains or may."""
    trains = node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None
    return not node.domain and (node.op_type in RANDOM or trains)
