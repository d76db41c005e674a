"""subnormal elements of float constants  ==>  0

Forms: weights of networks trained with weight decay, whose unused channels shrink until float32 holds them only
with lost precision (below 1.18e-38). Many processors take a slow path for such numbers; the one of this measurement
does not. Times as fast (``benchmarks/rewrites.py``, 2 threads, AMD EPYC with AVX-512): 1.00 for two 1x1
convolutions of 64 channels with a tenth of the weights subnormal, 1.00 with an eighth of the channels.

Refuses: a constant that anything but a sum or a product reads: a divisor, a bound, the argument of a logarithm may
be as small on purpose. Float16 constants are left alone: their subnormals (below 6.1e-5) are ordinary numbers to
the float32 units that compute with them.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.ir import facts
from graphopt.pipeline.base import Pass
from graphopt.rewrite import Application, Gate, Numerics, Refusal, RewriteLog, allow_all

_CHUNK = 1 << 20
_ARITHMETIC = frozenset({
    "Add", "Attention", "BatchNormalization", "Conv", "ConvTranspose", "Einsum", "GRU", "Gather", "Gemm",
    "GroupNormalization", "InstanceNormalization", "LSTM", "LayerNormalization", "MatMul", "Mul", "PRelu", "RNN",
    "RMSNormalization", "Sub", "Sum",
})  # fmt: skip
"""What reads a weight, and makes the same of zero as of almost zero."""
_TYPES = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


class Subnormals(Pass):
    """Subnormal elements of float32 and float64 constants become zero.

    After a run, ``zeroed`` holds the number of such elements for each constant that was changed.
    """

    name: ClassVar[str] = "subnormals"
    numerics: ClassVar[Numerics] = Numerics.REASSOCIATES

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.zeroed: dict[str, int] = {}

    def run(self, model: ir.Model, log: RewriteLog, gate: Gate = allow_all) -> bool:
        """One application for each constant that has any."""
        self.zeroed = {}
        for graph in (model.graph, *model.graph.subgraphs()):
            for value in graph.initializers.values():
                tensor = value.const_value
                if tensor is None or tensor.dtype not in _TYPES or not facts.is_constant(value):
                    continue
                content = tensor.numpy()
                count = count_subnormals(content)
                application = Application(self.name, value.name or "")
                if not count:
                    continue
                reader = next(
                    (use.node for use in value.uses() if not _adds_or_multiplies(use.node, use.idx)), None
                )
                if reader is not None or value.is_graph_output():
                    what = "it is an output" if reader is None else f"{reader.op_type} reads it"
                    log.refused.append(
                        Refusal(self.name, value.name or "", f"{what}: it may be so small on purpose")
                    )
                    continue
                if not gate(application):
                    continue
                # A new tensor: the old one may be shared with a copy of the model, or mapped from a file.
                value.const_value = ir.tensor(without_subnormals(content), name=value.name)
                self.zeroed[value.name or ""] = count
                log.applied.append(application)
        return bool(self.zeroed)


def _adds_or_multiplies(node: ir.Node, slot: int) -> bool:
    # The variance of a BatchNormalization is divided by.
    variance = node.op_type == "BatchNormalization" and slot == 4
    return not node.domain and node.op_type in _ARITHMETIC and not variance


def _mask(chunk: npt.NDArray[Any], tiny: float) -> npt.NDArray[np.bool_]:
    size = np.abs(chunk)
    found: npt.NDArray[np.bool_] = (size < tiny) & (size > 0)
    return found


def count_subnormals(content: npt.NDArray[Any]) -> int:
    """Number of subnormal elements, read a few MiB at a time."""
    flat = content.reshape(-1)
    tiny = float(np.finfo(content.dtype).tiny)
    return sum(
        int(np.count_nonzero(_mask(flat[start : start + _CHUNK], tiny)))
        for start in range(0, flat.size, _CHUNK)
    )


def without_subnormals(content: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy in which subnormal elements are zeros of the same sign."""
    copy = np.array(content)
    flat = copy.reshape(-1)
    tiny = float(np.finfo(content.dtype).tiny)
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        chunk[_mask(chunk, tiny)] *= 0
    return copy
