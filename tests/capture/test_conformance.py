"""Every operator case of ONNX's own conformance suite, captured: same outputs as before, and as the suite expects."""

from __future__ import annotations

import collections
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.capture import capture
from graphopt.errors import UnsupportedModelError
from graphopt.ir import opset

REFUSED_THOUGH_RUNNABLE = {
    "test_not_2d": "opset 1",
    "test_not_3d": "opset 1",
    "test_not_4d": "opset 1",
    "test_scan_sum": "opset 8",
}
"""Cases that ONNX Runtime runs and capture refuses, with what the message names."""


UNDEFINED = {"test_reversesequence_batch"}
"""Cases of which ONNX Runtime 1.23 leaves a part of the output as it found the memory."""


def as_input(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if isinstance(value, onnx.SequenceProto):
        return onnx.numpy_helper.to_list(value)
    if isinstance(value, onnx.OptionalProto):
        return onnx.numpy_helper.to_optional(value)
    return np.asarray(value) if isinstance(value, np.generic | int | float) else value


def run(proto: onnx.ModelProto, feeds: Sequence[Any]) -> list[Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    ort.set_seed(0)
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return list(session.run(None, dict(zip(names, feeds, strict=False))))


def close(left: Any, right: Any, rtol: float, atol: float) -> bool:
    if isinstance(left, list) or isinstance(right, list):
        return len(left) == len(right) and all(
            close(a, b, rtol, atol) for a, b in zip(left, right, strict=True)
        )
    if left is None or right is None:
        return left is right
    left, right = np.asarray(left), np.asarray(right)
    if left.shape != right.shape:
        return False
    if left.dtype.kind in "OUS":
        return bool((left.astype(str) == right.astype(str)).all())
    wide = np.complex128 if left.dtype.kind == "c" else np.float64
    return bool(np.allclose(left.astype(wide), right.astype(wide), rtol=rtol, atol=atol, equal_nan=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_operator_case_computes_the_same_after_capture() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = collect_testcases(None)
    counts: collections.Counter[str] = collections.Counter()
    broken: list[str] = []
    for case in cases:
        sets = [
            ([as_input(v) for v in feeds], [as_input(v) for v in wanted]) for feeds, wanted in case.data_sets
        ]
        try:
            before: list[list[Any]] | None = [run(case.model, feeds) for feeds, _ in sets]
        except Exception:  # of ONNX Runtime: no kernel, opset too new, type unknown to NumPy
            before = None
        passes = before is not None and all(
            close(wanted, got, case.rtol, max(case.atol, 1e-7))
            for (_, wanted), got in zip(sets, before, strict=True)
        )
        counts["runtime passes"] += passes
        try:
            captured = capture(case.model)
        except UnsupportedModelError as error:
            if before is not None and REFUSED_THOUGH_RUNNABLE.get(case.name, "?") not in error.message:
                broken.append(f"{case.name}: refused: {error.message}")
            continue
        counts["captured"] += 1
        try:
            after = [run(ir.to_proto(captured.model), feeds) for feeds, _ in sets]
            original = [run(ir.to_proto(captured.original_model), feeds) for feeds, _ in sets]
        except Exception as error:  # as above
            if before is not None:
                broken.append(f"{case.name}: {str(error)[:200]}")
            continue
        counts["passes after capture"] += all(
            close(wanted, got, case.rtol, max(case.atol, 1e-7))
            for (_, wanted), got in zip(sets, after, strict=True)
        )
        if case.name in UNDEFINED and before is None:
            continue
        if not close(original, after, 1e-6, 1e-7):
            broken.append(f"{case.name}: the upgrade changed its outputs")
        if before is not None and not close(before, original, 1e-6, 1e-7):
            broken.append(f"{case.name}: the repaired original differs from the model as given")
    assert not broken, "\n".join(broken)
    # ONNX Runtime 1.23 ends at opset 23 and lacks more kernels.
    least = (1390, 1530) if opset.limits().newest_opset > 23 else (1220, 1480)
    assert counts["runtime passes"] >= least[0] and counts["passes after capture"] >= least[1], counts
