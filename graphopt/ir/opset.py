"""The opset and IR version of the internal form, as the installed ONNX Runtime takes them.

Every graph is run after every pass, so what counts is what runs. ONNX Runtime 1.31 takes opset 26 and IR
version 13, but its kernels for Attention end at opset 24 (later forms run as their expanded bodies), so 24 is
what graphs are brought to unless they need more. The last ONNX Runtime for Python 3.10, 1.23, takes opset 23
and IR version 11. Asked of the runtime itself, once a process."""

from __future__ import annotations

import functools
from dataclasses import dataclass

PREFERRED_OPSET = 24
NEWEST_OPSET = 26
NEWEST_IR_VERSION = 13
_OLDEST_OPSET = 21
_OLDEST_IR_VERSION = 10


@dataclass(frozen=True)
class Limits:
    """The newest versions that are used internally.

    Attributes:
        opset: Of the default domain, that graphs are brought to.
        newest_opset: The newest that runs, for graphs that need it.
        ir_version: Of the file format.
    """

    opset: int
    newest_opset: int
    ir_version: int


@functools.cache
def limits() -> Limits:
    """What the installed ONNX Runtime takes, at most what graphopt was tested with; that also where there is none."""
    try:
        import onnxruntime
    except ImportError:
        return Limits(PREFERRED_OPSET, NEWEST_OPSET, NEWEST_IR_VERSION)

    def takes(opset: int, ir_version: int) -> bool:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            onnxruntime.InferenceSession(
                _identity(opset, ir_version), options, providers=["CPUExecutionProvider"]
            )
        except Exception:  # onnxruntime raises many unrelated classes; whichever it is, the answer is no
            return False
        return True

    opsets = range(NEWEST_OPSET, _OLDEST_OPSET, -1)
    opset = next((version for version in opsets if takes(version, _OLDEST_IR_VERSION)), _OLDEST_OPSET)
    versions = range(NEWEST_IR_VERSION, _OLDEST_IR_VERSION, -1)
    ir_version = next((version for version in versions if takes(opset, version)), _OLDEST_IR_VERSION)
    return Limits(min(opset, PREFERRED_OPSET), opset, ir_version)


def _identity(opset: int, ir_version: int) -> bytes:
    from onnx import helper

    value = [helper.make_tensor_value_info(name, 1, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    return bytes(model.SerializeToString())
