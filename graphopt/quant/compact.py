"""float32 constants of a quantized graph  ==>  float16 constants, which the backend widens when it loads the graph

What stays in float beside integers is most of such a file. ONNX Runtime and OpenVINO fold a Cast of a constant at load,
so kernels and times stay what they were; what is lost, 11 bits of precision in place of 24, is far below the noise of
int8 and part of what the budget judges.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.ir import facts, provenance
from graphopt.ir import model as ir_model

MAKER = "compact"
_LEAST_ELEMENTS = 1024
_MOST_NOISE = 1e-6
_SCALED = frozenset({"QuantizeLinear", "DequantizeLinear"})


def compact(model: ir.Model) -> int:
    """Store large float32 constants of the main graph as float16 where that adds less than -60 dB of noise; in place.

    Returns:
        Bytes saved.
    """
    saved = 0
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < _LEAST_ELEMENTS:
            continue
        if value.is_graph_output() or value.is_graph_input() or not value.uses():
            continue
        if any(use.node.op_type in _SCALED for use in value.uses()):
            continue
        array = facts.constant(value)
        if array is None or not _fits(array):
            continue
        stored = ir_model.add_constant(graph, f"{name}/float16", ir.tensor(array.astype(np.float16)))
        cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT.value}, name=f"{name}/{MAKER}")
        provenance.record(cast, MAKER, ())
        del graph.initializers[name]
        widened = cast.outputs[0]
        widened.type, widened.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(array.shape)
        value.replace_all_uses_with(widened)
        widened.name = name
        graph.insert_before(graph[0], [cast])
        saved += array.nbytes // 2
    return saved


def _fits(array: np.ndarray) -> bool:
    """Whether rounding to float16 adds little noise, and overflows nowhere."""
    with np.errstate(over="ignore"):
        half = array.astype(np.float16).astype(np.float32)
    if not np.isfinite(half).all():
        return False
    signal = float(np.square(array, dtype=np.float64).sum())
    return float(np.square(half - array, dtype=np.float64).sum()) <= _MOST_NOISE * signal


__all__ = ["compact"]
