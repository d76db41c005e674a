"""Operators that ONNX Runtime's CUDA provider computes in 16-bit float types.

From the table that ONNX Runtime generates of its kernels (``docs/OperatorKernels.md``, commit 001d12d of 2026). What
is not here would run on the CPU, with copies to and fro.
"""

from __future__ import annotations

from collections.abc import Mapping

_BOTH = frozenset(
    {
        *(
            "Abs",
            "Add",
            "Attention",
            "AveragePool",
            "Cast",
            "Compress",
            "Concat",
            "Conv",
            "Div",
            "Dropout",
            "Erf",
        ),
        *("Exp", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm", "HardSigmoid"),
        *(
            "HardSwish",
            "Identity",
            "IsInf",
            "IsNaN",
            "LayerNormalization",
            "MatMul",
            "Max",
            "Min",
            "Mod",
            "Mul",
        ),
        *(
            "Neg",
            "Pow",
            "RMSNormalization",
            "ReduceSum",
            "Relu",
            "Reshape",
            "ReverseSequence",
            "RotaryEmbedding",
        ),
        *(
            "ScatterElements",
            "ScatterND",
            "Sigmoid",
            "Sign",
            "Slice",
            "Softmax",
            "Split",
            "Sqrt",
            "Squeeze",
            "Sub",
        ),
        *("Sum", "Tanh", "TensorScatter", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where"),
    }
)
_FLOAT16 = frozenset(
    {
        *("ArgMax", "ArgMin", "BatchNormalization", "Ceil", "Clip", "ConvTranspose", "Cos", "CumSum"),
        *("DepthToSpace", "DequantizeLinear", "Einsum", "Elu", "Equal", "Floor", "GRU", "GlobalAveragePool"),
        *(
            "GlobalMaxPool",
            "Greater",
            "GreaterOrEqual",
            "InstanceNormalization",
            "LRN",
            "LSTM",
            "LeakyRelu",
            "Less",
        ),
        *(
            "LessOrEqual",
            "Log",
            "LogSoftmax",
            "MaxPool",
            "OneHot",
            "PRelu",
            "Pad",
            "RNN",
            "Reciprocal",
            "ReduceL1",
        ),
        *(
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceProd",
        ),
        *(
            "ReduceSumSquare",
            "Resize",
            "Round",
            "Selu",
            "Shrink",
            "Sin",
            "Softplus",
            "Softsign",
            "SpaceToDepth",
        ),
        *("ThresholdedRelu", "TopK"),
    }
)


def kernels() -> Mapping[str, frozenset[str]]:
    """Operators by the name of the type."""
    return {"float16": _BOTH | _FLOAT16, "bfloat16": _BOTH}
