"""Operators that ONNX Runtime's CUDA provider computes in 16-bit float types.

Asked of the installed ONNX Runtime where it is built for CUDA, else from the table that it generates of its kernels
(``docs/OperatorKernels.md``, commit 001d12d of 2026). What is not among them would run on the CPU, with copies to and
fro.
"""

from __future__ import annotations

import functools
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
    """Operators by the name of the type: those of the installed CUDA provider, else those of the table."""
    return _installed() or {"float16": _BOTH | _FLOAT16, "bfloat16": _BOTH}


@functools.cache
def _installed() -> Mapping[str, frozenset[str]]:
    """What the installed ONNX Runtime registers for CUDA; empty where it is built without, or does not tell."""
    try:
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        registered = state.get_all_opkernel_def()
    except (ImportError, AttributeError):
        return {}
    found: dict[str, set[str]] = {"float16": set(), "bfloat16": set()}
    for kernel in registered:
        if kernel.domain == "" and kernel.provider == "CUDAExecutionProvider":
            types = {name for names in kernel.type_constraints.values() for name in names}
            for name, operators in found.items():
                if f"tensor({name})" in types:
                    operators.add(kernel.op_name)
    return {name: frozenset(operators) for name, operators in found.items()} if found["float16"] else {}
