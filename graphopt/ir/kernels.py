"""Where the kernels of ONNX Runtime's releases differ, asked of the installed one, once a process.

The oldest release that graphopt takes, 1.23, is also the newest for Python 3.10. What it lacks decides which opset a
model is raised to, and what a rewrite refuses; the numbers are checked besides. Where ONNX Runtime is not installed,
the answers are those of 1.31.
"""

from __future__ import annotations

import collections
import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.ir import opset
from graphopt.ir.check import schema_of

_NO_END = 2**31 - 1

_ENDED_IN_1_31 = {
    "GlobalLpPool": 21,
    "MaxRoiPool": 21,
    "Multinomial": 21,
    "RandomNormal": 21,
    "RandomNormalLike": 21,
    "RandomUniform": 21,
    "RandomUniformLike": 21,
    "RoiAlign": 21,
}


@functools.cache
def newest_opsets() -> Mapping[str, int]:
    """Operators whose CPU kernels end before the newest opset that ONNX Runtime takes, with the last that has one.

    That is how ONNX Runtime chooses a kernel: its first opset is that of the operator's schema, or its range is
    closed and holds it, and its types are among those of the schema (in 1.23 those of QuantizeLinear of opset 23
    are not, so that it never runs). Operators that are functions of others are left out.
    """
    try:
        from onnx import defs
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        registered = state.get_all_opkernel_def()
    except (ImportError, AttributeError):
        return _ENDED_IN_1_31
    kernels: dict[str, list[Any]] = collections.defaultdict(list)
    for kernel in registered:
        if kernel.domain == "" and kernel.provider == "CPUExecutionProvider":
            kernels[kernel.op_name].append(kernel)

    def last(op_type: str, version: int) -> int:
        """The newest opset up to ``version`` with a kernel; 0 where there is none."""
        while version > 0 and defs.has(op_type, version, ""):
            schema = defs.get_schema(op_type, version, "")
            if any(_runs(kernel, schema) for kernel in kernels[op_type]):
                return version
            version = schema.since_version - 1
        return 0

    newest = opset.limits().newest_opset
    found: dict[str, int] = {}
    for op_type in list(kernels):
        known = schema_of("", op_type, newest)
        if known is None or known.deprecated:
            continue
        schema: Any = defs.get_schema(op_type, newest, "")
        if schema.has_function or schema.has_context_dependent_function:
            continue
        version = last(op_type, newest)
        if 0 < version < newest:
            found[op_type] = version
    return found


def _runs(kernel: Any, schema: Any) -> bool:
    start, end = kernel.version_range
    if start != schema.since_version and not start <= schema.since_version <= end < _NO_END:
        return False
    allowed = {item.type_param_str: frozenset(item.allowed_type_strs) for item in schema.type_constraints}
    return all(
        name not in allowed or allowed[name].intersection(types)
        for name, types in kernel.type_constraints.items()
    )


@functools.cache
def preferred_opsets() -> Mapping[str, int]:
    """:func:`newest_opsets`, and operators that run at a newer opset as well, but not as good.

    Up to ONNX Runtime 1.24 the fusions around Conv and the blocked layout know nothing of its schema of opset 22.
    DequantizeLinear stays where QuantizeLinear has to, so that a rewrite can pair it with one.
    """
    known = dict(newest_opsets())
    if "QuantizeLinear" in known:
        known["DequantizeLinear"] = known["QuantizeLinear"]
    if not _fuses_convolutions(opset.limits().opset):
        known["Conv"] = 21
    return known


def _fuses_convolutions(version: int) -> bool:
    try:
        import onnx
        import onnxruntime
    except ImportError:
        return True
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        steps = (("Conv", ["x", "w"], ["c"]), ("Relu", ["c"], ["y"]))
        nodes = [onnx.helper.make_node(*step) for step in steps]
        constants = {"w": np.ones((1, 1, 1, 1), np.float32)}
        model = _model(nodes, {"x": (1, 1, 1, 1)}, constants, version)
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        optimised = onnx.load(options.optimized_model_filepath)
    return all(node.op_type != "Relu" for node in optimised.graph.node)


@functools.cache
def attention_zeroes_closed_rows() -> bool:
    """Whether Attention makes zero of a row whose mask is -inf throughout; up to ONNX Runtime 1.27 it makes NaN."""
    from onnx import helper

    constants = {"m": np.full((1, 1), -np.inf, np.float32)}
    node = helper.make_node("Attention", ["x", "x", "x", "m"], ["y"])
    result = _run([node], {"x": (1, 1, 1, 1)}, constants)
    return result is None or bool(np.all(result == 0))


@functools.cache
def average_pool_counts_all_padding() -> bool:
    """Whether AveragePool of opset 19 and newer counts all padding where ``count_include_pad`` says so.

    Up to ONNX Runtime 1.24 it ends the windows of the first of two axes by the padding at the start of the second.
    """
    from onnx import helper

    node = helper.make_node(
        "AveragePool", ["x"], ["y"], kernel_shape=[2, 1], pads=[0, 0, 1, 0], count_include_pad=1
    )
    result = _run([node], {"x": (1, 1, 2, 1)}, {})
    return result is None or bool(np.allclose(result.reshape(-1), [1, 0.5]))


def _run(
    nodes: Sequence[Any], inputs: Mapping[str, tuple[int, ...]], constants: Mapping[str, Any]
) -> Any | None:
    """The output ``y`` of ``nodes`` for inputs of ones; None where ONNX Runtime is missing or does not run them."""
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    model = _model(nodes, inputs, constants, opset.limits().opset)
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return session.run(None, {name: np.ones(shape, np.float32) for name, shape in inputs.items()})[0]
    except Exception:  # onnxruntime raises many unrelated classes; where it has no kernel, none is wrong
        return None


def _model(
    nodes: Sequence[Any], inputs: Mapping[str, tuple[int, ...]], constants: Mapping[str, Any], version: int
) -> bytes:
    from onnx import helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info(name, 1, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", version)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=opset.limits().ir_version)
    return bytes(model.SerializeToString())
