"""Every operator case of ONNX's conformance suite on OpenVINO: computed as the suite expects, or refused by name."""

from __future__ import annotations

import collections
import warnings
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.capture import capture
from graphopt.errors import TargetError, UnsupportedModelError
from graphopt.targets.openvino.convert import keep_order_of_equals
from graphopt.targets.openvino.executable import properties
from graphopt.targets.openvino.operators import check

openvino = pytest.importorskip("openvino")

ROUNDS_OTHERWISE = {"test_dynamicquantizelinear", "test_dynamicquantizelinear_expanded"}
"""OpenVINO multiplies by the reciprocal of the scale: an element half-way between two integers may become the other."""


def run_openvino(proto: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    core = openvino.Core()
    model = core.read_model(proto.SerializeToString())
    keep_order_of_equals(model)
    compiled = core.compile_model(model, "CPU", properties({}, 1))
    names = [parameter.get_friendly_name() for parameter in model.get_parameters()]
    results = compiled.create_infer_request().infer([np.asarray(feeds[name]) for name in names])
    return [np.array(results[index]) for index in range(len(compiled.outputs))]


def run_onnxruntime(proto: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def is_number(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic | float | int) and np.asarray(value).dtype.kind in "biuf"


def close(left: Any, right: Any, rtol: float, atol: float) -> bool:
    left, right = np.asarray(left), np.asarray(right)
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    return bool(
        np.allclose(left.astype(np.float64), right.astype(np.float64), rtol=rtol, atol=atol, equal_nan=True)
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_operator_case_is_computed_or_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = collect_testcases(None)
    counts: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    for case in cases:
        feeds_of, wanted_of = case.data_sets[0]
        if not all(is_number(value) for value in (*feeds_of, *wanted_of)):
            continue
        try:
            captured = capture(case.model)
            proto = ir.to_proto(captured.model)
            feeds = dict(
                zip([value.name for value in case.model.graph.input], map(np.asarray, feeds_of), strict=True)
            )
            reference = run_onnxruntime(proto, feeds)
        except Exception:  # of ONNX Runtime, or refused by capture: nothing to compare with
            continue
        if not all(
            close(a, b, case.rtol, max(case.atol, 1e-7)) for a, b in zip(wanted_of, reference, strict=True)
        ):
            continue
        counts["reference"] += 1
        try:
            check(captured.model)
            results = run_openvino(proto, feeds)
        except (TargetError, UnsupportedModelError):
            counts["refused"] += 1
            continue
        except Exception:  # of OpenVINO: rejected by itself
            counts["rejected"] += 1
            continue
        if all(close(a, b, case.rtol, max(case.atol, 1e-7)) for a, b in zip(wanted_of, results, strict=True)):
            counts["computed"] += 1
        elif case.name not in ROUNDS_OTHERWISE:
            wrong.append(
                f"{case.name}: {[np.asarray(r).reshape(-1)[:4] for r in results]} for {[np.asarray(w).reshape(-1)[:4] for w in wanted_of]}"
            )
    print(counts)
    assert not wrong, "\n".join(wrong)
    assert counts["computed"] >= 1000, counts
